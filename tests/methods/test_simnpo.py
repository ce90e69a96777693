"""SimNPO (arXiv 2410.07163): value, gradient, limits, counts."""

from __future__ import annotations

import math

import pytest
import torch

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.simnpo import SimNPO, SimNPOConfig, simnpo_loss
from unlearnkit.training import logprobs
from unlearnkit.training.objective import Step, as_counts, count_streams

B, T, V = 4, 6, 13


class _Toy:
    """Logits as free parameters: theta is the table itself, in float64; answers of 4, 1, 4 and 4 tokens."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, V, (B, T), generator=generator)
        self.labels[:, :2] = IGNORE
        self.labels[1, 3:] = IGNORE
        self.theta = torch.randn(B, T, V, generator=generator, dtype=torch.float64).requires_grad_()
        self.lengths = torch.tensor([4.0, 1.0, 4.0, 4.0], dtype=torch.float64)

    def nll(self):
        return -logprobs.sequence_logps(self.theta, self.labels) / self.lengths

    def grad(self, loss):
        return torch.autograd.grad(loss, self.theta)[0]


@pytest.mark.parametrize("beta", [0.1, 2.5, 4.5])
def test_value_and_slope_at_the_margin(beta):
    """At nll = gamma softplus(0) = ln 2, so L = (2/beta) ln 2; the slope in nll is (2/beta)(-beta) sigma(0) =
    -1."""
    nll = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss = simnpo_loss(nll, beta=beta, margin=0.7)
    assert loss.item() == pytest.approx(2 * math.log(2) / beta, rel=1e-12)
    assert torch.autograd.grad(loss.sum(), nll)[0].item() == pytest.approx(-1.0, rel=1e-12)


def test_closed_form():
    """beta = 1, nll = ln 2, margin 0: L = 2 ln(1 + e^-ln 2) = 2 ln(3/2). With margin ln 2 more, at nll = 0: L
    = 2 ln(1 + 2) = 2 ln 3.
    """
    nll = torch.tensor([math.log(2), 0.0], dtype=torch.float64)
    assert simnpo_loss(nll[:1], beta=1.0).item() == pytest.approx(2 * math.log(1.5), rel=1e-12)
    assert simnpo_loss(nll[1:], beta=1.0, margin=math.log(2)).item() == pytest.approx(
        2 * math.log(3), rel=1e-12
    )


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_the_gradient_is_weighted_ascent_per_token(margin):
    """dL = sg(W) (1/n) d log pi with W = 2 sigma(-beta (nll - gamma)), written as 2 / (1 + e^(beta (nll -
    gamma)))."""
    toy, beta = _Toy(), 2.5
    ours = toy.grad(simnpo_loss(toy.nll(), beta=beta, margin=margin).mean())
    weight = 2 / (1 + torch.exp(beta * (toy.nll().detach() - margin)))
    expected = toy.grad((weight / toy.lengths * logprobs.sequence_logps(toy.theta, toy.labels)).mean())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-15)


def test_small_beta_tends_to_ascent_per_token_linearly():
    """N6: |grad SimNPO - grad mean (log pi / n)| goes to zero like beta."""
    toy = _Toy()
    ascent = toy.grad(-toy.nll().mean())
    gaps = [
        (toy.grad(simnpo_loss(toy.nll(), beta=beta).mean()) - ascent).norm().log10().item()
        for beta in (1e-2, 1e-3, 1e-4)
    ]
    assert gaps[0] - gaps[1] == pytest.approx(1.0, abs=0.02)
    assert gaps[1] - gaps[2] == pytest.approx(1.0, abs=0.02)


def test_falls_with_the_nll_and_does_not_overflow():
    loss = simnpo_loss(torch.linspace(0, 50, 51, dtype=torch.float64), beta=2.5)
    assert (loss.diff() < 0).all()
    assert (loss > 0).all()
    assert simnpo_loss(torch.tensor([-1e5, 1e5]), beta=1.0).tolist() == [2e5, 0.0]


def _out(model, rows):
    batch = StreamCollator(("forget",), pad_id=0)([{"forget": [row]} for row in rows])
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))
    return SimNPO(2.5)(Step(model, batch, counts), batch)


def test_lengths_are_those_of_the_shifted_labels(tiny_model):
    """Position 0 predicts nothing: a label there does not make the answer longer. The answer has 2 tokens, 7
    and 8, whatever stands before them, and its nll is their mean.
    """
    model = tiny_model().double()
    plain = _out(model, [{"input_ids": [5, 7, 8], "labels": [IGNORE, 7, 8]}])
    labelled = _out(model, [{"input_ids": [5, 7, 8], "labels": [5, 7, 8]}])
    logps = model(input_ids=torch.tensor([[5, 7, 8]])).logits.log_softmax(-1)
    nll = -(logps[0, 0, 7] + logps[0, 1, 8]).item() / 2
    expected = 2 / 2.5 * math.log1p(math.exp(-2.5 * nll))
    for out in (plain, labelled):
        assert out.loss.item() == pytest.approx(expected, rel=1e-10)
        assert out.metrics["forget/nll"].item() == pytest.approx(nll, rel=1e-10)


def test_an_answer_that_was_cut_away_counts_for_nothing(tiny_model):
    model = tiny_model().double()
    row = {"input_ids": [5, 7, 8], "labels": [IGNORE, 7, 8]}
    empty = {"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}
    torch.testing.assert_close(_out(model, [row, empty]).loss, _out(model, [row]).loss, rtol=1e-12, atol=0)
    nothing = _out(model, [empty])
    assert nothing.loss.item() == 0.0
    gradients = torch.autograd.grad(nothing.loss, list(model.parameters()))
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_beta_must_be_positive(beta, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.beta must be .*above 0, found .*grad_ascent"):
        SimNPOConfig(output_dir=str(tmp_path), beta=beta)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_the_margin_must_not_be_negative(margin, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.margin must be .*at least 0, found .*forget_weight"):
        SimNPOConfig(output_dir=str(tmp_path), margin=margin)


def test_the_free_function_refuses_beta_zero():
    with pytest.raises(ValueError, match=r"above 0, found 0\.0"):
        simnpo_loss(torch.zeros(1), beta=0.0)
