"""comparison.json: what has become of every cell, written anew whenever one has ended."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnkit.errors import ModelError, UserError
from unlearnkit.files import read_json, write_json
from unlearnkit.grid.plan import Cell, Plan
from unlearnkit.run import RunDir, model_identity, resolve_path

COMPARISON = "comparison.json"
_FORMAT = 1


@dataclass
class Book:
    """What is written about a comparison; finished cells of earlier calls stay in it."""

    plan: Plan
    started: str
    seconds: float
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of the run, as seen from the comparison's folder -> what is said about its cell."""

    @classmethod
    def open(cls, plan: Plan) -> Book:
        """Go on with the book that lies in the plan's folder, or begin one.

        Raises:
            UserError: the folder holds a comparison of something else.
        """
        path, request = plan.folder / COMPARISON, plan.request
        old = read_json(path) if path.exists() else {}
        asked = {"recipe": request.recipe, "grid": _axes(plan), "settings": list(request.settings)}
        if old and (changed := [key for key, value in asked.items() if old.get(key) != value]):
            raise UserError(
                f"{plan.folder} holds another comparison (another {' and '.join(changed)}); choose another "
                "--name, or remove that folder (the runs themselves lie beside it)"
            )
        book = cls(plan, old.get("started") or _now(), float(old.get("seconds") or 0.0))
        before = {entry["run"]: entry for entry in old.get("cells", ())}
        for cell in plan.cells:
            book._take(cell, before.pop(book.place(cell), {}))
        book.entries |= {
            run: entry
            for run, entry in before.items()
            if entry["status"] == "done" and _complete(plan.folder / run)
        }
        return book

    def place(self, cell: Cell) -> str:
        """A cell's run as seen from the comparison's folder."""
        return Path(os.path.relpath(cell.run.root, self.plan.folder)).as_posix()

    def _take(self, cell: Cell, before: dict[str, Any]) -> None:
        done = finished(cell)
        seconds = before.get("seconds") if done else None
        if done and before.get("status") != "done":
            seconds = round(sum((cell.run.read_manifest() or {}).get("seconds", {}).values()), 2)
        self.entries[self.place(cell)] = {
            "method": cell.method, "seed": cell.seed, "settings": dict(cell.settings),
            "recipe": cell.recipe.name, "run": self.place(cell), "status": "done" if done else "pending",
            "seconds": seconds, "error": "",
            "log": before.get("log", ""),
            "left_out": list(cell.left_out),
        }  # fmt: skip

    def log(self, name: str) -> str:
        """The output of a cell or of a needed recipe, as seen from the comparison's folder."""
        return f"cells/{name}.log"

    def is_done(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return bool(self.entries[self.place(cell)]["status"] == "done")

    def note(self, cell: Cell, status: str, *, error: str = "", seconds: float | None = None) -> None:
        """Write down what has become of a cell."""
        entry = self.entries[self.place(cell)]
        entry.update(status=status, error=error)
        if seconds is not None:
            entry.update(seconds=round(seconds, 2), log=self.log(cell.name))
        self.write()

    def write(self, spent: float = 0.0) -> None:
        """Write comparison.json; `spent` are seconds to be added to those of the comparison."""
        self.seconds += spent
        cells = list(self.entries.values())
        methods = list(dict.fromkeys([*self.plan.methods, *(cell["method"] for cell in cells)]))
        seeds = sorted({cell["seed"] for cell in cells})
        request = self.plan.request
        write_json(
            self.plan.folder / COMPARISON,
            {
                "format": _FORMAT, "name": self.plan.folder.name.removeprefix("compare-"),
                "recipe": request.recipe,
                "command": self._command(methods, seeds), "methods": methods, "seeds": seeds,
                "grid": _axes(self.plan), "settings": list(request.settings), "started": self.started,
                "seconds": round(self.seconds, 2), "cells": cells,
            },
        )  # fmt: skip

    def _command(self, methods: list[str], seeds: list[int]) -> str:
        """The command that makes this comparison, cells of earlier calls included."""
        request = self.plan.request
        words = ["unlearnkit", "compare", request.recipe, "--methods", ",".join(methods)]
        words += ["--seeds", ",".join(map(str, seeds))]
        for key, values in request.grid.items():
            words += ["--grid", f"{key}={','.join(map(_written, values))}"]
        words += ["--name", request.name] if request.name is not None else []
        return shlex.join([*words, *request.settings])


def finished(cell: Cell) -> bool:
    """Whether a cell's run lies there, trained as its recipe says it and measured."""
    from unlearnkit.preflight_evaluation import suite_of

    run, recipe = cell.run, cell.recipe
    manifest = run.read_manifest()
    if (
        manifest is None
        or not run.recipe.exists()
        or run.recipe.read_text(encoding="utf-8") != recipe.to_yaml()
    ):
        return False
    try:
        if manifest.get("identity", {}).get("model") != model_identity(resolve_path(recipe.model.path)):
            return False
    except ModelError:
        pass  # the target model was removed since
    suite = suite_of(recipe)
    if suite is None and not recipe.evaluation.also:
        return manifest.get("status") in ("trained", "complete") and run.model.is_dir()
    measured = suite is None or (run.evaluation(suite.name) / "summary.json").exists()
    return manifest.get("status") == "complete" and measured


def _complete(folder: Path) -> bool:
    return (RunDir(folder).read_manifest() or {}).get("status") in ("trained", "complete")


def _axes(plan: Plan) -> dict[str, list[Any]]:
    return {key: list(values) for key, values in plan.request.grid.items()}


def _written(value: Any) -> str:
    """A value as it stands in --grid."""
    import json

    return json.dumps(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
