"""Runs that differ in their seed only: their mean and range, so that no difference is read into luck."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.views import RunView


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs of one recipe with different seeds."""

    runs: tuple[str, ...]
    spread: dict[str, tuple[float, float, float]]
    """Metric name -> mean, lowest and highest value over the runs."""


def seed_groups(runs: Sequence[RunView], names: Sequence[str], metrics: Sequence[str]) -> list[SeedGroup]:
    """Group runs whose recipes are equal but for the seed, on the same data; groups of one are left out.

    Args:
        runs: the runs.
        names: what each is called in the report.
        metrics: which metrics to summarise; one that a run of the group did not measure is left out.
    """
    grouped: dict[str, list[tuple[str, RunView]]] = {}
    for name, run in zip(names, runs, strict=True):
        if run.recipe:
            key = json.dumps(
                [without_seed(run.recipe), run.main.fingerprint("data")], sort_keys=True, default=str
            )
            grouped.setdefault(key, []).append((name, run))
    found = []
    for members in grouped.values():
        seeds = {str(run.manifest.get("seed")) for _, run in members}
        if len(members) < 2 or len(seeds) < len(members):
            continue
        spread = {}
        for metric in metrics:
            values = [run.main.value(metric) for _, run in members]
            if not any(math.isnan(value) for value in values):
                spread[metric] = (math.fsum(values) / len(values), min(values), max(values))
        found.append(SeedGroup(tuple(name for name, _ in members), spread))
    return found


def without_seed(value: Any) -> Any:
    """The recipe without its seeds and without where its results go."""
    if isinstance(value, Mapping):
        return {
            key: without_seed(item)
            for key, item in value.items()
            if key not in {"seed", "name", "output_dir"}
        }
    return value
