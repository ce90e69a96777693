"""Gradient difference: ascent on the forget set, descent on the retain set."""

from __future__ import annotations

import pytest
import torch
from helpers_training import assert_same_training, data_sets, logs, make_trainer, weights

from unlearnkit.recipe import MixSpec


def test_without_the_forget_term_it_is_fine_tuning_on_the_retain_set(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path
):
    """With the retain set as anchor both see the same rows in the same order."""
    streams = data_sets(fictional_rows)
    common = {"optim": "sgd", "learning_rate": 0.1}
    diff = make_trainer(
        "grad_diff", tiny_model(), tiny_tokenizer, streams, tmp_path, forget_weight=0.0,
        mix=MixSpec(anchor="retain"), **common,
    )  # fmt: skip
    tuned = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, streams, tmp_path, train_streams=["retain"], **common
    )
    diff.train()
    tuned.train()
    # Micro-batches are sorted alike, but padded to the longest row of either stream.
    assert_same_training(weights(diff.model), weights(tuned.model), weights(tiny_model()))
    for one, other in zip(logs(diff), logs(tuned), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["retain/nll"] == pytest.approx(other["retain/nll"], rel=1e-5)


@pytest.mark.parametrize("weights_of", [(1.0, 1.0), (0.25, 2.0)])
def test_the_loss_is_the_weighted_sum(tiny_model, tiny_tokenizer, fictional_rows, tmp_path, weights_of):
    forget_weight, retain_weight = weights_of
    trainer = make_trainer(
        "grad_diff", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path,
        forget_weight=forget_weight, retain_weight=retain_weight,
    )  # fmt: skip
    trainer.train()
    steps = logs(trainer)
    for step in steps:
        expected = retain_weight * step["retain/nll"] - forget_weight * step["forget/nll"]
        assert step["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_kl_baseline_starts_at_zero(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`retain: kl` is the "KL" baseline; at the start the policy is the reference."""
    trainer = make_trainer(
        "grad_diff", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, retain="kl"
    )
    assert trainer.reference_name == "frozen"
    trainer.train()
    values = [step["retain/kl"] for step in logs(trainer)]
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[-1] > 1e-3
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
