"""Reading a comparison: `comparison.json`, and the run of each of its finished cells.

A cell is one run: one method with one seed at one point of the grid of settings. What is read is kept small,
since a comparison may hold a hundred runs: of the records one row per data set and probe is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecordsError
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.load import load_run
from unlearnkit.reporting.numbers import MISSING
from unlearnkit.reporting.read import COMPARISON, json_object
from unlearnkit.reporting.verdict import Verdict, verdict_of
from unlearnkit.reporting.views import EvalView, RunView

SUPPORTED_FORMAT = 1
STATUSES = ("done", "failed", "pending", "skipped")


@dataclass(frozen=True)
class GridCell:
    """One run of a comparison; `run` is None where it is not finished or cannot be read."""

    method: str
    seed: int
    settings: dict[str, Any]
    status: str
    folder: Path | None
    recipe: str = ""
    seconds: float | None = None
    error: str = ""
    log: str = ""
    left_out: tuple[str, ...] = ()
    run: RunView | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Grid:
    """A comparison: what was asked for, and its cells in the order of methods, settings and seeds."""

    folder: Path
    name: str
    recipe: str
    command: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    points: dict[str, list[Any]]
    started: str
    seconds: float | None
    cells: tuple[GridCell, ...]

    @property
    def runs(self) -> list[RunView]:
        """The runs that are there."""
        return [cell.run for cell in self.cells if cell.run is not None]


def load_grid(folder: str | Path) -> Grid:
    """Read a comparison.

    Args:
        folder: holds comparison.json. Runs named there by relative paths are looked for from here.

    Raises:
        RecordsError: the file is missing, half-written, of an unknown format or without cells. A run that
            cannot be read makes its cell a failed one.
    """
    folder = Path(folder)
    path = folder / COMPARISON
    found = json_object(path)
    if found.get("format") != SUPPORTED_FORMAT:
        raise RecordsError(
            f"{path} has format {found.get('format')!r}, this version reads {SUPPORTED_FORMAT}; run the "
            "comparison again with this version"
        )
    try:
        cells = [_cell(entry, folder) for entry in found["cells"]]
        methods = tuple(
            dict.fromkeys([*map(str, found.get("methods") or ()), *sorted(c.method for c in cells)])
        )
        points = {str(key): list(values) for key, values in (found.get("grid") or {}).items()}
        seeds = tuple(sorted({cell.seed for cell in cells}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read ({type(error).__name__}: {error}); run the comparison again, which keeps "
            "the cells that are finished"
        ) from None
    if not cells:
        raise RecordsError(f"{path} has no cells; run the comparison first")
    cells.sort(key=lambda cell: (methods.index(cell.method), _place(cell.settings, points), cell.seed))
    return Grid(
        folder,
        str(found.get("name") or folder.resolve().name),
        str(found.get("recipe") or ""),
        str(found.get("command") or ""),
        methods,
        seeds,
        points,
        str(found.get("started") or ""),
        found.get("seconds"),
        tuple(cells),
    )


def _cell(entry: Mapping[str, Any], folder: Path) -> GridCell:
    status = str(entry["status"])
    if status not in STATUSES:
        raise ValueError(f"the status {status!r} is none of {', '.join(STATUSES)}")
    cell = GridCell(
        str(entry["method"]),
        int(entry["seed"]),
        dict(entry.get("settings") or {}),
        status,
        folder / str(entry["run"]) if entry.get("run") else None,
        str(entry.get("recipe") or ""),
        entry.get("seconds"),
        str(entry.get("error") or ""),
        str(entry.get("log") or ""),
        tuple(str(item) for item in entry.get("left_out") or ()),
    )
    if status != "done":
        return cell
    try:
        if cell.folder is None:
            raise RecordsError("the comparison does not say where the run is")
        run = load_run(cell.folder)
        verdict = verdict_of(run, attacks_of(run) if run.attacks else [])
    except RecordsError as error:
        return replace(cell, status="failed", error=f"the run is finished but cannot be read: {error}")
    return replace(cell, run=_slim(run), verdict=verdict)


def _slim(run: RunView) -> RunView:
    """The run without its answers: what a report on many runs needs of each."""
    return replace(
        run,
        main=_first_rows(run.main),
        evaluations={role: _first_rows(view) for role, view in run.evaluations.items()},
        log=[],
        trajectory=[],
        alphas=(),
        attacks=tuple(
            replace(stage, evaluations={role: _first_rows(view) for role, view in stage.evaluations.items()})
            for stage in run.attacks
        ),
        others={
            suite: {role: _first_rows(view) for role, view in models.items()}
            for suite, models in run.others.items()
        },
    )


def _first_rows(view: EvalView) -> EvalView:
    return replace(view, records=view.records.drop_duplicates(["dataset", "probe"]).copy())


def _place(settings: Mapping[str, Any], points: Mapping[str, list[Any]]) -> list[tuple[int, str]]:
    """Where a point lies in the grid, in the order in which its values were asked for."""
    keys = [*points, *sorted(settings.keys() - points.keys())]
    return [_rank(settings.get(key), points.get(key, [])) for key in keys]


def _rank(value: Any, values: list[Any]) -> tuple[int, str]:
    return (values.index(value) if value in values else len(values), setting(value))


def setting(value: Any) -> str:
    """A value of a setting as it is written in a table."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    return value if isinstance(value, str) else json.dumps(value, default=str)
