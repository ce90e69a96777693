"""The report's plots: numbers in, an inline SVG out. Nothing here reads a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from unlearnkit.reporting.drawing import (
    COLOURS,
    GRID,
    INK,
    MARKERS,
    QUIET,
    RUN_COLOURS,
    figure,
    label_points,
    style,
    to_svg,
)
from unlearnkit.reporting.numbers import number, p_value
from unlearnkit.reporting.verdict import P_LIMIT

Floats = NDArray[np.float64]


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


def quality_against_utility(points: Sequence[Point], wide: bool = False) -> str:
    """Forget quality (log10 p, up) against model utility (right), with the limit p = 0.05."""
    with style("quality"):
        fig = figure(*_size(wide))
        axes = fig.add_subplot()
        limit = math.log10(P_LIMIT)
        lowest = min(
            limit, *(min(point.y, point.y_low) if point.y_low < point.y else point.y for point in points)
        )
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
        axes.set_xlabel("Model utility  →  keeps more")
        axes.set_ylabel("Forget quality p (log scale)  →  forgets better")
        label_points(axes, [(_short(point.label), point.x, point.y) for point in points])
        return to_svg(
            fig,
            "Forget quality against model utility. "
            + "; ".join(
                f"{point.label}: p = {p_value(10**point.y, point.y)}, utility {number(point.x)}"
                for point in points
            ),
        )


def rouge_plane(points: Sequence[Point], wide: bool = False) -> str:
    """Without forget quality: ROUGE-L on the forget set (down is better) against the retain set."""
    with style("rouge"):
        fig = figure(*_size(wide))
        axes = fig.add_subplot()
        axes.set_ylim(-0.06, 1.06)
        _plane(axes, points)
        axes.set_xlabel("ROUGE-L on the retain set  →  keeps more")
        axes.set_ylabel("ROUGE-L on the forget set  (lower: repeats less)")
        label_points(axes, [(_short(point.label), point.x, point.y) for point in points])
        return to_svg(
            fig,
            "ROUGE-L on the forget set against ROUGE-L on the retain set. "
            + "; ".join(
                f"{point.label}: forget {number(point.y)}, retain {number(point.x)}" for point in points
            ),
        )


def _size(wide: bool) -> tuple[float, float]:
    return (12.6, 5.6) if wide else (6.3, 4.1)


def _plane(axes: Axes, points: Sequence[Point]) -> None:
    xs = [value for point in points for value in (point.x, point.x_low, point.x_high) if math.isfinite(value)]
    margin = max(0.04, 0.25 * (max(xs) - min(xs)))
    axes.set_xlim(max(-0.03, min(xs) - margin), min(1.06, max(xs) + margin))
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
            markeredgecolor="white",
            markeredgewidth=1.2,
            clip_on=False,
            zorder=3,
        )


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _power(exponent: float) -> str:
    return {0: "1", -1: "0.1", -2: "0.01"}.get(int(exponent), f"1e−{-int(exponent)}")


def truth_ratio_curves(
    values: Mapping[str, Floats], labels: Mapping[str, str], distance: float = math.nan
) -> str:
    """Empirical distribution functions of the truth ratio; D of unlearned against retain, drawn where it is.

    Args:
        values: truth ratio of every forget example, for each role that was measured; NaN is left out.
        labels: what each role is called.
        distance: the KS statistic of the summary, written beside the bar; NaN where it was not measured.
    """
    with style("truth"):
        fig = figure()
        axes = fig.add_subplot()
        clean = {role: np.sort(array[np.isfinite(array) & (array > 0)]) for role, array in values.items()}
        clean = {role: array for role, array in clean.items() if len(array)}
        for role, array in clean.items():
            heights = np.arange(1, len(array) + 1) / len(array)
            axes.step(
                np.r_[array[0], array],
                np.r_[0.0, heights],
                where="post",
                color=COLOURS[role],
                linestyle={"target": (0, (5, 2)), "retain": (0, (1.5, 1.2))}.get(role, "-"),
                label=f"{_short(labels[role])} (n = {len(array)})",
                linewidth=2,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_plain_number)
        axes.minorticks_off()
        if "unlearned" in clean and "retain" in clean:
            where, low, high = widest_gap(clean["unlearned"], clean["retain"])
            axes.plot([where, where], [low, high], color=INK, linewidth=2.4, solid_capstyle="butt", zorder=4)
            shown = number(high - low if math.isnan(distance) else distance)
            axes.annotate(
                f"D = {shown}",
                (where, (low + high) / 2),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
                zorder=5,
            )
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("Truth ratio  (low: knows the right answer; 1: right and wrong answers alike)")
        axes.set_ylabel("Share of forget examples below")
        axes.legend(loc="upper left" if _room_above(clean, axes) else "lower right")
        return to_svg(
            fig,
            "Distribution of the truth ratio on the forget set for "
            + ", ".join(labels[role] for role in clean),
        )


def _broken_lines(name: str) -> str:
    """The set's name (two words) on the first line, what was measured below it."""
    words = name.removesuffix(" score").split()
    below = words[2:] if words[2] == "normalised" else [" ".join(words[2:])]
    return "\n".join([" ".join(words[:2]), *below])


def _plain_number(value: float, _position: float) -> str:
    return f"{value:g}"


def _room_above(clean: Mapping[str, Floats], axes: Axes) -> bool:
    """Whether the upper left corner is free of curves."""
    low, high = np.log10(axes.get_xlim())
    edge = 10 ** (low + 0.45 * (high - low))
    return all(float(np.mean(array <= edge)) < 0.6 for array in clean.values())


def widest_gap(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Where two empirical distribution functions are furthest apart: the place, both heights, lower first."""
    first, second = np.sort(first), np.sort(second)
    places = np.union1d(first, second)
    heights_1 = np.searchsorted(first, places, side="right") / len(first)
    heights_2 = np.searchsorted(second, places, side="right") / len(second)
    best = int(np.argmax(np.abs(heights_1 - heights_2)))
    low, high = sorted((float(heights_1[best]), float(heights_2[best])))
    return float(places[best]), low, high


def training_curves(log: Sequence[Mapping[str, Any]]) -> str:
    """One small panel for each logged term, over optimiser steps; empty where nothing was logged twice."""
    curves = {}
    for name in dict.fromkeys(key for row in log for key in row):
        pairs = [(row["step"], row[name]) for row in log if _is_number(row.get(name))]
        if name not in {"step", "epoch"} and len(pairs) > 1:
            curves[name] = np.array(pairs, dtype=np.float64)
    if not curves:
        return ""
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    with style("curves"):
        fig = figure(12.6, 2.3 * rows)
        for place, (name, curve) in enumerate(curves.items(), start=1):
            axes = fig.add_subplot(rows, columns, place)
            stream = name.partition("/")[0]
            colour = {
                "forget": COLOURS["target"],
                "retain": COLOURS["retain"],
                "loss": COLOURS["unlearned"],
            }.get(stream, INK)
            axes.plot(
                curve[:, 0],
                curve[:, 1],
                color=colour,
                marker="o" if len(curve) < 25 else None,
                markersize=3.5,
            )
            axes.set_title(_short(name))
            axes.margins(x=0.02, y=0.12)
            axes.locator_params(axis="both", nbins=5)
            if place > len(curves) - columns:
                axes.set_xlabel("step")
        return to_svg(fig, "Training curves: " + ", ".join(curves))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def utility_bars(
    names: Sequence[str], values: Mapping[str, Sequence[float]], labels: Mapping[str, str]
) -> str:
    """The nine parts of model utility, one group of bars each; a missing value leaves its place empty."""
    with style("utility"):
        fig = figure(12.6, 3.3)
        axes = fig.add_subplot()
        width = 0.8 / max(1, len(values))
        for place, (role, heights) in enumerate(values.items()):
            offset = (place - (len(values) - 1) / 2) * width
            axes.bar(
                np.arange(len(names)) + offset,
                [0 if math.isnan(value) else value for value in heights],
                width=width * 0.92,
                color=COLOURS[role],
                label=_short(labels[role]),
            )
        axes.set_xticks(range(len(names)), [_broken_lines(name) for name in names], color=INK)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", color=GRID)
        fig.legend(loc="outside upper left", ncols=len(values))
        return to_svg(
            fig, "The nine parts of model utility for " + ", ".join(labels[role] for role in values)
        )
