"""SatImp (arXiv 2505.11953): weights, value, gradient, limits."""

from __future__ import annotations

import math

import pytest
import torch

from unlearnkit.errors import RecipeError
from unlearnkit.methods.sat_imp import SatImpConfig, sat_imp_loss, sat_imp_weights
from unlearnkit.methods.wga import wga_loss


def _logps(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_()


def test_closed_form():
    """beta1 = 2, beta2 = 1, p = 1/2: weight 1/4 * 1/2 = 1/8, loss -(ln 2) / 8, slope in log p 1/8. beta1 = 1,
    beta2 = 2, p = 1/4: weight 1/4 * 9/16 = 9/64, loss -9 ln 4 / 64.
    """
    logps = _logps(0.5)
    loss = sat_imp_loss(logps, beta1=2.0, beta2=1.0)
    assert loss.item() == pytest.approx(-math.log(2) / 8, rel=1e-12)
    assert torch.autograd.grad(loss.sum(), logps)[0].item() == pytest.approx(1 / 8, rel=1e-12)
    assert sat_imp_loss(_logps(0.25), beta1=1.0, beta2=2.0).item() == pytest.approx(
        -9 * math.log(4) / 64, rel=1e-12
    )


def test_without_importance_it_is_wga_and_without_both_gradient_ascent():
    logps = _logps(0.97, 0.3, 1e-6)
    for beta in (1.0, 5.0):
        torch.testing.assert_close(
            sat_imp_loss(logps, beta1=beta, beta2=0.0), wga_loss(logps, beta=beta), rtol=0, atol=0
        )
    torch.testing.assert_close(sat_imp_loss(logps, beta1=0.0, beta2=0.0), logps, rtol=0, atol=0)


def test_the_gradient_is_that_of_the_weighted_log_probability():
    """With the weights written from the probabilities themselves, and detached."""
    logits = torch.randn(
        6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    logps = logits.log_softmax(-1)[:, 3]
    ours = torch.autograd.grad(sat_imp_loss(logps, beta1=5.0, beta2=1.0).mean(), logits, retain_graph=True)[0]
    p = logps.exp().detach()
    expected = torch.autograd.grad((p**5 * (1 - p) * logps).mean(), logits)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-16)


def test_the_weight_vanishes_at_both_ends_and_is_largest_where_the_docstring_says():
    """p^5 (1 - p): its derivative p^4 (5 - 6 p) is 0 at p = 5/6, where it is 5^5 / 6^6 = 0.0670."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    weights = sat_imp_weights(p.log(), beta1=5.0, beta2=1.0)
    assert p[weights.argmax()].item() == pytest.approx(5 / 6, abs=1e-3)
    assert weights.max().item() == pytest.approx(5**5 / 6**6, rel=1e-5)
    ends = sat_imp_weights(torch.tensor([-200.0, 0.0], dtype=torch.float64), beta1=5.0, beta2=1.0)
    assert ends.tolist() == pytest.approx([0.0, 0.0], abs=1e-300)


def test_a_certain_token_keeps_a_weight_and_rounding_does_not_make_nan():
    """1 - p for log p = -1e-9 is 1e-9: exp would round it away in float32. A log p that rounding left above 0
    counts as 0, also under a root.
    """
    logps = torch.tensor([-1e-9, 1e-7])
    weights = sat_imp_weights(logps, beta1=5.0, beta2=1.0)
    assert weights[0].item() == pytest.approx(1e-9, rel=1e-5)
    assert sat_imp_weights(logps, beta1=5.0, beta2=0.5)[1].item() == 0.0


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_powers_must_not_be_negative(name, value, tmp_path):
    with pytest.raises(RecipeError, match=rf"training\.{name} must be .*at least 0, found .*published"):
        SatImpConfig(output_dir=str(tmp_path), **{name: value})


def test_the_free_function_refuses_negative_powers():
    with pytest.raises(ValueError, match=r"at least 0, found 1\.0 and -1\.0"):
        sat_imp_loss(_logps(0.5), beta1=1.0, beta2=-1.0)
