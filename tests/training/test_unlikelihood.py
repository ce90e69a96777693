"""-log(1 - p): its value by hand, and its gradient p, also where p is 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.training.unlikelihood import unlikelihood


def test_unlikelihood_by_hand():
    """Odds of 3 : 1, 1 : 3 and 1 : 1 give p = 3/4, 1/4 and 1/2: ln 4, ln 4/3 and ln 2."""
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)], [5.0, 5.0]])
    found = unlikelihood(logits, torch.tensor([0, 0, 1]))
    assert found.tolist() == pytest.approx([math.log(4), math.log(4 / 3), math.log(2)], rel=1e-6)


LOGITS = st.lists(st.lists(st.floats(-6, 6), min_size=5, max_size=5), min_size=1, max_size=4)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 4))
def test_it_is_the_naive_form_where_that_is_exact_and_its_gradient_is_p(rows, target):
    """-log(1 - softmax(z)_y) in float64; d/dz_y = p_y and d/dz_v = p_v - p_v / (1 - p_y)."""
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    targets = torch.full((len(rows),), target)
    values = unlikelihood(logits, targets)
    p = torch.softmax(logits, -1)
    torch.testing.assert_close(values, -torch.log(1 - p[:, target]), rtol=1e-9, atol=1e-12)
    gradient = torch.autograd.grad(values.sum(), logits)[0]
    expected = p - p / (1 - p[:, [target]])
    expected[:, target] = p[:, target]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_certain_is_still_pushed_away(dtype):
    """p is 1 to the last bit: value z_y - log 3 and gradient 1, where the clamped form has no gradient."""
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0])
    value = unlikelihood(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(200 - math.log(3), rel=1e-6)
    gradient = torch.autograd.grad(value.sum(), logits)[0]
    assert gradient.tolist()[0] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], abs=2e-3)

    p = torch.softmax(logits.float(), -1)[0, 0]
    assert p == 1.0
    clamped = -torch.log(torch.clamp(1 - p, min=1e-9))
    assert not torch.autograd.grad(clamped, logits)[0].any()


def test_a_token_that_is_impossible_is_left_alone():
    logits = torch.tensor([[-math.inf, 0.0, 1.0], [-100.0, 0.0, 1.0]], requires_grad=True)
    values = unlikelihood(logits, torch.tensor([0, 0]))
    assert values.tolist() == pytest.approx([0.0, 0.0], abs=1e-30)
    assert torch.autograd.grad(values.sum(), logits)[0].abs().max() < 1e-30


def test_chunks_do_not_matter():
    logits = torch.randn(1100, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(1100) % 7
    whole = torch.autograd.grad(unlikelihood(logits, targets).sum(), logits)[0]
    parts = [unlikelihood(part, own) for part, own in zip(logits.split(100), targets.split(100), strict=True)]
    torch.testing.assert_close(unlikelihood(logits, targets), torch.cat(parts), rtol=1e-6, atol=1e-7)
    gradient = torch.autograd.grad(torch.cat(parts).sum(), logits)[0]
    torch.testing.assert_close(gradient, whole, rtol=1e-6, atol=1e-7)
