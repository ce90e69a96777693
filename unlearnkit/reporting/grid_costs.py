"""What each method of a comparison cost, as its runs recorded it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unlearnkit.reporting.grid_groups import Group
from unlearnkit.reporting.grid_read import Grid
from unlearnkit.reporting.numbers import MISSING, count, memory, seconds
from unlearnkit.reporting.served_table import ONE_MODEL, UNDER_ADAPTER, served_as

_COSTS: dict[str, tuple[str, tuple[str, ...], Callable[[float | None], str]]] = {
    "train_seconds": ("Training", ("seconds", "train"), seconds),
    "evaluate_seconds": ("Evaluation", ("seconds", "evaluate"), seconds),
    "steps": ("Steps", ("steps",), count),
    "tokens_seen": ("Tokens seen", ("tokens_seen",), count),
    "peak_memory_bytes": ("Peak memory", ("peak_memory_bytes",), memory),
    "trainable": ("Trainable parameters", ("model", "trainable"), count),
}
"""Name in summary.json -> title, where the manifest has it, how it is written."""
MOST_SERVED = 2
"""So many ways of serving one method's runs are named; of more, how many."""


@dataclass(frozen=True)
class Cost:
    """The mean of one cost over the runs of a method, with the range where they differ."""

    text: str = MISSING
    value: float | None = None
    lowest: float | None = None
    highest: float | None = None
    range: str = ""


def cost_rows(grid: Grid) -> list[dict[str, Any]]:
    """One row for each method with its finished runs, over all seeds and settings."""
    rows = []
    for method in grid.methods:
        manifests = [
            cell.run.manifest for cell in grid.cells if cell.method == method and cell.run is not None
        ]
        references = dict.fromkeys(str(one["reference"]) for one in manifests if one.get("reference"))
        costs = {
            name: _cost([_found(one, keys) for one in manifests], write)
            for name, (_, keys, write) in _COSTS.items()
        }
        reference = ", ".join(references) or MISSING
        rows.append(
            {
                "method": method,
                "runs": len(manifests),
                "costs": costs,
                "reference": reference,
                "served": _served(grid, method),
            }
        )
    return rows


def cost_heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The heads of the table; what is served has a column where a method serves more than one model."""
    served = (
        ["Served"] if any(row["served"] not in (MISSING, ONE_MODEL, UNDER_ADAPTER) for row in rows) else []
    )
    return ["Method", "Runs", *(title for title, _, _ in _COSTS.values()), "Reference", *served]


def _served(grid: Grid, method: str) -> str:
    runs = [cell.run for cell in grid.cells if cell.method == method and cell.run is not None]
    kinds = list(dict.fromkeys(served_as(run) for run in runs))
    if len(kinds) > MOST_SERVED:
        return f"{kinds[0].partition(',')[0]}, in {len(kinds)} ways"
    return "; ".join(kinds) or MISSING


def training_seconds(group: Group) -> float:
    """The mean training time over the seeds of a group; NaN where it was not recorded."""
    manifests = [cell.run.manifest for cell in group.cells if cell.run is not None]
    cost = _cost([_found(one, ("seconds", "train")) for one in manifests], seconds)
    return math.nan if cost.value is None else cost.value


def _found(manifest: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _cost(found: list[float | None], write: Callable[[float | None], str]) -> Cost:
    values = [value for value in found if value is not None]
    if not values:
        return Cost()
    mean, low, high = fmean(values), min(values), max(values)
    return Cost(
        write(mean), mean, low, high, f"{write(low)} to {write(high)}" if write(low) != write(high) else ""
    )
