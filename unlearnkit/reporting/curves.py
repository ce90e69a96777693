"""What came back under an attack: curves over relearning steps, or a line for each variant of the attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.reporting.drawing import (
    COLOURS,
    DASHES,
    GRID,
    INK,
    MARKERS,
    PAGE,
    QUIET,
    figure,
    short,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from unlearnkit.reporting.attacks import Attack, Stage

COUNTED = ("steps", "samples")
"""Levels that an attack can have many of: a curve over them can be read. Bits, say, are drawn one by one."""
LOWEST_SHARE, HIGHEST_SHARE = -1.0, 2.0
SHARES = (("back", "unlearned", "unlearned model"), ("control", "retain", "retain model (control)"))


def recovery_plot(attack: Attack) -> str:
    """What one attack brought back, a panel per measure: curves over steps, else a line per variant.

    Args:
        attack: `name`, `title`, `level_title` and `stages`, as `page.page` hands them on.

    Returns:
        An SVG; empty where no share was measured.
    """
    measures = list(dict.fromkeys(found.title for stage in attack.stages for found in stage.recoveries))
    measures = [title for title in measures if any(_shares(attack, title, key) for key, _, _ in SHARES)]
    if not measures:
        return ""
    levels = [stage.level for stage in attack.stages]
    over_levels = attack.level_title in COUNTED and None not in levels and len(set(levels)) == len(levels) > 1
    with style(f"attack-{attack.name}"):
        height = 3.4 if over_levels else 1.5 + 0.5 * len(attack.stages)
        fig = figure(6.3 * len(measures), height)
        axes: Axes | None = None
        for place, title in enumerate(measures, start=1):
            # One scale for all measures; the names of the variants stand at the first panel only.
            axes = fig.add_subplot(1, len(measures), place, sharex=axes, sharey=axes)
            axes.set_title(f"Share of {title} that came back")
            (_over_levels if over_levels else _over_variants)(axes, attack, title)
            if place > 1:
                axes.tick_params(labelleft=False)
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper left", ncols=2)
        return to_svg(fig, _in_words(attack, measures))


@dataclass(frozen=True)
class _Share:
    """One measured share and its interval; the share itself at both ends where it has none."""

    stage: Stage
    value: float
    low: float
    high: float


def _shares(attack: Attack, title: str, key: str) -> list[_Share]:
    """The shares `key` ("back" or "control") of each stage in which they were measured."""
    cells = [
        (stage, getattr(found, key))
        for stage in attack.stages
        for found in stage.recoveries
        if found.title == title
    ]
    return [
        _Share(
            stage,
            cell.value,
            cell.value if cell.low is None else cell.low,
            cell.value if cell.high is None else cell.high,
        )
        for stage, cell in cells
        if cell.value is not None
    ]


def curve(attack: Attack, title: str, key: str) -> list[tuple[float, float, float, float]]:
    """(level, share, low, high) of one measure, by level; empty where no share was measured.

    A curve over steps begins at (0, 0): before the first step nothing had come back, by definition.
    """
    rows = sorted(
        (found.stage.level or 0.0, found.value, found.low, found.high)
        for found in _shares(attack, title, key)
    )
    return [(0.0, 0.0, 0.0, 0.0), *rows] if rows and attack.level_title == "steps" else rows


def _over_levels(axes: Axes, attack: Attack, title: str) -> None:
    for key, role, label in SHARES:
        rows = curve(attack, title, key)
        if not rows:
            continue
        levels, shares, lows, highs = np.array(rows).T
        axes.fill_between(levels, lows, highs, color=COLOURS[role], alpha=0.13, linewidth=0)
        axes.plot(
            levels,
            shares,
            color=COLOURS[role],
            linestyle=DASHES[role],
            marker=MARKERS[role],
            markersize=5.5,
            markeredgecolor=PAGE,
            label=label,
        )
    _percent_axis(axes.yaxis, axes.set_ylim, attack)
    axes.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{attack.level_title} of the attack")


def _over_variants(axes: Axes, attack: Attack, title: str) -> None:
    places = {stage.variant: place for place, stage in enumerate(attack.stages)}
    for (key, role, label), shift in zip(SHARES, (-0.13, 0.13), strict=True):
        found = _shares(attack, title, key)
        if not found:
            continue
        heights = [places[share.stage.variant] + shift for share in found]
        for height, share in zip(heights, found, strict=True):
            axes.plot([share.low, share.high], [height] * 2, color=COLOURS[role], alpha=0.5, linewidth=2)
        axes.plot(
            [share.value for share in found],
            heights,
            linestyle="none",
            marker=MARKERS[role],
            color=COLOURS[role],
            markersize=8,
            markeredgecolor=PAGE,
            label=label,
            clip_on=False,
            zorder=3,
        )
    names = [
        f"{short(stage.variant or attack.title, 28)}{' (worst)' if _is_worst(attack, stage) else ''}"
        for stage in attack.stages
    ]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID)
    _percent_axis(axes.xaxis, axes.set_xlim, attack)
    axes.axvline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axvline(0, color=QUIET, linewidth=0.8)


def _is_worst(attack: Attack, stage: Stage) -> bool:
    """Whether the stage is the one that the attack names as its worst."""
    return len(attack.stages) > 1 and bool(attack.worst) and stage.variant == attack.worst


def _percent_axis(axis: Any, limit: Any, attack: Attack) -> None:
    """One scale for all panels, from 0 to 1 at least; below 0 where an attack made the model forget more."""
    found = [
        share
        for title in {one.title for stage in attack.stages for one in stage.recoveries}
        for key, _, _ in SHARES
        for share in _shares(attack, title, key)
    ]
    # One wild interval must not squeeze the rest.
    low = max(LOWEST_SHARE, min(0.0, *(share.low for share in found)))
    high = min(HIGHEST_SHARE, max(1.0, *(share.high for share in found)))
    ticks = [k / 4 for k in range(math.ceil(low * 4), math.floor(high * 4 + 0.2) + 1)]
    axis.set_ticks(ticks, [f"{100 * tick:g} %".replace("-", "−") for tick in ticks])
    limit(low - 0.03, high + 0.05)


def _in_words(attack: Attack, measures: Sequence[str]) -> str:
    lines = []
    for stage in attack.stages:
        for found in stage.recoveries:
            if found.title in measures:
                control = f", control {found.control.text}" if found.control.value is not None else ""
                lines.append(f"{stage.variant or attack.title}, {found.title}: {found.back.text}{control}")
    return f"{attack.title}: share of what was forgotten that came back. {'; '.join(lines)}"
