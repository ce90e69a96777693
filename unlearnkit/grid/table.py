"""The table at the end of a comparison: a row for each method and setting, with the report's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnkit.files import read_json
from unlearnkit.terminal import console

if TYPE_CHECKING:
    from unlearnkit.reporting.tables import Cell

_METRICS = {
    "forget_quality": "forget quality", "model_utility": "model utility", "forget_rouge": "forget ROUGE-L",
    "retain_rouge": "retain ROUGE-L", "knowmem_forget": "forget KnowMem", "knowmem_retain": "retain KnowMem",
}  # fmt: skip
_TRAIN = "train seconds"
_GAP = 3
_WIDTH = 100  # beyond it, what is said by another column is left out
_MISSING = "–"


def print_cells(entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print each metric over the seeds: forget quality as median, the others as mean, with their range.

    Columns without any number are left out.

    Args:
        entries: the cells of comparison.json.
        folder: the comparison's folder.
    """
    columns = _columns(entries, folder)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading in columns:
        number = heading not in ("method", "setting")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    wide = Console(soft_wrap=True, highlight=False, width=max(console.width, 160))  # no number is cut
    wide.print(table)
    if len({entry["seed"] for entry in entries}) > 1:
        wide.print("Over seeds: the mean, of forget quality the (lower) median; in brackets the range.")


def _columns(entries: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Heading -> its texts, a row for each method and setting."""
    groups = _grouped(entries)
    runs = [[folder / one["run"] for one in group if one["status"] == "done"] for group in groups.values()]
    seeds = [
        str(len(done)) if len(done) == len(group) else f"{len(done)} of {len(group)}"
        for done, group in zip(runs, groups.values(), strict=True)
    ]
    measured = [[_measured(run) for run in done] for done in runs]
    numbers = {
        heading: [over_seeds([one[name] for one in found if name in one], name) for found in measured]
        for name, heading in _METRICS.items()
    }
    trained = [[seconds for run in done if (seconds := _train_seconds(run)) is not None] for done in runs]
    texts = {"method": [method for method, _ in groups], "setting": [setting for _, setting in groups]}
    texts |= {"seeds": seeds} | numbers | {_TRAIN: [_seconds(found) for found in trained]}
    shown = {heading: column for heading, column in texts.items() if set(column) - {"", _MISSING}}
    if "model utility" in shown and _width(shown) > _WIDTH:
        shown.pop("retain ROUGE-L", None)  # model utility holds it
    return shown


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(len, (heading, *column))) + _GAP for heading, column in columns.items()) - _GAP


def over_seeds(cells: Sequence[Cell], name: str) -> str:
    """One metric of a group as the report has it: "0.500", or "0.500 (0.400 to 0.600)"; "–" of none."""
    from unlearnkit.reporting.grid_groups import spread

    found = spread(cells, name)
    return found.text if found.lowest == found.highest else f"{found.text} ({found.range})"


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return _MISSING
    mean, low, high = (f"{of(values):.0f}" for of in (fmean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def _grouped(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The cells by method and setting; the seeds of one group differ."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        setting = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in entry["settings"].items())
        groups.setdefault((entry["method"], setting), []).append(entry)
    return groups


def _measured(run: Path) -> dict[str, Cell]:
    """The metrics of a run's own model, as far as it has them, written as in the report."""
    from unlearnkit.reporting.numbers import number, p_value
    from unlearnkit.reporting.tables import Cell

    found: dict[str, Cell] = {}
    for summary in sorted(run.glob("eval/*/summary.json")):
        metrics = read_json(summary)["metrics"] if "@" not in summary.parent.name else {}
        for name in _METRICS:
            metric = metrics.get(name, {})
            value = metric.get("value")
            if value is not None and math.isfinite(value):
                log10 = (metric.get("extra") or {}).get("log10_p")
                text = p_value(value, log10) if name == "forget_quality" else number(value)
                found.setdefault(name, Cell(text, float(value)))
    return found


def _train_seconds(run: Path) -> float | None:
    seconds = read_json(run / "manifest.json").get("seconds", {}).get("train")
    return None if seconds is None else float(seconds)
