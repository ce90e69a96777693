"""What a comparison was asked for: a recipe, methods, seeds, a grid of settings, settings for all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearnkit.errors import RecipeError
from unlearnkit.yamlfile import parse_yaml

_OTHERWISE = {
    "seed": "write --seeds 0,1,2",
    "method": "write --methods npo,rpo",
    "name": "leave it out; every cell's run is named after its recipe and settings",
    "output": "leave it out; every cell's run has a folder of its own",
    "needs": "leave it out; the recipes say what they need",
}


@dataclass(frozen=True)
class Request:
    """A comparison as it is asked for.

    Args:
        recipe: a benchmark (a folder of recipes) or one recipe.
        methods: methods, or stems of the benchmark's recipes; empty: the recipe's own, or all of a folder.
        seeds: one run of every method and setting for each.
        grid: dotted setting -> its values; every combination is run.
        settings: overrides for all cells, such as "training.bf16=false".
        name: the folder is runs/compare-NAME; by default it is named after the recipe, grid and settings.
    """

    recipe: str
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        problems = [*_refused(self.grid, "--grid"), *_refused(map(_key, self.settings), "the setting")]
        problems += [
            f"{key} is a setting for all and an axis of the grid as well; keep one of them"
            for key in map(_key, self.settings)
            if key in self.grid
        ]
        problems += [
            f"--grid {key} varies what is measured, but a run is measured in one way; compare suites with "
            f"{key}=VALUE for all, in comparisons of their own"
            for key in self.grid
            if key.split(".")[0] == "evaluation"
        ]
        problems += [
            f"--grid {key} has no values; write --grid {key}=a,b" for key in self.grid if not self.grid[key]
        ]
        if not self.seeds:
            problems.append("no seed is given; write --seeds 0,1,2")
        if problems:
            raise RecipeError("\n".join(problems))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grid's values, each once; one empty one where there is no grid."""
        values = [_unique(self.grid[key]) for key in self.grid]
        for chosen in itertools.product(*values):
            yield dict(zip(self.grid, chosen, strict=True))


def read_request(
    recipe: str, methods: str | None = None, seeds: str = "0", grid: Sequence[str] = (),
    settings: Sequence[str] = (), name: str | None = None,
) -> Request:  # fmt: skip
    """A request from the texts of a command line.

    Raises:
        RecipeError: every mistake in them, one a line.
    """
    problems: list[str] = []
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, values = _axis(text, problems)
        if key in axes:
            problems.append(f"--grid {key} is given twice; write all of its values in one --grid")
        axes[key] = values
    numbers = _list(seeds, "--seeds", problems)
    if any(type(one) is not int or one < 0 for one in numbers):
        problems.append(f"--seeds {seeds!r} must be whole numbers from 0 on, such as 0,1,2")
    names = [one.strip() for one in (methods or "").split(",")] if methods is not None else []
    if methods is not None and not all(names):
        problems.append(f"--methods {methods!r} has an empty name; write --methods npo,rpo")
    if problems:
        raise RecipeError("\n".join(problems))
    return Request(recipe, tuple(_unique(names)), tuple(_unique(numbers)), axes, tuple(settings), name)


def _axis(text: str, problems: list[str]) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        problems.append(f"--grid {text!r} is not key=values; write --grid training.learning_rate=1e-3,2e-3")
        return key, []
    return key, _list(values, f"--grid {key}", problems)


def _list(text: str, what: str, problems: list[str]) -> list[Any]:
    """Values with commas between them, each as YAML."""
    if not text.strip():
        problems.append(f"{what} has no values; write them with commas between them")
        return []
    parsed = parse_yaml(f"[{text}]", what, numbered=False)
    problems += parsed.problems
    return list(parsed.values.get("") or [])


def _refused(keys: Any, what: str) -> list[str]:
    return [f"{what} {key} cannot be used here; {_OTHERWISE[key]}" for key in keys if key in _OTHERWISE]


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _unique(values: Sequence[Any]) -> list[Any]:
    """Each value once, in the order given; 1 and True are two values."""
    return list({repr(value): value for value in values}.values())
