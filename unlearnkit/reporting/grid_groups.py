"""The groups of a comparison: the seeds of one method at one point of the grid, and which no other beats."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from unlearnkit.reporting.grid_read import Grid, GridCell, setting
from unlearnkit.reporting.numbers import MISSING, number
from unlearnkit.reporting.tables import Cell, cell, extra_cell
from unlearnkit.reporting.verdict import P_LIMIT
from unlearnkit.reporting.views import EvalView

QUALITY, DISTANCE = "forget_quality", "statistic"
"""Forget quality p, and its distance D, which stands in the metric's `extra`."""
ENOUGH_SEEDS = 3
"""From here on there is an interval over seeds; with fewer, one run's interval over its examples is shown."""
_SCORES = (
    r"statistic|utility|rouge|probability|truth_ratio|memori|extraction|verbatim|verbmem|knowmem|accuracy|membership_|"
    r"sampled|distinct|repetition|preference|substring"
)
"""Metrics that lie between 0 and 1 by definition."""


@dataclass(frozen=True)
class Spread:
    """One metric over the seeds of a group; None and no text where it was not measured."""

    text: str = MISSING
    value: float | None = None
    average: str = "mean"
    low: float | None = None
    high: float | None = None
    over: str | None = None
    """What the interval is over: "seeds" or "examples"."""
    lowest: float | None = None
    highest: float | None = None
    n: int = 0
    intervals: tuple[str, ...] = ()
    """In words: over the seeds, or over the examples of one or two runs."""
    range: str = ""
    """Lowest and highest value in words; empty where there is one."""


@dataclass(frozen=True)
class Group:
    """The cells of one method at one point of the grid."""

    number: int
    method: str
    settings: dict[str, Any]
    title: str
    cells: tuple[GridCell, ...]
    spreads: dict[str, Spread] = field(default_factory=dict)

    @property
    def num_passing(self) -> int:
        """Cells whose forget quality is above 0.05."""
        values = [one.run.main.value(QUALITY) for one in self.cells if one.run is not None]
        return sum(value > P_LIMIT for value in values)

    @property
    def passes(self) -> bool:
        """Whether every seed that was asked for has a forget quality above 0.05; a failed one has none."""
        return self.num_passing == len(self.cells)

    def mean(self, name: str) -> float:
        """The mean of a metric over the seeds; NaN where it was not measured."""
        value = self.spreads[name].value if name in self.spreads else None
        return math.nan if value is None else value


def number_of(view: EvalView, name: str) -> Cell:
    """A metric of a model as a cell; the distance D, too."""
    return (
        extra_cell(view.metrics.get(QUALITY), DISTANCE) if name == DISTANCE else cell(view.metrics.get(name))
    )


def groups_of(grid: Grid, metrics: Sequence[str]) -> list[Group]:
    """Cells with the same method and settings, in the grid's order, with each metric's spread over seeds."""
    found: dict[str, list[GridCell]] = {}
    for one in grid.cells:
        found.setdefault(_key(one), []).append(one)
    names = _shown_settings(grid)
    groups = []
    for place, members in enumerate(found.values(), start=1):
        first = members[0]
        points = [f"{short} {setting(first.settings[key])}" for key, short in names if key in first.settings]
        title = ", ".join([first.method, *points])
        views = [one.run.main for one in members if one.run is not None]
        spreads = {name: spread([number_of(view, name) for view in views], name) for name in metrics}
        groups.append(Group(place, first.method, first.settings, title, tuple(members), spreads))
    return groups


def _key(one: GridCell) -> str:
    return json.dumps([one.method, one.settings], sort_keys=True, default=str)


def _shown_settings(grid: Grid) -> list[tuple[str, str]]:
    """Settings that are not the same in all cells, with the last part of their name where that is enough."""
    keys = dict.fromkeys([*grid.points, *sorted({key for one in grid.cells for key in one.settings})])
    varying = [key for key in keys if len({setting(one.settings.get(key)) for one in grid.cells}) > 1]
    last = [key.rpartition(".")[2] for key in varying]
    return [(key, end if last.count(end) == 1 else key) for key, end in zip(varying, last, strict=True)]


def spread(cells: Sequence[Cell], name: str) -> Spread:
    """One metric over seeds, from each run; p-values are not averaged, the (lower) median stands there."""
    measured = sorted(((one.value, one) for one in cells if one.value is not None), key=lambda pair: pair[0])
    if not measured:
        return Spread()
    values = [value for value, _ in measured]
    n, lowest, highest = len(values), values[0], values[-1]
    ends = f"{measured[0][1].text} to {measured[-1][1].text}"
    if n == 1:
        one = measured[0][1]
        over, shown = ("examples", (one.interval,)) if one.interval else (None, ())
        return Spread(one.text, one.value, "mean", one.low, one.high, over, lowest, highest, 1, shown)
    if name == QUALITY:
        value, one = measured[(n - 1) // 2]
        return Spread(one.text, value, "median", None, None, None, lowest, highest, n, (), ends)
    mean = fmean(values)
    if n < ENOUGH_SEEDS:
        own = [one.interval for one in cells if one.interval]
        return Spread(number(mean), mean, "mean", None, None, None, lowest, highest, n, tuple(own), ends)
    low, high = t_interval(values, scores=re.search(_SCORES, name) is not None)
    interval = f"{number(low)} to {number(high)}"
    return Spread(number(mean), mean, "mean", low, high, "seeds", lowest, highest, n, (interval,), ends)


def t_interval(values: Sequence[float], scores: bool = False) -> tuple[float, float]:
    """The 95 % interval of the mean of normal values: mean ± t s / sqrt(n), t with n - 1 degrees of freedom.

    Args:
        values: two or more, one from each seed.
        scores: they lie between 0 and 1, and so does the interval.
    """
    from scipy import stats

    n, mean = len(values), fmean(values)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    low, high = mean - half, mean + half
    return (max(0.0, low), min(1.0, high)) if scores else (low, high)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, where higher is better in both coordinates.

    A point is dominated if another is at least as good in both and better in one: equal points stay together.
    A point with a NaN is never on the front and dominates nothing.
    """
    whole = [(place, x, y) for place, (x, y) in enumerate(points) if not math.isnan(x) and not math.isnan(y)]
    return [
        place for place, x, y in whole if not any(a >= x and b >= y and (a > x or b > y) for _, a, b in whole)
    ]


@dataclass(frozen=True)
class Axis:
    """One of the two metrics that groups are compared by."""

    name: str
    title: str
    higher_is_better: bool

    def score(self, value: float) -> float:
        """The value so that higher is better."""
        return value if self.higher_is_better else -value


FORGETTING = (
    Axis(DISTANCE, "Distance D from the retain model", False),
    Axis("forget_rouge", "ROUGE-L on the forget set", False),
    Axis("knowmem_forget", "KnowMem on the forget set", False),
)
KEEPING = (
    Axis("model_utility", "Model utility", True),
    Axis("retain_rouge", "ROUGE-L on the retain set", True),
    Axis("knowmem_retain", "KnowMem on the retain set", True),
)
AXES = (*FORGETTING, *KEEPING)


def axes_of(groups: Sequence[Group]) -> tuple[Axis, Axis] | None:
    """The best measures of forgetting and of keeping that some group has; None where one is missing."""
    pair = [
        next((axis for axis in axes if any(not math.isnan(g.mean(axis.name)) for g in groups)), None)
        for axes in (FORGETTING, KEEPING)
    ]
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def front_of(groups: Sequence[Group], axes: tuple[Axis, Axis] | None) -> set[int]:
    """Numbers of the groups on the Pareto front of forgetting and keeping, over their means."""
    if axes is None:
        return set()
    points = [
        (axes[0].score(group.mean(axes[0].name)), axes[1].score(group.mean(axes[1].name))) for group in groups
    ]
    return {groups[place].number for place in pareto_front(points)}
