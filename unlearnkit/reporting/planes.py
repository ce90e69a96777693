"""The plane of forgetting against keeping: every model one point, numbers in, an inline SVG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from unlearnkit.reporting.drawing import (
    COLOURS,
    MARKERS,
    PAGE,
    QUIET,
    RUN_COLOURS,
    figure,
    label_points,
    short,
    style,
    to_svg,
)
from unlearnkit.reporting.numbers import number, p_value
from unlearnkit.reporting.verdict import P_LIMIT

LOWEST, HIGHEST, NARROWEST = 0.0, 1.02, 0.2
"""Limits of an axis of scores from 0 to 1, and the least that it spans: equal points look equal."""


@dataclass(frozen=True)
class Point:
    """One model in the plane of forgetting against keeping; intervals are NaN where there are none."""

    label: str
    role: str
    x: float
    y: float
    x_low: float = math.nan
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan


def quality_plane(points: Sequence[Point], kept: str = "Model utility", wide: bool = False) -> str:
    """Forget quality (log10 p, up) against what was kept (right), with the limit p = 0.05."""
    with style("quality"):
        fig = figure(*_size(wide))
        axes = fig.add_subplot()
        limit = math.log10(P_LIMIT)
        quality_axis(
            axes, *(min(point.y, point.y_low) if point.y_low < point.y else point.y for point in points)
        )
        _plane(axes, points)
        axes.annotate(
            f"p = {P_LIMIT}: forgotten above this line",
            (axes.get_xlim()[0], limit),
            xytext=(6, -4),
            textcoords="offset points",
            va="top",
            color=QUIET,
            fontsize=9,
        )
        axes.set_xlabel(f"{kept}  →  keeps more")
        axes.set_ylabel("Forget quality p (log scale)  →  forgets better")
        label_points(axes, [(short(point.label), point.x, point.y) for point in points])
        return to_svg(
            fig,
            f"Forget quality against {kept}. "
            + "; ".join(
                f"{point.label}: p = {p_value(10**point.y, point.y)}, kept {number(point.x)}"
                for point in points
            ),
        )


def quality_axis(axes: Axes, *values: float) -> None:
    """The vertical axis for log10 of forget quality down to the lowest of `values`, above p = 0.05 shaded."""
    limit = math.log10(P_LIMIT)
    lowest = min(limit, *values)
    if lowest < -20:
        axes.set_yscale("symlog", linthresh=2, linscale=1.2)
        ticks = [0, -1, -2, *(-(10**k) for k in range(1, 4) if 10**k <= -lowest * 1.5)]
        axes.set_yticks(ticks, [_power(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(lowest * 2, 0.6)
    else:
        bottom = math.floor(min(lowest * 1.12, -3))
        step = max(1, round(-bottom / 6))
        ticks = list(range(0, bottom - 1, -step))
        axes.set_yticks(ticks, [_power(tick) for tick in ticks])
        axes.set_ylim(bottom, 0.08 * -bottom)
    axes.axhspan(limit, axes.get_ylim()[1], color=COLOURS["retain"], alpha=0.07, linewidth=0)
    axes.axhline(limit, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))


def rouge_plane(points: Sequence[Point], wide: bool = False) -> str:
    """Without forget quality: ROUGE-L on the forget set (down is better) against the retain set."""
    with style("rouge"):
        fig = figure(*_size(wide))
        axes = fig.add_subplot()
        axes.set_ylim(LOWEST, HIGHEST)
        _plane(axes, points)
        axes.set_xlabel("ROUGE-L on the retain set  →  keeps more")
        axes.set_ylabel("ROUGE-L on the forget set  (lower: repeats less)")
        label_points(axes, [(short(point.label), point.x, point.y) for point in points])
        return to_svg(
            fig,
            "ROUGE-L on the forget set against ROUGE-L on the retain set. "
            + "; ".join(
                f"{point.label}: forget {number(point.y)}, retain {number(point.x)}" for point in points
            ),
        )


def _size(wide: bool) -> tuple[float, float]:
    return (12.6, 5.6) if wide else (6.3, 4.1)


def score_limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis around scores from 0 to 1: within them, and wide enough to show small gaps as small."""
    low, high = min(values), max(values)
    margin = max(0.04, 0.25 * (high - low), (NARROWEST - (high - low)) / 2)
    low, high = low - margin, high + margin
    if high > HIGHEST:
        low, high = min(low, HIGHEST - NARROWEST), HIGHEST
    if low < LOWEST:
        low, high = LOWEST, max(high, LOWEST + NARROWEST)
    return low, high


def _plane(axes: Axes, points: Sequence[Point]) -> None:
    xs = [value for point in points for value in (point.x, point.x_low, point.x_high) if math.isfinite(value)]
    axes.set_xlim(*score_limits(xs))
    unlearned = 0
    for point in points:
        colour = COLOURS[point.role]
        if point.role == "unlearned":
            colour = RUN_COLOURS[unlearned % len(RUN_COLOURS)]
            unlearned += 1
        if math.isfinite(point.x_low) and math.isfinite(point.x_high):
            axes.plot([point.x_low, point.x_high], [point.y] * 2, color=colour, alpha=0.45, linewidth=1.6)
        if math.isfinite(point.y_low) and math.isfinite(point.y_high):
            axes.plot([point.x] * 2, [point.y_low, point.y_high], color=colour, alpha=0.45, linewidth=1.6)
        axes.plot(
            [point.x],
            [point.y],
            marker=MARKERS[point.role],
            color=colour,
            markersize=10,
            linestyle="none",
            markeredgecolor=PAGE,
            markeredgewidth=1.2,
            clip_on=False,
            zorder=3,
        )


def _power(exponent: float) -> str:
    return {0: "1", -1: "0.1", -2: "0.01"}.get(int(exponent), f"1e−{-int(exponent)}")
