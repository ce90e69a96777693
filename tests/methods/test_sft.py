"""Fine-tuning: plain cross-entropy over one or more streams."""

from __future__ import annotations

import pytest
import torch
from helpers_training import data_sets, difference, logs, make_trainer, weights
from torch.nn import functional

from unlearnkit.recipe import MixSpec
from unlearnkit.training.objective import as_counts, count_streams


def test_learns(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    trainer = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, num_train_epochs=5
    )
    trainer.train()
    steps = logs(trainer)
    assert steps[-1]["train/nll"] < steps[0]["train/nll"] - 1
    assert all(step["loss"] == pytest.approx(step["train/nll"], rel=1e-6) for step in steps)


def test_several_streams_are_one_mean_over_all_their_tokens(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path
):
    """The loss of a batch of two streams is PyTorch's cross-entropy of all rows together."""
    streams = data_sets(fictional_rows)
    trainer = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, streams, tmp_path, train_streams=["retain", "train"],
        mix=MixSpec(anchor="train", ratios={"retain": 2}),
    )  # fmt: skip
    batch = trainer.data_collator([trainer.mix[i] for i in range(3)])
    assert [len(batch[s]["input_ids"]) for s in ("retain", "train")] == [6, 3]
    counts = as_counts(count_streams([batch], ("retain", "train"), "cpu"), ("retain", "train"))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).detach()
    joined = {k: torch.cat([batch[s][k] for s in ("retain", "train")]) for k in batch["train"]}
    logits = trainer.model(input_ids=joined["input_ids"], attention_mask=joined["attention_mask"]).logits
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1), joined["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, nll.detach(), rtol=1e-5, atol=1e-6)


def test_weighted_streams_are_averaged_over_the_steps_that_held_them(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path
):
    """One row a step: a step without a row of a stream is no zero in that stream's mean."""
    trainer = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path,
        train_streams=["retain", "train"], mix=MixSpec(weights={"retain": 3, "train": 1}, epoch_size=16),
        per_device_train_batch_size=1, num_train_epochs=1, learning_rate=0.0, logging_steps=8,
    )  # fmt: skip
    trainer.train()
    entries = logs(trainer)
    assert len(entries) == 2
    # The model does not move, and a random model gives every token about ln V.
    expected = torch.log(torch.tensor(float(trainer.model.config.vocab_size))).item()
    for entry in entries:
        for name in ("retain/nll", "train/nll"):
            assert entry.get(name, expected) == pytest.approx(expected, rel=0.05)


def test_muon_moves_the_matrices(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    trainer = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, matrix_optimizer="muon"
    )
    trainer.train()
    assert {g["algorithm"] for g in trainer.optimizer.param_groups} == {"muon", "adamw"}
    before, after = weights(tiny_model()), weights(trainer.model)
    assert all(difference({n: after[n]}, {n: before[n]}) > 0 for n in after)
    assert logs(trainer)[-1]["loss"] < logs(trainer)[0]["loss"]
