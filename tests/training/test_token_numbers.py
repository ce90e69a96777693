"""Entropy and error norm of a distribution: closed forms, range, numerics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.training.token_numbers import entropies, error_norms

SQRT2 = math.sqrt(2)
rows = st.lists(st.floats(-40, 40), min_size=2, max_size=12)


def _random(n, v, *, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(n, v, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(v, (n,), generator=generator)


def test_entropy_by_hand():
    """Uniform over 4: ln 4. (1/2, 1/4, 1/4): 1/2 ln 2 + 1/2 ln 4 = 3/2 ln 2. A sure thing: 0."""
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]).double()
    expected = torch.tensor([math.log(4), 1.5 * math.log(2), 0.0], dtype=torch.float64)
    torch.testing.assert_close(entropies(p.log()), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropies(p.log() + 7.3), expected, rtol=1e-12, atol=1e-12)


def test_error_norm_by_hand():
    """p = (1/2, 1/4, 1/4): against the first |(-1/2, 1/4, 1/4)| = sqrt(6)/4, against the second
    |(1/2, -3/4, 1/4)| = sqrt(14)/4. Uniform over V: sqrt(1 - 1/V).
    """
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).repeat(2, 1)
    expected = torch.tensor([math.sqrt(6) / 4, math.sqrt(14) / 4], dtype=torch.float64)
    torch.testing.assert_close(error_norms(p.log(), torch.tensor([0, 1])), expected, rtol=1e-12, atol=0)
    uniform = error_norms(torch.zeros(1, 50, dtype=torch.float64), torch.tensor([3]))
    assert uniform.item() == pytest.approx(math.sqrt(1 - 1 / 50), rel=1e-12)


@pytest.mark.parametrize("q", [1.0, 0.5, 1e-3, 1e-9, 1e-20])
def test_of_two_tokens_the_error_norm_is_sqrt2_times_the_missing_probability(q):
    """p = (1 - q, q): |(-q, q)| = sqrt(2) q. Also in float32, where p^2 - 2 p + 1 is lost below 1e-7."""
    logits = torch.tensor([[math.log1p(-q) if q < 1 else -math.inf, math.log(q), -math.inf]])
    assert error_norms(logits, torch.tensor([0])).item() == pytest.approx(SQRT2 * q, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(rows, st.integers(0, 11))
def test_the_numbers_are_those_of_the_distribution(values, target):
    """Against the definitions in float64; the norm also by LSE(2 z) - 2 LSE(z), and within its range."""
    z = torch.tensor([values], dtype=torch.float64)
    y = torch.tensor([target % len(values)])
    p = z.softmax(-1)
    norm, entropy = error_norms(z, y).item(), entropies(z).item()
    one_hot = torch.nn.functional.one_hot(y, len(values))
    assert norm == pytest.approx((p - one_hot).norm().item(), abs=1e-12)
    square = math.exp(torch.logsumexp(2 * z, -1) - 2 * torch.logsumexp(z, -1)) - 2 * p[0, y].item() + 1
    assert norm**2 == pytest.approx(square, abs=1e-12)
    assert 0 <= norm <= SQRT2
    assert entropy == pytest.approx(-(p * z.log_softmax(-1)).sum().item(), abs=1e-11)
    assert 0 <= entropy <= math.log(len(values)) + 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_float32_stays_in_range(scale):
    logits, targets = _random(300, 60, scale=scale, dtype=torch.float32)
    norms, spread = error_norms(logits, targets), entropies(logits)
    assert norms.dtype == spread.dtype == torch.float32
    assert ((norms >= 0) & (norms <= SQRT2)).all()
    assert (spread >= 0).all()
    exact, of_double = error_norms(logits.double(), targets), entropies(logits.double())
    torch.testing.assert_close(norms.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread.double(), of_double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_size_does_not_matter(chunk):
    logits, targets = _random(25, 13)
    assert torch.equal(error_norms(logits, targets, chunk=chunk), error_norms(logits, targets, chunk=25))
    assert torch.equal(entropies(logits, chunk=chunk), entropies(logits, chunk=25))


def test_any_dtype_gives_float32_and_no_gradient():
    logits, targets = _random(5, 7, dtype=torch.bfloat16)
    logits.requires_grad_()
    for values in (error_norms(logits, targets), entropies(logits)):
        assert values.dtype == torch.float32
        assert not values.requires_grad


def test_the_logits_stay_as_they_are_and_none_is_none():
    logits, targets = _random(5, 7)
    before = logits.clone()
    error_norms(logits, targets)
    entropies(logits)
    assert torch.equal(logits, before)
    assert error_norms(logits[:0], targets[:0]).shape == entropies(logits[:0]).shape == (0,)


def test_impossible_tokens_give_no_nan():
    """Of (0, 0, -inf, -inf) a third token is impossible: e = |(1/2, 1/2, -1)| = sqrt(3/2); H = ln 2."""
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    assert error_norms(logits, torch.tensor([2])).item() == pytest.approx(math.sqrt(1.5))
    assert entropies(logits).item() == pytest.approx(math.log(2))
