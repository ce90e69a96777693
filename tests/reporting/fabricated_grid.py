"""Made-up comparisons: the fabricated run copied for each cell, with the numbers that a test asks for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

RATE = "training.learning_rate"


def make_cell(
    folder: Path, run: Path, method: str, seed: int, rate: float, numbers: dict[str, float | None]
) -> dict[str, Any]:
    """Copy `run` beside the comparison as one cell's run, with other numbers; None: not measured.

    Args:
        folder: of the comparison.
        run: a fabricated run.
        method, seed, rate: the cell's; the learning rate is its point of the grid.
        numbers: metric -> value; "statistic" is the distance D, "train" the training seconds.
    """
    name = f"{method}-{rate:g}-{seed}"
    place = folder.parent / name
    shutil.copytree(run, place)
    path = place / "eval" / "tofu" / "summary.json"
    summary = json.loads(path.read_text())
    for metric, value in numbers.items():
        if metric == "statistic":
            summary["metrics"]["forget_quality"]["extra"]["statistic"] = value
        elif metric != "train":
            entry = summary["metrics"][metric]
            low, high = (None, None) if value is None else (value * 0.9, value * 1.1)
            entry.update(value=value, low=low, high=high)
        if metric == "forget_quality" and value:
            summary["metrics"][metric]["extra"]["log10_p"] = math.log10(value)
    path.write_text(json.dumps(summary | {"label": method}))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest.update(name=name, method=method, seed=seed, steps=125)
    manifest["seconds"]["train"] = numbers.get("train", 100.0 + seed)
    (place / "manifest.json").write_text(json.dumps(manifest))
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["method"] = method
    recipe["training"] |= {"learning_rate": rate, "seed": seed, "beta": 0.1 if method == "npo" else 2.5}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return cell(method, seed, rate, run=f"../{name}")


def cell(method: str, seed: int, rate: float = 1e-5, **entry: Any) -> dict[str, Any]:
    """A cell of comparison.json; done unless `entry` says otherwise."""
    return {
        "method": method,
        "seed": seed,
        "settings": {RATE: rate},
        "recipe": f"tofu_tiny/{method}",
        "run": f"../{method}-{rate:g}-{seed}",
        "status": "done",
        "seconds": 400.0,
        "error": "",
        "log": f"cells/{method}-{rate:g}-{seed}.log",
        "left_out": [],
    } | entry


def write_comparison(folder: Path, cells: Sequence[dict[str, Any]]) -> Path:
    """Write comparison.json over the cells."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "format": 1,
        "name": "tofu_tiny",
        "recipe": "tofu_tiny",
        "command": "unlearnkit compare tofu_tiny --methods npo,rpo --seeds 0,1,2",
        "methods": list(dict.fromkeys(sorted(one["method"] for one in cells))),
        "seeds": sorted({one["seed"] for one in cells}),
        "grid": {RATE: sorted({one["settings"][RATE] for one in cells if RATE in one["settings"]})},
        "settings": [],
        "started": "2026-03-02T09:15:00Z",
        "seconds": 5400.0,
        "cells": list(cells),
    }
    (folder / "comparison.json").write_text(json.dumps(found))
    return folder


def few(make: Any, tmp_path: Path, cells: int = 1, **numbers: float | None) -> Path:
    """A comparison of one method with so many seeds."""
    folder = tmp_path / "compare"
    run = make(tmp_path / "source")
    return write_comparison(
        folder, [make_cell(folder, run, "npo", seed, 1e-5, dict(numbers)) for seed in range(cells)]
    )
