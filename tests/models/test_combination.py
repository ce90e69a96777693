"""The combination formula: identities, numbers by hand, and a second implementation in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit.models.combined.combination import combine, combine_each, kept_tokens

V = 40
RATES = (None, 0.01, 0.1, 0.3)
#: ULD, offset unlearning, value learning.
WEIGHTS = ((1.0, -0.75), (1.0, 0.5, -0.5), (1.0, 2.0))


def logits(
    *shape: int, networks: int = 2, dtype: torch.dtype = torch.float64, scale: float = 2.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(networks)
    ]


def reference(
    z: list[np.ndarray], weights: tuple[float, ...], rate: float | None, filtered: str
) -> np.ndarray:
    """One distribution, token by token, from the paper's words."""
    s = [one - one.max() - math.log(sum(math.exp(x - one.max()) for x in one)) for one in z]
    count = len(s[0])
    plausible = list(range(count))
    if rate is not None:
        bounds = [s[0].max() + math.log(rate)]
        if (ranked := math.floor(rate * count)) >= 1:
            bounds.append(sorted(s[0], reverse=True)[ranked - 1])
        plausible = [v for v in range(count) if s[0][v] >= min(bounds)]
    out = np.empty(count)
    for v in range(count):
        if v in plausible:
            out[v] = sum(w * one[v] for w, one in zip(weights, s, strict=True))
        elif filtered == "removed":
            out[v] = -math.inf
        else:
            out[v] = weights[0] * s[0][v] + sum(w * -math.log(count) for w in weights[1:])
    return out


# ---- Numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "kept"),
    [  # of the probabilities below; at least floor(4 r) tokens
        (0.5, 2),  # half of 0.5 is 0.25; the second is 0.3
        (0.2, 3),  # a fifth is 0.1; no token is kept by its rank
        (0.75, 3),  # 0.375 would keep one, the rank keeps three
        (0.05, 4),  # 0.025
    ],
)
def test_by_hand(rate, kept):
    target, assistant = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert kept_tokens(target.log(), rate).tolist() == [True] * kept + [False] * (4 - kept)
    ratios = target / assistant
    # To the others the assistant gives 1/4.
    neutral = torch.where(torch.arange(4) < kept, ratios, target * 4)
    removed = torch.where(torch.arange(4) < kept, ratios, 0.0)
    z = [target.log() + 3, assistant.log() - 1]
    for filtered, expected in (("neutral", neutral), ("removed", removed)):
        found = combine(z, (1, -1), filter_rate=rate, filtered=filtered)
        torch.testing.assert_close(found.exp(), expected)


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_same_as_token_by_token(weights, rate, filtered):
    z = logits(3, 4, V, networks=len(weights))
    found = combine(z, weights, filter_rate=rate, filtered=filtered)
    assert found.dtype == torch.float64
    expected = np.array(
        [
            [reference([one[b, t].numpy() for one in z], weights, rate, filtered) for t in range(4)]
            for b in range(3)
        ]
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    assert np.isinf(expected).any() == (rate is not None and filtered == "removed")
    for shape in ((12, V), (4, 3, V)):  # leading dimensions mean nothing
        other = combine([one.reshape(shape) for one in z], weights, filter_rate=rate, filtered=filtered)
        torch.testing.assert_close(other, found.reshape(shape), rtol=0, atol=0)


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
def test_several_weightings_at_once_are_each_alone(filtered):
    z, several = logits(5, V), [(1, -alpha) for alpha in (0.25, 0, 1.5)]
    options = {"filter_rate": 0.1, "filtered": filtered}
    found = list(combine_each(z, several, **options))
    assert len(found) == 3
    for weights, one in zip(several, found, strict=True):
        assert torch.equal(one, combine(z, weights, **options))


def test_half_precision_is_computed_in_float32():
    z = logits(5, V, dtype=torch.bfloat16)
    found = combine(z, (1, -0.75), filter_rate=0.1)
    assert found.dtype == torch.float32
    assert torch.equal(found, combine([one.float() for one in z], (1, -0.75), filter_rate=0.1))
    exact = combine([one.double() for one in z], (1, -0.75), filter_rate=0.1)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


# ---- Identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
@pytest.mark.parametrize("rate", RATES)
def test_with_weight_0_the_first_network_speaks_alone(rate, filtered):
    target, assistant = logits(50, V)
    found = combine([target, assistant], (1, 0), filter_rate=rate, filtered=filtered)
    alone = torch.log_softmax(target, -1)
    assert torch.equal(found.argmax(-1), target.argmax(-1))
    if filtered == "neutral":
        assert torch.equal(found, alone)
    else:
        kept = torch.isfinite(found)
        assert torch.equal(found[kept], alone[kept])
    broken = torch.full_like(assistant, math.nan)
    assert not combine([target, broken], (1, 0), filter_rate=rate, filtered=filtered).isnan().any()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("alpha", [0.25, 0.75, 2.0])
def test_a_uniform_assistant_changes_nothing(alpha, rate):
    target, _ = logits(50, V)
    uniform = torch.full_like(target, 7.0)
    found = combine([target, uniform], (1, -alpha), filter_rate=rate)
    torch.testing.assert_close(found.softmax(-1), target.softmax(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, target.log_softmax(-1) + alpha * math.log(V), rtol=0, atol=1e-12)
    removed = combine([target, uniform], (1, -alpha), filter_rate=rate, filtered="removed")
    p = target.softmax(-1) * torch.isfinite(removed)
    torch.testing.assert_close(removed.softmax(-1), p / p.sum(-1, keepdim=True), rtol=0, atol=1e-12)


def test_offset_of_two_equal_networks_changes_nothing():
    base, other = logits(50, V)
    found = combine([base, other, other], (1, 0.5, -0.5), filter_rate=0.1)
    torch.testing.assert_close(found, base.log_softmax(-1), rtol=0, atol=1e-12)


def test_a_rate_near_0_filters_nothing():
    z = logits(50, V)
    plain = combine(z, (1, -0.75))
    for rate in (1e-12, 0):
        for filtered in ("neutral", "removed"):
            assert torch.equal(combine(z, (1, -0.75), filter_rate=rate, filtered=filtered), plain)


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
@pytest.mark.parametrize("shifted", [0, 1])
def test_a_constant_added_to_a_networks_logits_changes_nothing(shifted, filtered):
    # Multiples of 1/64 and a whole number: the sums are exact, so the claim is, too.
    z = [(one * 64).round() / 64 for one in logits(50, V)]
    moved = [one + 1000 * torch.arange(50)[:, None] if i == shifted else one for i, one in enumerate(z)]
    options = {"filter_rate": 0.1, "filtered": filtered}
    assert torch.equal(combine(moved, (1, -0.75), **options), combine(z, (1, -0.75), **options))
    single = [one.float() for one in z]
    moved = [one + 10 if i == shifted else one for i, one in enumerate(single)]
    found, plain = (combine(some, (1, -0.75), **options) for some in (moved, single))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


# ---- The filter --------------------------------------------------------------------------------------------

_numbers = st.floats(-300, 300, width=32) | st.sampled_from([0.0, 1.0, -2.0])  # ties


@settings(deadline=None, max_examples=150)
@given(st.lists(_numbers, min_size=1, max_size=50), st.floats(1e-6, 0.999))
def test_the_likeliest_token_and_a_share_of_all_are_kept(values, rate):
    logps = torch.log_softmax(torch.tensor(values), -1)
    kept = kept_tokens(logps, rate)
    assert kept[logps.argmax()]
    assert kept.sum() >= math.floor(rate * len(values))
    assert kept[logps >= logps.max() + math.log(rate)].all()
    # By probability: no token that is left out is likelier than one that is kept.
    if not kept.all():
        assert logps[~kept].max() < logps[kept].min()
    more = kept_tokens(logps, rate / 2)
    by_probability = logps >= logps.max() + math.log(rate)
    assert more[by_probability].all()


def test_removed_is_minus_infinity_on_filtered_tokens_alone():
    z = logits(50, V)
    kept = kept_tokens(z[0].log_softmax(-1), 0.1)
    assert 0.1 < kept.double().mean() < 0.9
    found = combine(z, (1, -0.75), filter_rate=0.1, filtered="removed")
    assert torch.equal(found == -math.inf, ~kept)
    neutral = combine(z, (1, -0.75), filter_rate=0.1, filtered="neutral")
    assert torch.equal(found[kept], neutral[kept])


@pytest.mark.parametrize("rate", RATES)
def test_a_likelihood_stays_finite_at_a_gap_of_200(rate):
    target, assistant = torch.zeros(2, V), torch.zeros(2, V)
    target[:, 0], assistant[:, 1] = 200.0, 200.0
    target.requires_grad_()
    found = combine([target, assistant], (1, -0.75), filter_rate=rate).log_softmax(-1)
    assert torch.isfinite(found).all()
    found[:, 5].sum().backward()
    assert torch.isfinite(target.grad).all()


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
def test_a_broken_network_shows(filtered):
    """NaN stays NaN: a row of -inf would be an answer."""
    for broken in (0, 1):
        z = logits(3, V)
        z[broken][1, 4] = math.nan
        found = combine(z, (1, -0.75), filter_rate=0.1, filtered=filtered)
        assert found.isnan().any(-1).tolist() == [False, True, False]


# ---- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_gradients_reach_every_network(rate):
    z = [one.requires_grad_() for one in logits(2, 12, networks=3)]

    def function(*some: Tensor) -> Tensor:
        return combine(some, (1, 0.5, -0.5), filter_rate=rate)

    assert torch.autograd.gradcheck(function, z)
    removed = combine(z, (1, 0.5, -0.5), filter_rate=rate, filtered="removed")
    loss = -removed.log_softmax(-1).gather(1, z[0].argmax(-1, keepdim=True)).sum()
    grads = torch.autograd.grad(loss, z)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in grads)


def test_inputs_stay_as_they_are():
    z = logits(4, V)
    before = [one.clone() for one in z]
    combine(z, (1, -0.75), filter_rate=0.1, filtered="removed")
    assert all(torch.equal(a, b) for a, b in zip(z, before, strict=True))


def test_refused_in_words():
    z = logits(2, V)
    with pytest.raises(ValueError, match="2 networks have 3 weights; give one weight for each"):
        combine(z, (1, -0.75, 0.1))
    with pytest.raises(ValueError, match="vocabularies have 30 and 40 tokens; only networks with one voc"):
        combine([z[0], z[1][:, :30]], (1, -0.75))
    with pytest.raises(ValueError, match="filtered is 'dropped'; use neutral or removed"):
        combine(z, (1, -0.75), filter_rate=0.1, filtered="dropped")


def test_tokens_that_a_network_rules_out():
    """-inf in the target stays -inf, also where the assistant has it too; in the assistant alone it is no
    opinion: the other tokens lose alpha log p_a each, that one gains alpha log V."""
    target = torch.tensor([0.0, 1.0, -math.inf, 2.0], dtype=torch.float64)
    assistant = torch.tensor([0.0, -math.inf, -math.inf, 0.0], dtype=torch.float64)
    found = combine([target, assistant], [1.0, -0.5])
    s = target.log_softmax(-1)
    expected = torch.stack(
        [s[0] + 0.5 * math.log(2), s[1] + 0.5 * math.log(4), s[2], s[3] + 0.5 * math.log(2)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
