"""The content of a comparison's report as plain data: its tables, sentences and notes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unlearnkit import __version__
from unlearnkit.reporting.compare import differences, main_columns
from unlearnkit.reporting.glossary import glossary
from unlearnkit.reporting.grid_costs import cost_heads, cost_rows
from unlearnkit.reporting.grid_groups import (
    AXES,
    DISTANCE,
    QUALITY,
    Group,
    axes_of,
    front_of,
    groups_of,
    number_of,
)
from unlearnkit.reporting.grid_read import Grid, GridCell, setting
from unlearnkit.reporting.grid_words import TERMS, cautions, headline, once, sentences
from unlearnkit.reporting.limits import limits
from unlearnkit.reporting.numbers import count, seconds
from unlearnkit.reporting.page import shown_metrics
from unlearnkit.reporting.seeds import without_seed
from unlearnkit.reporting.serving import terms
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.views import EvalView

CAPTION = (
    "Numbers are means. Under each, from three seeds on: the 95 % interval of the mean over seeds (Student's "
    "t; scores from 0 to 1 are cut there); with fewer seeds the interval over examples of each run. In "
    "brackets: the range over seeds. Forget quality is not averaged: its median (of an even number the lower "
    "middle one)."
)
ROLE_TITLES = {"target": "Target model", "retain": "Retain model"}


def grid_content(grid: Grid) -> dict[str, Any]:
    """What the page and the Markdown show, without plots."""
    runs = grid.runs
    columns = _columns(grid)
    names = [name for _, name in columns]
    more = [axis.name for axis in AXES if axis.name not in names]
    groups = groups_of(grid, [*names, *more])
    axes = axes_of(groups)
    front = front_of(groups, axes)
    costs = cost_rows(grid)
    served = {term for run in runs for term in terms(run)}
    metrics = (metric for run in runs for metric in shown_metrics(run))
    return {
        "version": __version__,
        "title": f"{len(grid.methods)} method{'' if len(grid.methods) == 1 else 's'} compared: {grid.name}",
        "subtitle": _subtitle(grid),
        "command": grid.command,
        "tone": "unknown",
        "headline": headline(grid, groups, names),
        "sentences": sentences(grid, groups, axes, front),
        "columns": names,
        "heads": [{"title": title, "n": _same_n(grid, name)} for title, name in columns],
        "caption": CAPTION,
        "references": _references(grid, names),
        "groups": [_group_row(group, names, group.number in front) for group in groups],
        "cost_heads": cost_heads(costs),
        "costs": costs,
        "cells": [_cell_row(cell, grid, group, names) for group in groups for cell in group.cells],
        "differences": _differences(grid),
        "cautions": cautions(grid),
        "gaps": once([(cell, cell.run.gaps) for cell in grid.cells if cell.run is not None]),
        "limits": limits(runs) if runs else (),
        "glossary": [*glossary(metrics, (), served), *TERMS],
        "all_groups": groups,
        "axes": axes,
        "front": front,
    }


def _columns(grid: Grid) -> list[tuple[str, str]]:
    """Title and name of the metrics of the tables; the distance D beside forget quality."""
    found = []
    for title, name in main_columns(grid.runs):
        found.append((title, name))
        if name == QUALITY:
            found.append(("Distance D", DISTANCE))
    return found


def _subtitle(grid: Grid) -> str:
    suites = ", ".join(dict.fromkeys(run.suite for run in grid.runs))
    parts = [
        f"recipe {grid.recipe}" if grid.recipe else "",
        f"suite {suites}" if suites else "",
        f"seed{'' if len(grid.seeds) == 1 else 's'} {', '.join(map(str, grid.seeds))}",
        *(f"{key} {', '.join(map(setting, values))}" for key, values in grid.points.items()),
        f"started {grid.started}" if grid.started else "",
        f"{seconds(grid.seconds)} in all" if grid.seconds else "",
    ]
    return " · ".join(part for part in parts if part)


def _same_n(grid: Grid, name: str) -> str:
    """The number of examples behind a metric, where it is the same in all runs."""
    found = {number_of(run.main, name).n for run in grid.runs} - {0}
    return count(found.pop()) if len(found) == 1 else ""


def reference_views(grid: Grid) -> dict[str, EvalView]:
    """The target and the retain model, as the first run that has them shows them."""
    found: dict[str, EvalView] = {}
    for run in grid.runs:
        for role in ROLE_TITLES:
            if role in run.evaluations:
                found.setdefault(role, run.evaluations[role])
    return {role: found[role] for role in ROLE_TITLES if role in found}


def _references(grid: Grid, names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "name": ROLE_TITLES[role],
            "label": "" if view.label.lower() in (role, ROLE_TITLES[role].lower()) else view.label,
            "cells": [number_of(view, name) for name in names],
        }
        for role, view in reference_views(grid).items()
    ]


def _group_row(group: Group, names: list[str], on_front: bool) -> dict[str, Any]:
    finished = [cell for cell in group.cells if cell.run is not None]
    rest = [cell for cell in group.cells if cell.run is None]
    said = [f"{len(finished)} seed{'' if len(finished) == 1 else 's'}" if finished else "no seed finished"]
    for status in dict.fromkeys(cell.status for cell in rest):
        said.append(f"{sum(cell.status == status for cell in rest)} {status}")
    cells = []
    for name in names:
        spread = group.spreads[name]
        lines = []
        if name == QUALITY and len(group.cells) > 1 and spread.n:
            lines.append(f"above 0.05 in {group.num_passing} of {len(group.cells)}")
        elif spread.value is not None and spread.n < len(finished):
            lines.append(f"{spread.n} of {len(finished)} runs")
        cells.append(
            {
                "name": name,
                "text": spread.text,
                "value": spread.value,
                "spread": spread,
                "lines": lines,
                "detail": "; ".join(
                    [*spread.intervals, *([f"range {spread.range}"] if spread.range else []), *lines]
                ),
            }
        )
    return {
        "number": group.number,
        "method": group.method,
        "settings": group.title.partition(", ")[2],
        "seeds": ", ".join(said),
        "on_front": on_front,
        "passes": group.passes,
        "cells": cells,
    }


def _cell_row(cell: GridCell, grid: Grid, group: Group, names: list[str]) -> dict[str, Any]:
    train = (cell.run.manifest.get("seconds") or {}).get("train") if cell.run else None
    return {
        "group": group.number,
        "name": group.title,
        "seed": cell.seed,
        "status": cell.status,
        "verdict": cell.verdict.code.replace("_", " ") if cell.verdict else "",
        "verdict_text": cell.verdict.headline if cell.verdict else "",
        "cells": [number_of(cell.run.main, name) for name in names] if cell.run else [],
        "train": Cell(seconds(train), train),
        "report": _link(cell.folder / "report.html" if cell.folder else None, grid.folder),
        "folder": _relative(cell.folder, grid.folder) if cell.folder else "",
        "error": cell.error,
        "log": cell.log,
        "log_link": _link(grid.folder / cell.log if cell.log else None, grid.folder),
        "left_out": list(cell.left_out),
    }


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


def _link(path: Path | None, start: Path) -> str:
    """A relative address, which lasts when all runs are moved together; empty without such a file."""
    return quote(_relative(path, start)) if path is not None and path.is_file() else ""


def _differences(grid: Grid) -> dict[str, Any]:
    """Settings that are not the same for all methods, beside those of the grid."""
    first: dict[str, dict[str, Any]] = {}
    for cell in grid.cells:
        if cell.run is not None and cell.run.recipe:
            recipe = without_seed(cell.run.recipe)
            first.setdefault(cell.method, {key: item for key, item in recipe.items() if key != "method"})
    rows = (
        [row for row in differences(list(first.values())) if row[0] not in grid.points]
        if len(first) > 1
        else []
    )
    return {"heads": list(first), "rows": rows}
