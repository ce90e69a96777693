"""From a request to its cells: reads recipes, runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecipeError, UserError
from unlearnkit.files import fingerprint
from unlearnkit.grid.benchmark import Benchmark, Variant, known_settings
from unlearnkit.grid.request import Request
from unlearnkit.recipe import Recipe, load_recipe
from unlearnkit.run import RunDir, is_place, own_settings, run_dir, runs_folder


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a method, a setting and a seed.

    Args:
        source: the recipe as `unlearnkit run` is given it, with `overrides` behind it.
        recipe: what they give.
        left_out: settings of the source that the method does not have.
    """

    name: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    source: str
    overrides: tuple[str, ...]
    recipe: Recipe
    run: RunDir
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The cells of a comparison and the folder of what is said about all of them."""

    request: Request
    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    folder: Path

    @property
    def needs(self) -> list[str]:
        """The recipes that must have run before the cells, each once."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.recipe.needs))

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Method -> settings of the recipe that it does not have."""
        return {cell.method: cell.left_out for cell in self.cells if cell.left_out}


def plan(request: Request) -> Plan:
    """Every cell of a comparison, each once.

    Raises:
        RecipeError: every mistake in the request and in its cells' recipes, one a line.
    """
    benchmark = Benchmark.find(request.recipe)
    methods = request.methods or tuple(benchmark.methods())
    problems: list[str] = []
    variants = []
    for method in methods:
        try:
            variants.append(benchmark.variant(method))
        except RecipeError as error:
            problems.append(str(error))
    lacking = _lacking(variants, request)
    variants = [variant for variant in variants if variant.method not in lacking]
    problems += lacking.values()
    cells: dict[Path, Cell] = {}
    # Seed by seed, so that every method has a number soon.
    for seed in request.seeds:
        for variant in variants:
            for settings in request.combinations():
                try:
                    cell = _cell(variant, settings, seed, request)
                except RecipeError as error:
                    problems += explained(variant.method, error, settings)
                    continue
                other = cells.setdefault(cell.run.root, cell)
                if other.recipe != cell.recipe:
                    problems.append(
                        f"{cell.run.root} would hold two runs, {other.name} and {cell.name}; take "
                        "`output` out of the recipe"
                    )
    if problems:
        problems += _settings(variants, request)
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return Plan(request, methods, _named(list(cells.values())), folder_of(request))


def _settings(variants: Sequence[Variant], request: Request) -> list[str]:
    """What the methods' configs say against the cells' settings."""
    problems: list[str] = []
    for variant in variants:
        for settings in request.combinations():
            try:
                load_recipe(variant.recipe, _overrides(variant, settings, request.seeds[0], request))
            except RecipeError as error:
                problems += explained(variant.method, error, settings)
    return problems


def _lacking(variants: Sequence[Variant], request: Request) -> dict[str, str]:
    """Method -> what to do about a setting that it lacks and another method has (else it is misspelt)."""
    asked = {key: f"--grid {key} varies it" for key in request.grid}
    asked |= {key: f"{key} is set for all" for key in (one.partition("=")[0] for one in request.settings)}
    asked = {key: how for key, how in asked.items() if key.startswith("training.")}
    known = {variant.method: known_settings(variant) for variant in variants if asked}
    problems: dict[str, str] = {}
    for key, how in asked.items():
        name = key.split(".")[1]
        having = [method for method, names in known.items() if name in names]
        for method in known.keys() - having if having else ():
            if known[method]:
                problems[method] = (
                    f"{method} has no setting {name!r}, and {how} ({', '.join(having)} can have it); leave "
                    f"{method} out, or compare the others in a comparison of their own"
                )
    return problems


def explained(method: str, error: UserError, axes: Collection[str] = ()) -> list[str]:
    """The lines of a recipe's mistakes; what is wrong with an override is said of its method.

    Args:
        axes: settings that the grid varies; one that is unknown is so with every value, and said once.
    """
    lines = []
    for line in str(error).splitlines():
        found = re.match(r"override (['\"])([^=]+)=.*?\1: (unknown key .*)", line)
        if found and found[2] in axes:
            lines.append(f"{method}: --grid {found[2]}: {found[3]}")
        else:
            lines.append(f"{method}: {line}" if line.startswith("override") else line)
    return lines


def folder_of(request: Request) -> Path:
    """`runs/compare-NAME`: by default the recipe's name, with a short hash of grid and settings.

    Methods and seeds do not count, so that a comparison grows when more of them are named.
    """
    name = request.name
    if name is None:
        path = Path(request.recipe).expanduser()
        own = path.suffix in (".yaml", ".yml") or request.recipe.startswith((".", "/", "~"))
        name = (path.resolve().stem if path.suffix else path.resolve().name) if own else path.as_posix()
        told = [o for o in request.settings if not is_place(o)]
        if told or request.grid:
            name += f"-{fingerprint(sorted(told), dict(request.grid))[:6]}"
    slug = re.sub(r"[^\w.=+@-]+", "-", name).strip("-.")
    return runs_folder() / f"compare-{slug}"


def _cell(variant: Variant, settings: Mapping[str, Any], seed: int, request: Request) -> Cell:
    overrides = _overrides(variant, settings, seed, request)
    recipe = load_recipe(variant.recipe, overrides, check_training=False)
    own = own_settings(variant.recipe, overrides)
    short = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    name = "-".join(filter(None, (variant.method, short, f"seed{seed}")))
    return Cell(
        re.sub(r"[^\w.=+-]+", "_", name), variant.method, seed, dict(settings), variant.recipe,
        (*own, *(o for o in overrides if is_place(o))), recipe, run_dir(recipe, own), variant.left_out,
    )  # fmt: skip


def _overrides(variant: Variant, settings: Mapping[str, Any], seed: int, request: Request) -> list[str]:
    chosen = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [*variant.overrides, *request.settings, *chosen, f"seed={seed}"]


def _named(cells: list[Cell]) -> tuple[Cell, ...]:
    """Cells whose short names are equal are called after their runs' folders."""
    names = [cell.name for cell in cells]
    return tuple(c if names.count(c.name) == 1 else replace(c, name=c.run.root.name) for c in cells)
