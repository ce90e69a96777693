"""The report's plots: numbers in, an inline SVG out. Nothing here reads a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from unlearnkit.reporting.drawing import (
    COLOURS,
    DASHES,
    GRID,
    INK,
    figure,
    short,
    style,
    to_svg,
)
from unlearnkit.reporting.numbers import number

Floats = NDArray[np.float64]


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
                linestyle=DASHES[role],
                label=f"{short(labels[role])} (n = {len(array)})",
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
    return f"{value:g}".replace("e-0", "e-").replace("-", "−")


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
            axes.set_title(short(name))
            axes.margins(x=0.02, y=0.12)
            axes.locator_params(axis="both", nbins=5)
            axes.yaxis.set_major_formatter(_plain_number)
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
                label=short(labels[role]),
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
