"""What can be known to fail in a comparison, found before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from unlearnkit.commands import check_before
from unlearnkit.errors import RecipeError, UserError
from unlearnkit.files import fingerprint
from unlearnkit.grid.plan import Cell, explained
from unlearnkit.recipe import load_recipe
from unlearnkit.run import changed_settings


def check_cells(cells: Sequence[Cell]) -> None:
    """Read every cell's recipe strictly and its data once, and see that its folder is free for it.

    Raises:
        RecipeError: every mistake, one a line.
    """
    problems = _occupied(cells)
    known: set[str] = set()
    for cell in cells:
        try:
            _check(cell, known)
        except UserError as error:
            problems += explained(cell.method, error, cell.settings)
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))


#: Settings of a training that decide what is read, or what may refuse it.
_DECIDE = ("preference", "refusals", "reference", "retain", "retain_streams", "retain_weight")


def _check(cell: Cell, known: set[str]) -> None:
    """One cell; `known` names what the methods before it read, so that data are read once."""
    from unlearnkit.preflight import streams_read, training_args

    recipe = load_recipe(cell.source, cell.overrides)
    plain = recipe.to_dict()
    answers = {key: value for key, value in plain["training"].items() if key in _DECIDE}
    reads = fingerprint(cell.method, plain["data"], plain["evaluation"], plain["model"], answers)
    if reads in known:
        streams_read(recipe, training_args(recipe, tempfile.gettempdir(), on_cpu=True))
        return
    known.add(reads)
    check_before(recipe, on_cpu=True)


def _occupied(cells: Sequence[Cell]) -> list[str]:
    """One line on the folders that hold runs of another recipe, or of other settings."""
    places = []
    for cell in cells:
        run, recipe = cell.run, cell.recipe
        if not run.model.exists() and not any(run.checkpoints.glob("checkpoint-*")):
            continue
        manifest = run.read_manifest()
        made = None if manifest is None else manifest.get("identity", {}).get("recipe")
        if made != recipe.training_fingerprint:
            changed = changed_settings(run.recipe, recipe) or "what it was made with is not known"
            places.append(f"{run.root} ({changed})")
    if not places:
        return []
    what = (
        f"{len(places)} of {len(cells)} cells cannot run, since a run with other settings lies in the folder"
    )
    return [
        f"{what}: {'; '.join(dict.fromkeys(places))}; remove the folder, set UNLEARNKIT_RUNS to another "
        "folder for runs, or give the recipe a `name:` of its own at its top"
    ]
