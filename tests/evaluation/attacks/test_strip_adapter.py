"""Strip the adapter: the base model's own answers, and everything back in place."""

from __future__ import annotations

import pytest
import torch
from helpers_subjects import Unchanged, logits, lora, make_subject

from unlearnkit.errors import ModelError
from unlearnkit.evaluation.attacks.strip_adapter import StripAdapter
from unlearnkit.models.load import model_fingerprint


@pytest.mark.parametrize("trainable", [False, True])
def test_the_base_model_answers(tiny_model, tiny_tokenizer, fictional_rows, trainable):
    model = lora(tiny_model(), modules_to_save=["norm"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p += 1
            if trainable and "lora_A" in name:
                p.requires_grad_(True)
    model.train(trainable)
    subject = make_subject(model, tiny_tokenizer, fictional_rows)
    unchanged, name = Unchanged(model), model_fingerprint(model)
    base = logits(tiny_model())
    model.eval()
    before = logits(model)
    model.train(trainable)
    with StripAdapter().stages(subject) as stages:
        [stage] = stages
        assert torch.equal(logits(stage.model), base)
        assert not torch.equal(before, base)
        assert not stage.model.training
        assert model_fingerprint(stage.model) != name
        ids = torch.tensor([[5, 6, 7]])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
        assert torch.equal(stage.model.generate(ids, **options), tiny_model().generate(ids, **options))
        assert (stage.variant, stage.seen) == ("stripped", frozenset())
    unchanged.check()

    def body():
        with StripAdapter().stages(subject) as stages:
            next(stages).model.requires_grad_(False)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        body()
    unchanged.check()
    model.eval()
    assert torch.equal(logits(model), before)


def test_an_adapter_that_is_off_stays_off(tiny_model, tiny_tokenizer, fictional_rows):
    model = lora(tiny_model())
    model.base_model.disable_adapter_layers()
    before = logits(model)
    with StripAdapter().stages(make_subject(model, tiny_tokenizer, fictional_rows)) as stages:
        assert torch.equal(logits(next(stages).model), before)
    assert torch.equal(logits(model), before)


def test_learned_prompts(tiny_model, tiny_tokenizer, fictional_rows):
    from peft import PromptTuningConfig, get_peft_model

    with torch.random.fork_rng():
        model = get_peft_model(
            tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        ).eval()
    unchanged = Unchanged(model)
    with StripAdapter().stages(make_subject(model, tiny_tokenizer, fictional_rows)) as stages:
        stage = next(stages)
        assert torch.equal(logits(stage.model), logits(tiny_model()))
        assert model_fingerprint(stage.model) != model_fingerprint(model)
    unchanged.check()
    assert logits(model).shape[1] == 8


def test_models_that_have_nothing_to_strip(tiny_model, tiny_tokenizer, fictional_rows):
    subject = make_subject(tiny_model(), tiny_tokenizer, fictional_rows)
    with pytest.raises(ModelError, match="LlamaForCausalLM has none"), StripAdapter().stages(subject):
        pass
    model = lora(tiny_model())
    model.merge_adapter()
    subject = make_subject(model, tiny_tokenizer, fictional_rows)
    with pytest.raises(ModelError, match="merged into the weights"), StripAdapter().stages(subject):
        pass
