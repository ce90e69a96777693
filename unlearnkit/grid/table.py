"""The table at the end of a comparison: a row for each method and setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnkit.files import read_json
from unlearnkit.terminal import console

_COLUMNS = {
    "forget quality": "forget_quality", "model utility": "model_utility", "forget ROUGE-L": "forget_rouge",
}  # fmt: skip


def print_cells(entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the medians over the seeds, with their range where there are several.

    Args:
        entries: the cells of comparison.json.
        folder: the comparison's folder.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("method", "setting"):
        table.add_column(heading)
    for heading in ("seeds", *_COLUMNS, "train seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (method, setting), group in _grouped(entries).items():
        done = [folder / entry["run"] for entry in group if entry["status"] == "done"]
        seeds = str(len(done)) if len(done) == len(group) else f"{len(done)} of {len(group)}"
        found = [_measured(run) for run in done]
        columns = [spread([one[name] for one in found if name in one]) for name in _COLUMNS.values()]
        trained = spread([one["train"] for one in found if "train" in one], "{:.0f}")
        table.add_row(escape(method), escape(setting), seeds, *columns, trained)
    Console(soft_wrap=True, highlight=False, width=max(console.width, 140)).print(table)  # no number is cut


def spread(values: Sequence[float], style: str = "{:.3g}") -> str:
    """ "0.5", or "0.5 (0.4 to 0.6)" of several values: their median and range; "–" of none."""
    if not values:
        return "–"
    middle, low, high = (style.format(of(values)) for of in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _grouped(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The cells by method and setting; the seeds of one group differ."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        setting = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in entry["settings"].items())
        groups.setdefault((entry["method"], setting), []).append(entry)
    return groups


def _measured(run: Path) -> dict[str, float]:
    """A run's numbers, as far as it has them: of its own model, and the seconds of its training."""
    found: dict[str, float] = {}
    for summary in sorted(run.glob("eval/*/summary.json")):
        if "@" not in summary.parent.name:
            for name in _COLUMNS.values():
                value = read_json(summary)["metrics"].get(name, {}).get("value")
                if value is not None and math.isfinite(value):
                    found.setdefault(name, float(value))
    seconds = read_json(run / "manifest.json").get("seconds", {}).get("train")
    return found if seconds is None else found | {"train": float(seconds)}
