"""Gradient ascent: minus the cross-entropy, by `token_mean`."""

from __future__ import annotations

import pytest
import torch
from helpers_training import data_sets, logs, make_trainer
from torch.nn import functional

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.methods.grad_ascent import GradAscent, grad_ascent_loss
from unlearnkit.training.objective import Step, as_counts, count_streams

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [IGNORE, IGNORE, 7, 8, 9, 10]},
    {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]},
]


def test_the_gradient_is_minus_that_of_cross_entropy(tiny_model):
    """PyTorch's own cross-entropy, a mean over the 6 target tokens."""
    model = tiny_model().double()
    batch = StreamCollator(("forget",), pad_id=0)([{"forget": [row]} for row in ROWS])
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))
    out = GradAscent()(Step(model, batch, counts), batch)
    tokens = batch["forget"]
    logits = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens["labels"][:, 1:].flatten())
    torch.testing.assert_close(out.loss, -nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.metrics["forget/nll"], nll.detach(), rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    for ours, plain in zip(
        torch.autograd.grad(out.loss, parameters), torch.autograd.grad(nll, parameters), strict=True
    ):
        torch.testing.assert_close(ours, -plain, rtol=1e-9, atol=1e-12)


def test_the_mean_is_over_tokens_and_not_over_sequences():
    """Four tokens of log-prob -1 and one of -6: the mean is -10/5 = -2; a mean of means would be -3.5."""
    assert grad_ascent_loss(torch.tensor([-1.0, -1, -1, -1, -6])).mean() == -2


def test_forgets(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    trainer = make_trainer("grad_ascent", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path)
    assert trainer.reference_name == "none"
    trainer.train()
    steps = logs(trainer)
    assert steps[-1]["forget/nll"] > steps[0]["forget/nll"] + 0.5
    assert all(step["loss"] == pytest.approx(-step["forget/nll"], rel=1e-6) for step in steps)
