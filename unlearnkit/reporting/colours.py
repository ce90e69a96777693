"""The report's colours on white and on dark paper: one table for the style sheet and for the plots.

The models' colours are Okabe and Ito's, which people with any colour vision can tell apart; on dark paper the
same hues are lighter. Plots are drawn in the light colours and then refer to the style sheet's variables, so
that one SVG serves both (and keeps its colours where it stands alone).
"""

from __future__ import annotations

import re

PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14181d"),
    "soft": ("#f5f7fa", "#1d232a"),
    "ink": ("#1f2933", "#e6eaee"),
    "quiet": ("#5a6673", "#a8b2bd"),
    "line": ("#e4e7eb", "#2d353d"),
    "rule": ("#cbd2d9", "#4a545f"),
    "axis": ("#9aa5b1", "#77838f"),
    "edge": ("#7b8794", "#77838f"),
    "target": ("#d55e00", "#f28a45"),
    "unlearned": ("#0072b2", "#62b2ec"),
    "retain": ("#009e73", "#2fc79a"),
    "good": ("#00664b", "#5fd3ac"),
    "good-soft": ("#eefaf5", "#12261f"),
    "mixed": ("#8a5a00", "#e8b454"),
    "mixed-edge": ("#d99a1c", "#c9922e"),
    "mixed-soft": ("#fdf7ea", "#292113"),
    "bad": ("#a8321c", "#ff9c7d"),
    "bad-soft": ("#fdf1ec", "#2f1b15"),
    "pink": ("#cc79a7", "#e39dc5"),
    "orange": ("#c27f00", "#f2b63f"),
    "sky": ("#3b99d4", "#b4e0fb"),
    "grey": ("#5b5b5b", "#a0a0a0"),
    "black": ("#000000", "#ffffff"),
    "violet": ("#7b52b8", "#b79af0"),
    "brown": ("#8c5a2b", "#d0a173"),
}
"""Name of the CSS variable -> its colour in light mode and in dark mode."""


def light(name: str) -> str:
    """The colour that plots are drawn in."""
    return PALETTE[name][0]


def variables(mode: int) -> str:
    """The CSS declarations of all colours; `mode` 0 is light, 1 is dark."""
    return " ".join(f"--{name}: {pair[mode]};" for name, pair in PALETTE.items())


_NAMES = {pair[0]: name for name, pair in PALETTE.items()}


def themed(svg: str) -> str:
    """The SVG with each known colour of its styles replaced by the variable, the colour as its fallback."""

    def variable(match: re.Match[str]) -> str:
        colour = match.group(2).lower()
        name = _NAMES.get(colour)
        return f"{match.group(1)}var(--{name}, {colour})" if name else match.group(0)

    return re.sub(r"((?:fill|stroke|color):\s*)(#[0-9a-fA-F]{6})\b", variable, svg)
