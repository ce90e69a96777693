"""summary.json of a comparison: fields in docs/summary.md, types in docs/summary.schema.json."""

from __future__ import annotations

from typing import Any

from unlearnkit.reporting.grid_content import reference_views
from unlearnkit.reporting.grid_groups import Axis, Group, Spread, number_of
from unlearnkit.reporting.grid_read import Grid, GridCell
from unlearnkit.reporting.summary import SUMMARY_FORMAT
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.views import EvalView


def grid_summary(grid: Grid, content: dict[str, Any]) -> dict[str, Any]:
    """The comparison for machines; null = not measured."""
    names, axes, front = content["columns"], content["axes"], content["front"]
    return {
        "format": SUMMARY_FORMAT,
        "name": grid.name,
        "recipe": grid.recipe,
        "command": grid.command,
        "methods": list(grid.methods),
        "seeds": list(grid.seeds),
        "grid": grid.points,
        "seconds": grid.seconds,
        "headline": content["headline"],
        "text": " ".join([content["headline"], *content["sentences"]]),
        "models": {role: _model(view, names) for role, view in reference_views(grid).items()},
        "axes": None if axes is None else dict(zip(("forgetting", "keeping"), map(_axis, axes), strict=True)),
        "groups": [_group(group, names, front if axes else None) for group in content["all_groups"]],
        "costs": [
            {
                "method": row["method"],
                "runs": row["runs"],
                "reference": row["reference"],
                "served": row["served"],
                **{
                    name: {"mean": cost.value, "lowest": cost.lowest, "highest": cost.highest}
                    for name, cost in row["costs"].items()
                },
            }
            for row in content["costs"]
        ],
        "cells": [
            _cell(cell, row, names)
            for cell, row in zip(
                (cell for group in content["all_groups"] for cell in group.cells),
                content["cells"],
                strict=True,
            )
        ],
        "differences": [
            {"setting": key, "values": dict(zip(content["differences"]["heads"], values, strict=True))}
            for key, values in content["differences"]["rows"]
        ],
        "not_measured": content["gaps"],
        "cautions": content["cautions"],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {"metric": axis.name, "better": "higher" if axis.higher_is_better else "lower"}


def _model(view: EvalView, names: list[str]) -> dict[str, Any]:
    return {
        "label": view.label,
        "fingerprint": view.summary.get("fingerprint"),
        "metrics": {name: _number(number_of(view, name)) for name in names},
    }


def _group(group: Group, names: list[str], front: set[int] | None) -> dict[str, Any]:
    return {
        "number": group.number,
        "method": group.method,
        "settings": group.settings,
        "seeds": [cell.seed for cell in group.cells if cell.run is not None],
        "unfinished": [cell.seed for cell in group.cells if cell.run is None],
        "on_front": None if front is None else group.number in front,
        "passes": group.passes
        if any(group.spreads[name].n for name in names if name == "forget_quality")
        else None,
        "metrics": {name: _spread(group.spreads[name]) for name in names},
    }


def _spread(spread: Spread) -> dict[str, Any]:
    keys = ("value", "average", "low", "high", "over", "lowest", "highest", "n")
    return {key: getattr(spread, key) for key in keys}


def _cell(cell: GridCell, row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    view = cell.run.main if cell.run else None
    return {
        "group": row["group"],
        "method": cell.method,
        "seed": cell.seed,
        "settings": cell.settings,
        "recipe": cell.recipe,
        "run": row["folder"] or None,
        "status": cell.status,
        "verdict": cell.verdict.code if cell.verdict else None,
        "seconds": cell.seconds,
        "error": cell.error,
        "log": cell.log,
        "left_out": list(cell.left_out),
        "metrics": {name: _number(number_of(view, name)) for name in names} if view else {},
    }


def _number(cell: Cell) -> dict[str, Any]:
    return {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "note": cell.note}
