"""The arithmetic of a comparison, by hand: intervals over seeds, the Pareto front, and what makes a group."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from scipy import stats

from unlearnkit.reporting.grid_groups import pareto_front, spread, t_interval
from unlearnkit.reporting.tables import Cell

NAN = math.nan


def test_the_interval_over_three_seeds_is_that_of_students_t() -> None:
    """Values 0.5, 0.6, 0.7: mean 0.6, s = 0.1, t = 4.302653 with 2 degrees of freedom."""
    low, high = t_interval([0.5, 0.6, 0.7])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert low == pytest.approx(0.6 - half, abs=1e-7)
    assert high == pytest.approx(0.6 + half, abs=1e-7)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_is_scipys(n: int) -> None:
    values = random.Random(n).sample(range(100), n)
    expected = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)


def test_scores_are_cut_at_their_bounds_and_other_metrics_are_not() -> None:
    """Values 0.9, 1, 1: half the width is 4.302653 x 0.057735 / 1.732051 = 0.1434, so the end is above 1."""
    assert t_interval([0.9, 1.0, 1.0], scores=True)[1] == 1.0
    assert t_interval([0.9, 1.0, 1.0])[1] == pytest.approx(0.9 + 0.2 / 3 + 0.143422, abs=1e-5)
    assert t_interval([0.0, 0.0, 0.1], scores=True)[0] == 0.0
    cells = [Cell(str(value), value) for value in (-0.1, 0.0, -0.1)]
    high = spread(cells, "forget_judged_logp").high
    assert spread(cells, "privleak").high == high
    assert high is not None
    assert high > 0.0
    assert spread([Cell("1", value) for value in (0.9, 1.0, 1.0)], "forget_rouge").high == 1.0


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert t_interval([0.25, 0.25, 0.25], scores=True) == (0.25, 0.25)


def seeds(*values: float | None) -> list[Cell]:
    return [
        Cell("–")
        if value is None
        else Cell(f"{value:.3f}", value, f"{value - 0.01:.3f} to {value + 0.01:.3f}", 40)
        for value in values
    ]


def test_three_seeds_show_mean_interval_and_range() -> None:
    found = spread(seeds(0.7, 0.5, 0.6), "model_utility")
    assert (found.text, found.n, found.over, found.average) == ("0.600", 3, "seeds", "mean")
    assert (found.intervals, found.range) == (("0.352 to 0.848",), "0.500 to 0.700")
    assert (found.lowest, found.highest) == (0.5, 0.7)


def test_two_seeds_show_the_intervals_over_the_examples_of_each() -> None:
    found = spread(seeds(0.7, 0.5), "model_utility")
    assert found.value == pytest.approx(0.6)
    assert (found.intervals, found.range) == (("0.690 to 0.710", "0.490 to 0.510"), "0.500 to 0.700")
    assert (found.low, found.high, found.over) == (None, None, None)


def test_one_seed_is_shown_as_it_is() -> None:
    one = Cell("0.700", 0.7, "0.650 to 0.750", 40, low=0.65, high=0.75)
    found = spread([one], "model_utility")
    assert (found.value, found.low, found.high, found.over, found.n) == (0.7, 0.65, 0.75, "examples", 1)
    assert (found.intervals, found.range) == (("0.650 to 0.750",), "")


@pytest.mark.parametrize(
    ("values", "median"), [((1e-9, 0.9, 0.2), 0.2), ((0.4, 1e-9), 1e-9), ((0.1, 0.4, 0.2, 0.3), 0.2)]
)
def test_p_values_are_not_averaged(values: tuple[float, ...], median: float) -> None:
    """The mean of 1e-9 and 0.4 would be 0.2, which neither model has."""
    found = spread([Cell(f"{value:g}", value) for value in values], "forget_quality")
    assert (found.value, found.average, found.low, found.over) == (median, "median", None, None)
    assert (found.intervals, found.range) == ((), f"{min(values):g} to {max(values):g}")


def test_a_seed_without_the_metric_is_not_counted_and_none_is_a_dash() -> None:
    assert spread(seeds(0.2, None, 0.4), "forget_rouge").n == 2
    assert spread(seeds(None, None), "forget_rouge").text == "–"
    assert spread(seeds(None), "forget_rouge").value is None
    assert spread([], "forget_rouge").n == 0


def test_the_front_by_hand() -> None:
    """(3, 1), (2, 2) and (1, 3) beat each other in one coordinate; (2, 2) beats (1, 1) and (2, 1)."""
    assert pareto_front([(1, 1), (3, 1), (2, 2), (2, 1), (1, 3)]) == [1, 2, 4]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(0.5, 0.5)], [0]),
        ([(1, 1), (1, 1), (0, 1)], [0, 1]),  # ties stay together
        ([(1, 2), (1, 1)], [0]),  # equal in one, better in the other
        ([(NAN, 9), (9, NAN), (0, 0)], [2]),  # what was not measured is not on it, and beats nothing
        ([(NAN, NAN)], []),
        ([(-0.1, 0.6), (-0.4, 0.7), (-0.4, 0.6)], [0, 1]),
    ],
)
def test_ties_and_gaps_of_the_front(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


def test_the_front_does_not_depend_on_the_order() -> None:
    points = [(1, 1), (3, 1), (2, 2), (2, 2), (1, 3)]
    for order in itertools.permutations(points):
        assert sorted(order[place] for place in pareto_front(order)) == [(1, 3), (2, 2), (2, 2), (3, 1)]
