"""Error norm truncation (arXiv 2310.00840): what is left out, and when. Trainings are in
`test_eslm_training.py`."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch
from helpers_selective import Logits, kept, run, stats, three_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.methods.error_norm import ErrorNorm, ErrorNormConfig, trusted
from unlearnkit.training.token_numbers import error_norms

SQRT2 = math.sqrt(2)
norms = st.lists(st.floats(0, SQRT2), min_size=1, max_size=30)


def test_what_is_above_the_threshold_goes():
    values = torch.tensor([0.2, 1.3, 1.31, SQRT2])
    assert trusted(values, 1.3).tolist() == [True, True, False, False]
    assert trusted(torch.tensor([math.nan, 1.4]), 1.3).tolist() == [True, False]


@settings(deadline=None, max_examples=50)
@given(norms, st.floats(0.01, 1.5), st.floats(0.01, 1.5))
def test_a_higher_threshold_keeps_more(values, one, other):
    low, high = (trusted(torch.tensor(values, dtype=torch.float64), t) for t in sorted((one, other)))
    assert (low <= high).all()
    assert low.tolist() == [value <= min(one, other) for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_sqrt2_on_nothing_goes(dtype):
    """Also where the model is certain of another token, to the last digit."""
    logits = torch.tensor([[0.0, 200.0, 0.0], [-math.inf, 0.0, -math.inf]], dtype=dtype)
    worst = error_norms(logits, torch.tensor([0, 0]))
    assert worst.tolist() == pytest.approx([SQRT2, SQRT2])
    assert trusted(worst, SQRT2).all()
    assert not trusted(worst, 1.4142).any()


def test_equal_losses_are_told_apart():
    """p_y = 0.02 twice. Uniform over 50: e = sqrt(1 - 1/50) = 0.99, kept. The other 0.98 on one token:
    e = sqrt(2) 0.98 = 1.386, left out.
    """
    hard = torch.full((1, 50), 1 / 50)
    wrong = torch.zeros(1, 50).index_fill(1, torch.tensor([3]), 0.98).index_fill(1, torch.tensor([0]), 0.02)
    values = error_norms(torch.cat([hard, wrong]).log(), torch.tensor([0, 0]))
    assert values.tolist() == pytest.approx([math.sqrt(0.98), SQRT2 * 0.98], rel=1e-5)
    assert kept(ErrorNorm(1.3, 0), stats(error_norms=values)) == [0]


def test_how_certain_of_another_token_the_default_is():
    """p_y = 0 and q on one other of many: e = sqrt(1 + q^2) = 1.3 at q = sqrt(0.69) = 0.83."""
    q = math.sqrt(0.69)
    assert q == pytest.approx(0.83, abs=1e-3)
    for share, expected in ((q - 0.02, [0]), (q + 0.02, [])):
        p = torch.full((1, 100_000), (1 - share) / 99_998)
        p[0, 0], p[0, 1] = 0.0, share
        values = error_norms(p.log(), torch.tensor([0]))
        assert kept(ErrorNorm(start_step=0), stats(error_norms=values)) == expected


def test_everything_is_learned_at_first():
    selector = ErrorNorm(1.3, 5)
    for step, expected in ((0, [0, 1]), (4, [0, 1]), (5, [0]), (6, [0])):
        assert kept(selector, stats(error_norms=[1.0, 1.4], step=step)) == expected


@pytest.mark.parametrize(("selector", "number"), [(ErrorNorm(SQRT2, 0), 7), (ErrorNorm(0.5, 8), 7)])
def test_from_sqrt2_on_and_at_first_it_is_cross_entropy(selector, number):
    model, batch = Logits((3, 6)), three_rows()
    out, gradient = run(model, batch, selector, number=number)
    plain, expected = run(model, batch)
    assert torch.equal(out.loss, plain.loss)
    assert torch.equal(gradient, expected)


def test_what_is_left_out_has_no_gradient():
    """Bit for bit; and the mean is over the tokens that are kept."""
    model, batch = Logits((3, 6)), three_rows()
    out, gradient = run(model, batch, ErrorNorm(1.2, 0))
    places = batch["train"]["target_positions"]
    targets = batch["train"]["labels"].flatten()[places + 1]
    logits = model.table.detach().flatten(0, 1)[places]
    chosen = trusted(error_norms(logits, targets), 1.2)
    assert 0 < chosen.sum() < 9
    losses = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(out.loss.detach(), losses[chosen].mean())
    rows = gradient.flatten(0, 1)[places]
    assert (rows[chosen].abs().sum(-1) > 0).all()
    assert not rows[~chosen].any()


def test_a_step_that_leaves_out_everything_is_said_once(caplog):
    model, batch, selector = Logits((3, 6)), three_rows(), ErrorNorm(0.001, 0)
    with caplog.at_level(logging.WARNING):
        for number in (3, 4):
            out, gradient = run(model, batch, selector, number=number)
            assert out.loss == 0
            assert not gradient.any()
            assert out.metrics["train/kept"] == 0
    [record] = caplog.records
    assert record.getMessage() == (
        "all 9 tokens of step 4 have an error norm above training.threshold (0.001), so nothing is learned "
        "in it; raise the threshold, or start_step (0) if the model has yet to learn"
    )
    assert kept(selector, stats(error_norms=torch.zeros(0))) == []


def test_the_config_has_the_selectors_defaults(tmp_path):
    [selector] = ErrorNormConfig(output_dir=str(tmp_path), use_cpu=True).selectors()
    assert selector == ErrorNorm()
    assert {one.name for one in dataclasses.fields(ErrorNorm) if one.init} == {"threshold", "start_step"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"threshold": 0.0}, r"training\.threshold must be above 0, found 0\.0"),
        ({"threshold": math.nan}, r"training\.threshold must be above 0, found nan"),
        ({"start_step": -1}, r"training\.start_step must be at least 0, found -1"),
    ],
)
def test_settings_that_cannot_be_used(chosen, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        ErrorNormConfig(output_dir=str(tmp_path), use_cpu=True, **chosen)
