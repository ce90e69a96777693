"""report.html and report.md of a comparison."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from unlearnkit.reporting import grid_plots
from unlearnkit.reporting.grid_content import ROLE_TITLES, reference_views
from unlearnkit.reporting.grid_costs import training_seconds
from unlearnkit.reporting.grid_groups import DISTANCE, QUALITY, Axis, Group, number_of
from unlearnkit.reporting.grid_read import Grid
from unlearnkit.reporting.html import static
from unlearnkit.reporting.markdown import tidy
from unlearnkit.reporting.planes import Point
from unlearnkit.reporting.templating import render
from unlearnkit.reporting.verdict import P_LIMIT

PLANE_CAPTION = (
    "Up and right is better. Large: a group's mean over its seeds, with 95 % intervals; small: its runs. "
    "Rings and the dotted line: the Pareto front, which no other group passes."
)
NUMBERED = "Numbers: rows of the first table."
COST_CAPTION = "Each number is a row of the first table. Dashed: the target and the retain model."


def grid_html(grid: Grid, content: dict[str, Any]) -> str:
    """The comparison as one self-contained page."""
    plane = cost = ""
    axes: tuple[Axis, Axis] | None = content["axes"]
    marks: list[tuple[grid_plots.Mark, float]] = []
    if axes is not None:
        marks = _marks(grid, content["all_groups"], axes, content["front"])
        points = _reference_points(grid, axes)
        alone = [mark for mark, _ in marks]
        limit = _limit(grid) if axes[0].name == DISTANCE else math.nan
        plane = grid_plots.grid_plane(alone, points, grid.methods, axes, limit) if marks else ""
        timed = [(mark, time) for mark, time in marks if not math.isnan(time)]
        cost = grid_plots.cost_plane(timed, grid.methods, axes, points) if len(timed) > 1 else ""
    numbered = len(marks) > grid_plots.MOST_NAMES
    return render(
        "grid.html.j2",
        **content,
        css=static("style.css.j2"),
        plane=Markup(plane),
        plane_caption=f"{PLANE_CAPTION} {NUMBERED}" if numbered else PLANE_CAPTION,
        cost_plane=Markup(cost),
        cost_caption=COST_CAPTION,
    )


def grid_markdown(content: dict[str, Any]) -> str:
    """The same tables as Markdown."""
    return tidy(render("grid.md.j2", **content))


def _marks(
    grid: Grid, groups: list[Group], axes: tuple[Axis, Axis], front: set[int]
) -> list[tuple[grid_plots.Mark, float]]:
    """The groups that both axes were measured of, each with its training time."""
    forgetting, keeping = axes
    found = []
    for group in groups:
        y, x = group.mean(forgetting.name), group.mean(keeping.name)
        if math.isnan(x) or math.isnan(y):
            continue
        pairs = [
            (number_of(cell.run.main, keeping.name).value, number_of(cell.run.main, forgetting.name).value)
            for cell in group.cells
            if cell.run is not None
        ]
        runs = tuple((a, b) for a, b in pairs if a is not None and b is not None)
        ends = [_ends(group, axis) for axis in (keeping, forgetting)]
        place, on_front = grid.methods.index(group.method), group.number in front
        mark = grid_plots.Mark(group.number, group.title, place, x, y, ends[0], ends[1], runs, on_front)
        found.append((mark, training_seconds(group)))
    return found


def _ends(group: Group, axis: Axis) -> tuple[float, float]:
    spread = group.spreads[axis.name]
    return (math.nan, math.nan) if spread.low is None or spread.high is None else (spread.low, spread.high)


def _reference_points(grid: Grid, axes: tuple[Axis, Axis]) -> list[Point]:
    found = []
    for role, view in reference_views(grid).items():
        y, x = (number_of(view, axis.name).value for axis in axes)
        if role == "retain" and axes[0].name == DISTANCE:
            y = 0.0  # from itself
        if x is not None and y is not None:
            found.append(Point(ROLE_TITLES[role], role, x, y))
    return found


def _limit(grid: Grid) -> float:
    """The distance D at which two samples of these sizes have p = 0.05, by Kolmogorov's law."""
    from scipy import stats

    for run in grid.runs:
        metric = run.main.metrics.get(QUALITY)
        sizes = [metric.extra.get(f"n_{side}") for side in ("unlearned", "retain")] if metric else []
        n, m = (size if isinstance(size, int) else 0 for size in (sizes or (0, 0)))
        if n > 0 and m > 0:
            return float(stats.kstwobign.isf(P_LIMIT)) * math.sqrt((n + m) / (n * m))
    return math.nan
