"""ROC curves of the membership attacks: one small panel an attack, once as they are, once on log axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from unlearnkit.reporting.drawing import COLOURS, DASHES, QUIET, figure, short, style, to_svg
from unlearnkit.reporting.numbers import number

Floats = NDArray[np.float64]

LOWEST_RATE = 1e-3
"""Where the log axes begin: the lowest false positive rate that is reported."""
STEP = 1 / 150
"""Corners of a curve that are closer than this share of an axis are drawn as one: under two pixels."""


def roc_curves(curves: Sequence[Mapping[str, Any]]) -> str:
    """All attacks, members found against non-members accused; beside each model's name stands its AUC.

    Args:
        curves: "title" of the attack, "role", "auc", "fpr" and "tpr" (from 0 to 1, ascending); those of one
            "metric" stand together. Empty where no membership attack was made.
    """
    return _panels(curves, log=False)


def low_rate_curves(curves: Sequence[Mapping[str, Any]]) -> str:
    """The same on two log axes: what an attacker finds who must hardly ever accuse wrongly."""
    return _panels(curves, log=True)


def _panels(curves: Sequence[Mapping[str, Any]], log: bool) -> str:
    attacks = [list(group) for _, group in itertools.groupby(curves, key=lambda curve: curve["metric"])]
    if not attacks:
        return ""
    columns = min(3, len(attacks))
    rows = math.ceil(len(attacks) / columns)
    with style("roc-log" if log else "roc"):
        fig = figure(4.2 * columns, 3.55 * rows + 0.2)
        for place, group in enumerate(attacks):
            axes = fig.add_subplot(rows, columns, place + 1)
            _panel(axes, group, log)
            axes.set_title(short(_name(group)), pad=22)
            if place + columns >= len(attacks):
                axes.set_xlabel("False positive rate")
            if place % columns == 0:
                axes.set_ylabel("True positive rate")
        kind = "ROC curves on log axes" if log else "ROC curves"
        return to_svg(fig, f"{kind}. {'; '.join(_in_words(group) for group in attacks)}")


def _panel(axes: Axes, group: Sequence[Mapping[str, Any]], log: bool) -> None:
    low = LOWEST_RATE if log else 0.0
    chance = np.geomspace(low, 1) if log else np.array([0.0, 1.0])
    axes.plot(chance, chance, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for curve in group:
        fpr, tpr = np.asarray(curve["fpr"], dtype=np.float64), np.asarray(curve["tpr"], dtype=np.float64)
        if log:
            # Log axes have no place for a rate of nothing: begin at the edge, with what is found there.
            start = max(0, int(np.searchsorted(fpr, low, side="right")) - 1)
            fpr, tpr = np.clip(fpr[start:], low, 1), np.clip(tpr[start:], low, 1)
        fpr, tpr = corners(fpr, tpr, log)
        role = curve["role"]
        axes.plot(
            fpr,
            tpr,
            color=COLOURS[role],
            linestyle=DASHES[role],
            linewidth=2,
            label=f"{role} {curve['auc']:.2f}",
        )
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [10.0**k for k in range(round(math.log10(low)), 1)]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlim(low * 0.9, 1.05)
        axes.set_ylim(low * 0.9, 1.3)
    else:
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
    # Above the panel: curves may run through any of its corners. The panel's width does not depend on it.
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(group),
        fontsize=9,
        handlelength=1.7,
        handletextpad=0.4,
        columnspacing=0.9,
        borderaxespad=0.1,
    )
    legend.set_in_layout(False)


def corners(fpr: Floats, tpr: Floats, log: bool) -> tuple[Floats, Floats]:
    """The points of a curve that can be told apart in the plot; the first and the last stay."""
    span = -math.log10(LOWEST_RATE)
    xs, ys = (np.log10(fpr) / span, np.log10(tpr) / span) if log else (fpr, tpr)
    kept = [0]
    for place in range(1, len(xs)):
        if max(xs[place] - xs[kept[-1]], ys[place] - ys[kept[-1]]) >= STEP or place == len(xs) - 1:
            kept.append(place)
    return fpr[kept], tpr[kept]


def _in_words(group: Sequence[Mapping[str, Any]]) -> str:
    areas = ", ".join(f"{curve['role']} {number(curve['auc'], 2)}" for curve in group)
    return f"{_name(group)}: AUC {areas}"


def _name(group: Sequence[Mapping[str, Any]]) -> str:
    """The attack's title, without what the heading and the legend say already."""
    name = str(group[0]["title"]).removeprefix("Membership: ").removesuffix(" (AUC)")
    return name[:1].upper() + name[1:]
