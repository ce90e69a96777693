"""The plots of a comparison: forgetting against keeping with the Pareto front, and what both cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearnkit.reporting.colours import light
from unlearnkit.reporting.drawing import (
    COLOURS,
    INK,
    MARKERS,
    PAGE,
    QUIET,
    figure,
    label_points,
    short,
    style,
    to_svg,
)
from unlearnkit.reporting.grid_groups import Axis
from unlearnkit.reporting.numbers import number, seconds
from unlearnkit.reporting.planes import Point, score_limits

METHOD_COLOURS = tuple(
    light(name) for name in ("unlearned", "pink", "orange", "sky", "grey", "violet", "brown")
)
METHOD_MARKERS = {"o": 1.0, "^": 1.05, "P": 1.05, "X": 1.05, "*": 1.5, "v": 1.05}
"""Marker -> size for equal weight; one less than the colours, so that 42 methods differ in one of both."""
MOST_NAMES = 8
"""With more groups than these the plot shows their numbers in the table instead of their names."""


@dataclass(frozen=True)
class Mark:
    """One group in a plot: its mean, the runs behind it, and its intervals (NaN where there are none)."""

    number: int
    title: str
    method: int
    """Which method of the comparison, for its colour and marker."""
    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    runs: tuple[tuple[float, float], ...]
    on_front: bool


def grid_plane(
    marks: Sequence[Mark],
    references: Sequence[Point],
    methods: Sequence[str],
    axes_: tuple[Axis, Axis],
    limit: float,
) -> str:
    """Forgetting (up) against keeping (right): groups, their runs, and the front that no group passes.

    Args:
        marks: the groups that both were measured of.
        references: the target and the retain model.
        methods: all methods, in the order of their colours.
        axes_: how much it forgot and how much it kept.
        limit: the distance D at which p is 0.05; NaN where that is not known.
    """
    forgetting, keeping = axes_
    with style("grid"):
        fig = figure(12.6, 6.0)
        axes = fig.add_subplot()
        xs = [
            value
            for m in marks
            for value in (m.x, *m.x_ends, *(x for x, _ in m.runs))
            if math.isfinite(value)
        ]
        ys = [
            value
            for m in marks
            for value in (m.y, *m.y_ends, *(y for _, y in m.runs))
            if math.isfinite(value)
        ]
        axes.set_xlim(*score_limits([*xs, *(point.x for point in references)]))
        _forgetting_limits(axes, forgetting, [*ys, *(point.y for point in references)])
        if math.isfinite(limit):
            axes.axhspan(limit, axes.get_ylim()[1], color=COLOURS["retain"], alpha=0.07, linewidth=0)
            axes.axhline(limit, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "p = 0.05: forgotten above this line",
                (axes.get_xlim()[0], limit),
                xytext=(6, -4),
                textcoords="offset points",
                va="top",
                color=QUIET,
                fontsize=9,
            )
        _front(axes, marks)
        for mark in marks:
            _draw(axes, mark)
        for point in references:
            axes.plot(
                [point.x], [point.y], marker=MARKERS[point.role], color=COLOURS[point.role], markersize=11,
                linestyle="none", markeredgecolor=PAGE, markeredgewidth=1.2, clip_on=False, zorder=4,
            )  # fmt: skip
        axes.set_xlabel(f"{keeping.title}  →  keeps more")
        axes.set_ylabel(f"{forgetting.title}{_reversed(forgetting)}  →  forgets better")
        _legend(fig, [methods[place] for place in _used(marks)], _used(marks), references, front=True)
        names = [(_label(mark, marks), mark.x, mark.y) for mark in marks]
        label_points(axes, names, 9.5)
        return to_svg(fig, _description(marks, references, axes_))


def cost_plane(
    marks: Sequence[tuple[Mark, float]],
    methods: Sequence[str],
    axes_: tuple[Axis, Axis],
    references: Sequence[Point],
) -> str:
    """Forgetting and keeping, each over the mean training time of the group in seconds."""
    forgetting, keeping = axes_
    times = [time for _, time in marks]
    with style("cost"):
        fig = figure(12.6, 3.9)
        for place, axis in enumerate((forgetting, keeping), start=1):
            axes = fig.add_subplot(1, 2, place)
            values = [mark.y if axis is forgetting else mark.x for mark, _ in marks]
            ends = [point.y if axis is forgetting else point.x for point in references]
            if axis is forgetting:
                _forgetting_limits(axes, axis, [*values, *ends])
            else:
                axes.set_ylim(*score_limits([*values, *ends]))
            if max(times) > 30 * min(times) > 0:
                axes.set_xscale("log")
            else:
                axes.set_xlim(0, 1.08 * max(times) or 1)
            for point, end in zip(references, ends, strict=True):
                axes.axhline(end, color=COLOURS[point.role], linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.8)
            for (mark, time), value in zip(marks, values, strict=True):
                axes.plot([time], [value], **_marker(mark.method, 9))
            axes.set_xlabel("Training, seconds")
            axes.set_ylabel(f"{axis.title}{_reversed(axis)}")
            label_points(
                axes,
                [(str(mark.number), time, value) for (mark, time), value in zip(marks, values, strict=True)],
                9,
            )
        _legend(
            fig,
            [methods[place] for place in _used([m for m, _ in marks])],
            _used([m for m, _ in marks]),
            references,
        )
        return to_svg(
            fig,
            f"{forgetting.title} and {keeping.title} over training time. "
            + "; ".join(
                f"{mark.title}: {seconds(time)}, {number(mark.y)}, {number(mark.x)}" for mark, time in marks
            ),
        )


def _reversed(axis: Axis) -> str:
    return "" if axis.higher_is_better else " (reversed)"


def _forgetting_limits(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    low, high = score_limits(values)
    axes.set_ylim(*((low, high) if axis.higher_is_better else (high, low)))


def _used(marks: Sequence[Mark]) -> list[int]:
    return sorted({mark.method for mark in marks})


def _label(mark: Mark, marks: Sequence[Mark]) -> str:
    return short(mark.title, 40) if len(marks) <= MOST_NAMES else str(mark.number)


def _marker(method: int, size: float) -> dict[str, Any]:
    marker = list(METHOD_MARKERS)[method % len(METHOD_MARKERS)]
    return {
        "marker": marker,
        "color": METHOD_COLOURS[method % len(METHOD_COLOURS)],
        "markersize": size * METHOD_MARKERS[marker],
        "linestyle": "none",
        "markeredgecolor": PAGE,
        "markeredgewidth": 1.2,
        "clip_on": False,
        "zorder": 3,
    }


def _draw(axes: Axes, mark: Mark) -> None:
    line: dict[str, Any] = {
        "color": METHOD_COLOURS[mark.method % len(METHOD_COLOURS)],
        "alpha": 0.45,
        "linewidth": 1.6,
    }
    if all(map(math.isfinite, mark.x_ends)):
        axes.plot(mark.x_ends, [mark.y] * 2, **line)
    if all(map(math.isfinite, mark.y_ends)):
        axes.plot([mark.x] * 2, mark.y_ends, **line)
    if len(mark.runs) > 1:
        axes.plot(
            *zip(*mark.runs, strict=True), **{**_marker(mark.method, 4.5), "markeredgewidth": 0, "alpha": 0.6}
        )
    axes.plot([mark.x], [mark.y], **_marker(mark.method, 11))
    if mark.on_front:
        axes.plot(
            [mark.x], [mark.y], marker="o", markersize=17, markerfacecolor="none", markeredgecolor=INK,
            markeredgewidth=1.1, linestyle="none", clip_on=False, zorder=3,
        )  # fmt: skip


def _front(axes: Axes, marks: Sequence[Mark]) -> None:
    """The edge of what the groups reach: right of a point, and above it, only what no group has."""
    front = sorted({(mark.x, mark.y) for mark in marks if mark.on_front})
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        axes.step(xs, ys, where="pre", color=INK, linewidth=1.1, linestyle=(0, (2, 2)), alpha=0.75, zorder=2)


def _legend(
    fig: Figure, names: Sequence[str], places: Sequence[int], references: Sequence[Point], front: bool = False
) -> None:
    handles = [
        Line2D([], [], label=short(name, 24), **_marker(place, 8))
        for name, place in zip(names, places, strict=True)
    ]
    for point in references:
        line: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2}
        if front:
            line = {"linestyle": "none", "marker": MARKERS[point.role], "markersize": 8}
        handles.append(Line2D([], [], color=COLOURS[point.role], label=short(point.label, 24), **line))
    if front:
        handles.append(
            Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (2, 2)), marker="o", markersize=12,
                   markerfacecolor="none", markeredgewidth=1.1, label="Pareto front")
        )  # fmt: skip
    fig.legend(handles=handles, loc="outside right upper", handlelength=2.4)


def _description(marks: Sequence[Mark], references: Sequence[Point], axes_: tuple[Axis, Axis]) -> str:
    forgetting, keeping = axes_
    said = [
        *(f"{point.label}: {number(point.y)} and {number(point.x)}" for point in references),
        *(
            f"{mark.number} {mark.title}: {number(mark.y)} and {number(mark.x)}"
            f"{', on the Pareto front' if mark.on_front else ''}"
            for mark in marks
        ),
    ]
    return f"{forgetting.title} against {keeping.title}. " + "; ".join(said)
