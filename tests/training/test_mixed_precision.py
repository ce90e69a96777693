"""Under bf16 the logits stay in bf16, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from helpers_training import data_sets, logs, lora, make_trainer, weights

from unlearnkit.training import logprobs
from unlearnkit.training.precision import KeepLogitsNarrow


@pytest.mark.parametrize("settings", [
    {}, {"retain": "kl", "peft_config": lora()}, {"activation_checkpointing": True}, {"retain": "reverse_kl"},
], ids=lambda settings: " ".join(settings) or "plain")  # fmt: skip
def test_no_float32_copy_of_the_logits_and_the_same_training(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path, monkeypatch, settings
):
    seen, target_logits = set(), logprobs.target_logits

    def watched(*args, **kwargs):
        out = target_logits(*args, **kwargs)
        if out.logits_NV.requires_grad:
            seen.add(out.logits_NV.dtype)
        return out

    monkeypatch.setattr(logprobs, "target_logits", watched)
    runs = []
    for narrow in (True, False):
        trainer = make_trainer(
            "grad_diff", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, bf16=True,
            num_train_epochs=1, **settings,
        )  # fmt: skip
        if not narrow:
            trainer.remove_callback(KeepLogitsNarrow)
        seen.clear()
        trainer.train()
        assert seen == {torch.bfloat16 if narrow else torch.float32}
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        assert unwrapped(torch.zeros(1, 2, dtype=torch.long)).logits.dtype == torch.float32
        runs.append((logs(trainer), weights(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(p, runs[1][1][name]) for name, p in runs[0][1].items())
