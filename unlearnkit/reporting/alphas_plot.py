"""Forgetting and keeping against alpha: one small panel for each metric, with the served alpha marked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.reporting.alphas import LOG10, Row, Sweep, in_words
from unlearnkit.reporting.drawing import COLOURS, DASHES, INK, MARKERS, PAGE, QUIET, figure, style, to_svg
from unlearnkit.reporting.planes import quality_axis

LOWEST_LOG10 = -300.0
"""Forget quality below the smallest number is drawn here."""
MOST_COLUMNS = 3


def alpha_plot(sweep: Sweep) -> str:
    """A panel per metric over alpha, with the target model at 0 and the retain model's level.

    Returns:
        An SVG; empty where no metric was measured.
    """
    if not sweep.columns:
        return ""
    columns = min(MOST_COLUMNS, len(sweep.columns))
    rows = math.ceil(len(sweep.columns) / columns)
    with style("alphas"):
        fig = figure(12.6, 2.75 * rows + 0.4)
        for place, (name, title) in enumerate(sweep.columns, start=1):
            axes = fig.add_subplot(rows, columns, place)
            axes.set_title(title)
            _panel(axes, sweep, LOG10 if name == "forget_quality" else name)
            if place > len(sweep.columns) - columns:
                axes.set_xlabel("alpha")
        named = [axes.get_legend_handles_labels() for axes in fig.axes]
        found = {label: handle for pair in named for handle, label in zip(*pair, strict=True)}
        fig.legend(list(found.values()), list(found), loc="outside upper left", ncols=len(found))
        return to_svg(fig, f"Forgetting and keeping against alpha. {in_words(sweep)}")


def points(rows: list[Row], name: str) -> list[tuple[float, float, float, float]]:
    """(alpha, value, low, high) of each row that was measured; the value at both ends where it has none."""
    found = []
    for row in rows:
        number = row.numbers[name]
        if row.alpha is not None and (value := _drawn(number.value, name)) is not None:
            low, high = (_drawn(end, name) for end in (number.low, number.high))
            found.append((row.alpha, value, value if low is None else low, value if high is None else high))
    return found


def _drawn(value: float | None, name: str) -> float | None:
    if value is None or math.isnan(value):
        return None
    return max(value, LOWEST_LOG10) if name == LOG10 else value


def _panel(axes: Axes, sweep: Sweep, name: str) -> None:
    target, colour = sweep.of("target"), COLOURS["unlearned"]
    tried, before = points(sweep.tried, name), points([target] if target else [], name)
    alphas, values, lows, highs = np.array(tried).T
    axes.fill_between(alphas, lows, highs, color=colour, alpha=0.13, linewidth=0)
    if target and before:  # where nothing is added or taken away
        value = before[0][1]
        axes.plot([0, alphas[0]], [value, values[0]], color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.plot([0], [value], **_marker("target"), label=target.title)
    axes.plot(alphas, values, color=colour)
    axes.plot(alphas, values, **_marker("unlearned"), label="Served together, by alpha")
    _served(axes, sweep, tried)
    retain = _level(sweep.of("retain"), name)
    if retain is not None:
        axes.axhline(retain, color=COLOURS["retain"], linestyle=DASHES["retain"], label="Retain model")
    axes.set_xlim(0, 1.05 * alphas[-1])
    axes.locator_params(axis="x", nbins=6)
    if name == LOG10:
        quality_axis(axes, *lows, *(value for _, value, _, _ in before))
    else:
        axes.margins(y=0.12)
        axes.locator_params(axis="y", nbins=5)


def _level(row: Row | None, name: str) -> float | None:
    """The retain model's value; of forget quality it has p = 1 by definition."""
    if row is None:
        return None
    return 0.0 if name == LOG10 else _drawn(row.numbers[name].value, name)


def _marker(role: str) -> dict[str, Any]:
    return {
        "marker": MARKERS[role],
        "color": COLOURS[role],
        "markersize": 6.5,
        "markeredgecolor": PAGE,
        "linestyle": "none",
        "clip_on": False,
        "zorder": 3,
    }


def _served(axes: Axes, sweep: Sweep, tried: list[tuple[float, float, float, float]]) -> None:
    """A ring around the alpha that is served, and a line down to it."""
    for alpha, value, _, _ in tried:
        if alpha == sweep.served:
            axes.axvline(alpha, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot(
                [alpha], [value], marker="o", markersize=14, markerfacecolor="none", markeredgecolor=INK,
                markeredgewidth=1.8, linestyle="none", clip_on=False, zorder=4,
                label=f"Served: alpha {alpha:g}",
            )  # fmt: skip
