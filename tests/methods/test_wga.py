"""WGA (arXiv 2502.19301): value, gradient, limits."""

from __future__ import annotations

import math

import pytest
import torch

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.grad_ascent import GradAscent, grad_ascent_loss
from unlearnkit.methods.wga import WGA, WGAConfig, wga_loss, wga_weights
from unlearnkit.training.objective import Step, as_counts, count_streams


def _logps(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_()


def test_closed_form():
    """beta = 1: p log p, so 1/4 gives -(ln 4) / 4 and 1/2 gives -(ln 2) / 2. beta = 2 and p = 1/4: -(ln 4) /
    16. The slope in log p is the weight alone, p^beta, for the weight is held still.
    """
    logps = _logps(0.25, 0.5)
    loss = wga_loss(logps, beta=1.0)
    expected = torch.tensor([-math.log(4) / 4, -math.log(2) / 2], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(loss.sum(), logps)[0]
    assert gradient.tolist() == pytest.approx([0.25, 0.5], rel=1e-12)
    assert wga_loss(logps, beta=2.0)[0].item() == pytest.approx(-math.log(4) / 16, rel=1e-12)


def test_beta_zero_is_gradient_ascent():
    logps = _logps(0.9, 0.3, 1e-9)
    torch.testing.assert_close(wga_loss(logps, beta=0.0), grad_ascent_loss(logps), rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_gradient_is_that_of_the_mean_power(beta):
    """d/dtheta sg(p^beta) log p = p^beta dlog p = d/dtheta p^beta / beta, whose mean is what falls."""
    logits = torch.randn(
        5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    logps = logits.log_softmax(-1)[:, 2]
    ours = torch.autograd.grad(wga_loss(logps, beta=beta).mean(), logits, retain_graph=True)[0]
    power = torch.autograd.grad(((beta * logps).exp() / beta).mean(), logits)[0]
    torch.testing.assert_close(ours, power, rtol=1e-12, atol=1e-15)


def test_weights_lie_between_zero_and_one_and_rise_with_the_probability():
    weights = wga_weights(torch.linspace(-700, 0, 71, dtype=torch.float64), beta=1.0)
    assert (weights >= 0).all()
    assert weights[-1] == 1
    assert (weights.diff() > 0).all()
    assert not wga_weights(_logps(0.5), beta=1.0).requires_grad


def _out(term, model):
    batch = StreamCollator(("forget",), pad_id=0)(
        [{"forget": [{"input_ids": [5, 6, 7, 8], "labels": [IGNORE, 6, 7, 8]}]}, {"forget": [
            {"input_ids": [9, 8, 7], "labels": [IGNORE, IGNORE, 7]}]}]
    )  # fmt: skip
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))
    out = term(Step(model, batch, counts), batch)
    return out, torch.autograd.grad(out.loss, list(model.parameters()))


def test_beta_zero_is_gradient_ascent_through_a_model(tiny_model):
    """Value, gradient and the logged nll of the term, in float64; every weight is 1."""
    model = tiny_model().double()
    ours, gradient = _out(WGA(0.0), model)
    ascent, expected = _out(GradAscent(), model)
    torch.testing.assert_close(ours.loss, ascent.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert ours.metrics["forget/weight"].item() == 1.0
    torch.testing.assert_close(ours.metrics["forget/nll"], ascent.metrics["forget/nll"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [-0.5, float("nan"), float("inf")])
def test_beta_must_be_a_number_that_is_not_negative(beta, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.beta must be .*at least 0, found .*gradient ascent"):
        WGAConfig(output_dir=str(tmp_path), beta=beta)


def test_the_free_function_refuses_a_negative_beta():
    with pytest.raises(ValueError, match=r"at least 0, found -1\.0"):
        wga_loss(_logps(0.5), beta=-1.0)
