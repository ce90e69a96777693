"""The evaluations during training: forgetting against keeping, and each over steps, the kept one marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

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
from unlearnkit.reporting.numbers import number
from unlearnkit.reporting.planes import score_limits

LOWEST_LOG10 = -300.0
"""Forget quality below the smallest number is drawn here."""


def trajectory_plot(trajectory: Mapping[str, Any]) -> str:
    """Forgetting against keeping, evaluation by evaluation during training, with the kept checkpoint marked.

    Args:
        trajectory: "points" ("step" and "metrics", name -> "value", "low", "high", each may be None),
            "titles", the names "forget" and "keep" of the two metrics, and "kept_step", each None where
            there is none.

    Returns:
        An SVG: the plane of both metrics where there are both, and each over steps; empty where neither is.
    """
    names = [name for name in (trajectory["forget"], trajectory["keep"]) if name]
    series = {name: series_of(trajectory["points"], name) for name in names}
    series = {name: found for name, found in series.items() if len(found) > 1}
    if not series:
        return ""
    with style("trajectory"):
        fig = figure(12.6, 4.4)
        names = list(series)
        columns = 2 if len(names) == 2 else 1
        if columns == 2:
            _path(fig.add_subplot(1, 2, 1), trajectory, series)
        for place, name in enumerate(names):
            axes = fig.add_subplot(len(names), columns, columns * (place + 1))
            _over_steps(axes, series[name], _title(trajectory, name), trajectory["kept_step"])
            if place == len(names) - 1:
                axes.set_xlabel("training step")
        return to_svg(fig, _trajectory_in_words(trajectory, series))


def series_of(points: Sequence[Mapping[str, Any]], name: str) -> dict[float, tuple[float, float, float]]:
    """Step -> (value, low, high), the ends NaN where there are none; forget quality as its logarithm."""
    found = {}
    for point in points:
        entry = point["metrics"].get(name) or {}
        if (value := _drawn(name, entry.get("value"))) is not None:
            low, high = (_drawn(name, entry.get(end)) for end in ("low", "high"))
            ends = math.nan if low is None else low, math.nan if high is None else high
            found[point["step"]] = (value, *ends)
    return found


def _drawn(name: str, value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    if name == "forget_quality":
        return max(math.log10(value), LOWEST_LOG10) if value > 0 else LOWEST_LOG10
    return float(value)


def _title(trajectory: Mapping[str, Any], name: str) -> str:
    title = trajectory["titles"].get(name, name)
    return "Forget quality (log10 p)" if name == "forget_quality" else str(title)


def _path(axes: Axes, trajectory: Mapping[str, Any], series: Mapping[str, dict[float, Any]]) -> None:
    forget, keep = series
    steps = [step for step in series[forget] if step in series[keep]]
    xs, ys = [series[keep][step][0] for step in steps], [series[forget][step][0] for step in steps]
    axes.plot(xs, ys, color=COLOURS["unlearned"], linewidth=1.4, alpha=0.6)
    for place, (step, x, y) in enumerate(zip(steps, xs, ys, strict=True)):
        role = "target" if step == 0 else "unlearned"
        axes.plot(
            [x],
            [y],
            linestyle="none",
            marker=MARKERS[role],
            color=COLOURS[role],
            markersize=8 if place in (0, len(steps) - 1) else 6,
            markeredgecolor=PAGE,
            clip_on=False,
            zorder=3,
        )
    if trajectory["kept_step"] in steps:
        place = steps.index(trajectory["kept_step"])
        _ring(axes, xs[place], ys[place])
    if xs and min(xs) >= 0 and max(xs) <= 1:
        axes.set_xlim(*score_limits(xs))
    axes.set_xlabel(f"{_title(trajectory, keep)}  →  keeps more")
    better = "up is better" if forget == "forget_quality" else "lower: repeats less"
    axes.set_ylabel(f"{_title(trajectory, forget)}  ({better})")
    axes.margins(y=0.12)
    named = {0, len(steps) - 1} | {i for i, step in enumerate(steps) if step == trajectory["kept_step"]}
    label_points(
        axes,
        [(_step_name(steps[i], trajectory["kept_step"]), xs[i], ys[i]) for i in sorted(named)],
        9.5,
    )


def _step_name(step: float, kept: float | None) -> str:
    name = "target" if step == 0 else f"step {step:g}"
    return f"{name}, kept" if step == kept else name


def _over_steps(axes: Axes, series: Mapping[float, Any], title: str, kept: float | None) -> None:
    steps = list(series)
    values, lows, highs = (np.array([series[step][k] for step in steps], dtype=float) for k in range(3))
    colour = COLOURS["unlearned"]
    axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axes.plot(steps, values, color=colour, marker="o" if len(steps) < 40 else None, markersize=4)
    if kept is not None and kept in series:
        axes.axvline(kept, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        _ring(axes, kept, series[kept][0])
    axes.set_title(short(title, 48))
    axes.margins(x=0.03, y=0.15)
    axes.locator_params(axis="both", nbins=5)


def _ring(axes: Axes, x: float, y: float) -> None:
    """Marks the checkpoint that was kept."""
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=15,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.8,
        linestyle="none",
        clip_on=False,
        zorder=4,
    )


def _trajectory_in_words(trajectory: Mapping[str, Any], series: Mapping[str, dict[float, Any]]) -> str:
    parts = []
    for name, found in series.items():
        first, last = next(iter(found)), list(found)[-1]
        parts.append(
            f"{_title(trajectory, name)} from {number(found[first][0])} at step {first:g} "
            f"to {number(found[last][0])} at step {last:g}"
        )
    kept = trajectory["kept_step"]
    end = "" if kept is None else f"; the checkpoint of step {kept:g} was kept"
    return f"During training: {'; '.join(parts)}{end}"
