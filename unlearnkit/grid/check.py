"""What can be known to fail in a comparison, found before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from unlearnkit.commands import check_before
from unlearnkit.errors import RecipeError, UserError
from unlearnkit.files import fingerprint
from unlearnkit.grid.plan import Cell, explained
from unlearnkit.recipe import load_recipe


def check_cells(cells: Sequence[Cell]) -> None:
    """Read every cell's recipe strictly and its data once.

    Raises:
        RecipeError: every mistake, one a line.
    """
    problems: list[str] = []
    known: set[str] = set()
    for cell in cells:
        try:
            _check(cell, known)
        except UserError as error:
            problems += explained(cell.method, error)
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))


def _check(cell: Cell, known: set[str]) -> None:
    """One cell; `known` names what the methods before it read, so that data are read once."""
    from unlearnkit.preflight import streams_read, training_args

    recipe = load_recipe(cell.source, cell.overrides)
    plain = recipe.to_dict()
    reads = fingerprint(cell.method, plain["data"], plain["evaluation"], plain["model"])
    if reads in known:
        streams_read(recipe, training_args(recipe, tempfile.gettempdir(), on_cpu=True))
        return
    known.add(reads)
    check_before(recipe, on_cpu=True)
