"""ESLM (arXiv 2505.19893): quantile, tail mean, adaptive alpha. Trainings are in `test_eslm_training.py`."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_selective import Logits, kept, run, stats, three_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.methods.error_norm import ErrorNorm
from unlearnkit.methods.eslm import ESLM, AdaptiveAlpha, ESLMConfig, cvar, risky, value_at_risk

alphas = st.floats(0, 1, exclude_max=True)
properties = settings(deadline=None, max_examples=50)
#: Whole numbers, so that many are equal.
tied = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=40)


def _scores(values):
    return torch.tensor(values, dtype=torch.float64)


# ---- Quantile and tail mean --------------------------------------------------------------------------------


def test_the_quantile_by_hand():
    """Of 10, 20, ..., 100 the lowest 3 go at alpha = 0.3: VaR = 40, CVaR = (40 + ... + 100) / 7 = 70."""
    scores = _scores([50.0, 10, 90, 30, 70, 20, 100, 40, 80, 60])
    assert value_at_risk(scores, 0.3) == 40
    assert risky(scores, 0.3).sum() == 7
    assert cvar(scores, 0.3) == 70
    assert cvar(scores, 0.0) == scores.mean() == 55
    assert cvar(scores, 0.99) == 100


def test_a_share_that_floating_point_just_misses_is_meant():
    """0.29 x 100 = 28.999999999999996, but 29 tokens are to go."""
    assert risky(torch.arange(100.0), 0.29).sum() == 71


@properties
@given(st.integers(1, 200), alphas, st.randoms(use_true_random=False))
def test_the_kept_share_is_one_minus_alpha(n, alpha, random):
    """All scores differ: exactly n - floor(alpha n) are kept, the highest."""
    order = list(range(n))
    random.shuffle(order)
    chosen = risky(_scores([float(i) for i in order]), alpha)
    number = n - min(math.floor(alpha * n + 1e-9), n - 1)
    assert sorted(i for i, keep in zip(order, chosen.tolist(), strict=True) if keep) == list(
        range(n - number, n)
    )
    assert number >= (1 - alpha) * n - 1e-6


@properties
@given(tied, alphas)
def test_equal_scores_are_kept_together(values, alpha):
    """Whoever is kept is not below anyone who is left out; more than 1 - alpha only where the lowest tie."""
    scores = _scores(values)
    chosen = risky(scores, alpha)
    at_least = len(values) - min(math.floor(alpha * len(values) + 1e-9), len(values) - 1)
    ties = int((scores == value_at_risk(scores, alpha)).sum())
    assert at_least <= chosen.sum() < at_least + ties
    if not chosen.all():
        assert scores[chosen].min() > scores[~chosen].max()


@properties
@given(tied, alphas, alphas)
def test_the_tail_mean_rises_with_alpha_from_the_mean(values, one, other):
    scores, (low, high) = _scores(values), sorted((one, other))
    assert cvar(scores, 0.0) == pytest.approx(scores.mean().item())
    assert cvar(scores, low) >= scores.mean() - 1e-12
    assert cvar(scores, high) >= cvar(scores, low) - 1e-12


def test_a_diverged_run_shows():
    """NaN is kept, so that the loss is NaN; it does not make way for itself."""
    assert risky(_scores([1.0, math.nan, 3.0, 2.0]), 0.5).tolist() == [False, True, True, False]
    assert risky(_scores([math.nan] * 3), 0.5).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_the_free_function_refuses_other_shares(alpha):
    with pytest.raises(ValueError, match=r"alpha must be at least 0 and below 1, found"):
        value_at_risk(_scores([1.0]), alpha)
    with pytest.raises(ValueError, match="no scores"):
        value_at_risk(_scores([]), 0.5)


# ---- The selector ------------------------------------------------------------------------------------------


def test_each_score_chooses_by_its_own_numbers():
    """Losses 1, 4, 2, 3: the two highest are 1 and 3. Entropies: 0 and 2."""
    assert ESLM().reads == ("logps",)
    assert kept(ESLM(0.5), stats(logps=[-1.0, -4.0, -2.0, -3.0])) == [1, 3]
    by_entropy = ESLM(0.5, "entropy")
    assert by_entropy.reads == ("entropies",)
    assert kept(by_entropy, stats(entropies=[3.0, 0.5, 2.5, 1.0])) == [0, 2]
    assert kept(ESLM(0.5), stats(logps=torch.zeros(0))) == []


@pytest.mark.parametrize("score", ["loss", "entropy"])
def test_without_alpha_it_is_cross_entropy(score):
    model, batch = Logits((3, 6)), three_rows()
    out, gradient = run(model, batch, ESLM(0.0, score))
    plain, expected = run(model, batch)
    assert torch.equal(out.loss, plain.loss)
    assert torch.equal(gradient, expected)
    assert out.metrics["train/kept"] == 1


def test_the_loss_is_the_tail_mean_and_the_rest_has_no_gradient():
    """9 targets, alpha = 0.4: floor(3.6) = 3 are left out, bit for bit. d L / d z of a kept row is
    (p - onehot) / 6.
    """
    model, batch = Logits((3, 6)), three_rows()
    out, gradient = run(model, batch, ESLM(0.4))
    places = batch["train"]["target_positions"]
    targets = batch["train"]["labels"].flatten()[places + 1]
    p = model.table.detach().flatten(0, 1)[places].softmax(-1)
    losses = -p.gather(1, targets[:, None])[:, 0].log()
    torch.testing.assert_close(out.loss.detach(), cvar(losses, 0.4))
    chosen = risky(losses, 0.4)
    assert chosen.sum() == 6
    expected = (p - torch.nn.functional.one_hot(targets, p.shape[1])) / 6
    rows = gradient.flatten(0, 1)[places]
    torch.testing.assert_close(rows[chosen], expected[chosen])
    assert not rows[~chosen].any()
    assert out.loss > losses.mean()
    assert out.metrics["train/kept"].item() == pytest.approx(6 / 9)


def test_beside_error_norms_it_keeps_what_lies_between():
    """Each decides on all tokens: the two lowest losses go, and so does the one that looks like an error."""
    told = stats(step=0, logps=[-0.1, -0.2, -1.0, -2.0, -9.0], error_norms=[0.1, 0.2, 0.9, 1.0, 1.41])
    both = [one(told).learn for one in (ESLM(0.4), ErrorNorm(1.3, 0))]
    assert both[0].tolist() == [0, 0, 1, 1, 1]
    assert (both[0] * both[1]).tolist() == [0, 0, 1, 1, 0]
    model, batch = Logits((3, 6)), three_rows()
    out, gradient = run(model, batch, ESLM(0.4), ErrorNorm(1.2, 0))
    _, hardest = run(model, batch, ESLM(0.4))
    _, trusted = run(model, batch, ErrorNorm(1.2, 0))
    rows = [one.abs().sum(-1) > 0 for one in (gradient, hardest, trusted)]
    assert torch.equal(rows[0], rows[1] & rows[2])
    assert (rows[0].sum(), rows[1].sum(), rows[2].sum()) == (3, 6, 6)
    assert out.metrics["train/kept"].item() == pytest.approx(3 / 9)
    # Three tokens share the loss: a third of p - onehot each, where six had a sixth.
    torch.testing.assert_close(gradient[rows[0]], 2 * hardest[rows[0]])


# ---- Adaptive alpha ----------------------------------------------------------------------------------------


def _alone(values):
    """A sum over one process."""
    return values


def _path(state, means):
    found = []
    for mean in means:
        if mean is not None:
            state.note(mean)
        state.end_step(_alone, 0.0)
        found.append(state.alpha)
    return found


def test_adaptive_alpha_by_hand():
    """alpha 0.1, gamma 1/2. Means 8, 2: 0.1 sqrt(8 / 2) = 0.2; 8 again: 0.1; 32: 0.1 sqrt(1/4) = 0.05; 0.02
    would be 0.1 sqrt(400) = 2, at most 0.5. A step that kept nothing, and one that is not finite, move
    nothing.
    """
    state = AdaptiveAlpha(0.1, limit=0.5, gamma=0.5, smoothing=0.0)
    assert state.alpha == 0.1
    means = [8.0, 2.0, None, math.nan, math.inf, 8.0, 32.0, 0.02]
    expected = [0.1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.5]
    assert _path(state, means) == pytest.approx(expected, rel=1e-12)
    state.begin(None)
    assert state.alpha == 0.1


def test_smoothing_by_hand():
    """smoothing 3/4: c = 8, then 3/4 8 + 1/4 4 = 7, then 3/4 7 + 1/4 3 = 6; gamma = 1."""
    state = AdaptiveAlpha(0.1, limit=0.9, gamma=1.0, smoothing=0.75)
    assert _path(state, [8.0, 4.0, 3.0]) == pytest.approx([0.1, 0.1 * 8 / 7, 0.1 * 8 / 6], rel=1e-12)


def test_adaptive_alpha_goes_on_where_it_was():
    straight, first, resumed = (AdaptiveAlpha(0.1, limit=0.5, gamma=0.5, smoothing=0.9) for _ in range(3))
    means = [7.3, 6.1, 5.9, 4.2, 3.3]
    path = _path(straight, means)
    _path(first, means[:2])
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert _path(resumed, means[2:]) == path[2:]
    assert len(set(path)) == 5


def test_the_selector_uses_and_feeds_its_alpha():
    """Losses 1 to 10 keep 9 at alpha 0.1, with mean 6; losses 1/6 of that: 0.1 sqrt 6 = 0.245, so 8 of 10."""
    selector = ESLM(0.1, adaptive=True, smoothing=0.0)
    losses = torch.arange(1.0, 11.0)
    assert len(kept(selector, stats(logps=-losses))) == 9
    selector.state.end_step(_alone, 0.0)
    assert len(kept(selector, stats(logps=-losses / 6))) == 9  # the step in which the mean has fallen
    selector.state.end_step(_alone, 0.0)
    assert selector.state.alpha == pytest.approx(0.1 * math.sqrt(6), rel=1e-6)
    assert len(kept(selector, stats(logps=-losses / 6))) == 8
    assert ESLM(0.1).state is None


# ---- Settings ----------------------------------------------------------------------------------------------


def test_the_config_has_the_selectors_defaults(tmp_path):
    [selector] = ESLMConfig(output_dir=str(tmp_path), use_cpu=True).selectors()
    assert selector == ESLM()
    fields = {one.name for one in dataclasses.fields(ESLM) if one.init}
    assert fields == {"alpha", "score", "adaptive", "alpha_max", "gamma", "smoothing"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"alpha": 1.0}, r"training\.alpha must be at least 0 and below 1, found 1\.0; .*0 learns all"),
        ({"alpha": math.nan}, r"training\.alpha must be .*found nan"),
        ({"score": "margin"}, r"training\.score is 'margin'; use loss or entropy"),
        ({"alpha": 0.0, "adaptive": True}, r"training\.adaptive multiplies alpha, which stays 0"),
        (
            {"alpha": 0.6, "adaptive": True},
            r"training\.alpha_max must be at least alpha \(0\.6\).*found 0\.5",
        ),
        ({"alpha_max": 1.0, "adaptive": True}, r"training\.alpha_max must be .* below 1, found 1\.0"),
        ({"gamma": -1.0, "adaptive": True}, r"training\.gamma must be at least 0, found -1\.0"),
        ({"smoothing": 1.0, "adaptive": True}, r"training\.smoothing must be .*below 1, found 1\.0"),
    ],
)
def test_settings_that_cannot_be_used(chosen, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        ESLMConfig(output_dir=str(tmp_path), use_cpu=True, **chosen)


def test_adaptive_settings_do_not_matter_without_it(tmp_path):
    ESLMConfig(output_dir=str(tmp_path), use_cpu=True, alpha=0.6)
