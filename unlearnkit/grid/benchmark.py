"""Which recipe a method is run with: its own in the benchmark, else the given one, its method replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearnkit import lookup, shipped
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import load_recipe
from unlearnkit.run import shown_source
from unlearnkit.strict import did_you_mean, field_hints
from unlearnkit.yamlfile import read_document

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Variant:
    """A recipe as `unlearnkit run` is given it, for one method.

    `left_out` are settings of the recipe that the method does not have.
    """

    method: str
    recipe: str
    overrides: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A folder of recipes, a method each, and the one that was named, if one was."""

    folder: Path
    base: Path | None = None

    @classmethod
    def find(cls, text: str) -> Benchmark:
        """The benchmark of a folder's or a recipe's name.

        Raises:
            RecipeError: there is neither; the message names the nearest one.
        """
        own = [Path(text).expanduser()]
        found = [folder / text for folder in shipped.folders("recipes")]
        for place in own + found if text.startswith((".", "/", "~")) else found + own:
            if text and place.is_dir():
                return cls(place)
        try:
            path = shipped.find("recipes", text)
        except RecipeError:
            recipes = shipped.available("recipes")
            names = [*recipes, *{name.rpartition("/")[0] for name in recipes if "/" in name}]
            raise RecipeError(
                f"there is neither a recipe nor a benchmark {text!r}{did_you_mean(text, names)} (see "
                "`unlearnkit ls recipes`; your own are given as a folder's path, or a file's with .yaml)"
            ) from None
        return cls(path.parent, path)

    @cached_property
    def recipes(self) -> dict[str, Path]:
        """The recipes that lie in the folder, by their stems."""
        return {path.stem: path for path in sorted(self.folder.iterdir()) if path.suffix in _YAML}

    def methods(self) -> list[str]:
        """What is compared when nothing is named: the recipe's own method, or every recipe that unlearns.

        Raises:
            RecipeError: there is none.
        """
        if self.base is not None:
            method = _values(self.base).get("method")
            return [str(method)]
        found = [stem for stem, path in self.recipes.items() if _unlearns(_values(path))]
        if not found:
            raise RecipeError(
                f"{self.folder} holds no recipe that unlearns; name a folder of recipes, or one recipe"
            )
        return found

    def variant(self, method: str) -> Variant:
        """The recipe for a method.

        Raises:
            RecipeError: there is none, and none whose method could be replaced; or it unlearns nothing.
        """
        if self.base is not None and method in (self.base.stem, _values(self.base).get("method")):
            return Variant(method, _given(self.base))
        own = self.recipes.get(method)
        if "sft" in (method, own and _values(own).get("method")):
            raise RecipeError(f"{method} makes target and retain models and unlearns nothing; leave it out")
        if own is not None:
            return Variant(method, _given(own))
        if self.base is None:
            raise self._no_recipe(method)
        return _replaced(self.base, method)

    def _no_recipe(self, method: str) -> RecipeError:
        """What is said of a method that a folder has no recipe for."""
        own = self.methods()
        other = _given(self.recipes["npo" if "npo" in own else own[0]])
        if "." in method or method in lookup.methods():
            remedy = (
                "leave it out, or run it with another method's settings: "
                f"`unlearnkit compare {other} --methods {method}`"
            )
        else:
            names = [*own, *lookup.methods()]
            remedy = did_you_mean(method, names).removeprefix("; ") or f"it has {', '.join(own)}"
        return RecipeError(f"{Path(other).parent} has no recipe for {method!r}; {remedy}")


def known_settings(variant: Variant) -> set[str]:
    """What `training` may hold for a variant; empty where its recipe cannot be read."""
    try:
        method = load_recipe(variant.recipe, variant.overrides, check_training=False).method
        return set(field_hints(lookup.method(method).config))
    except RecipeError:
        return set()


def _values(path: Path) -> dict[str, Any]:
    return read_document(path).values


def _unlearns(values: Mapping[str, Any]) -> bool:
    """Whether a recipe changes a model that there is, and does not make or fine-tune one."""
    model = values.get("model")
    created = isinstance(model, dict) and model.get("create") is not None
    return values.get("method") not in ("sft", None) and not created


def _given(path: Path) -> str:
    """How a command names a recipe: a shipped one by its name, else by its path."""
    return str(shown_source(path))


def _replaced(base: Path, method: str) -> Variant:
    """The given recipe with another method, without the settings that this one does not have.

    What the recipe's own method does not know either is a mistake, and is left to be found.
    """
    values = _values(base)
    name, training = values.get("name") or shipped.name_of("recipes", base), values.get("training")
    known = field_hints(lookup.method(method).config)
    before = field_hints(lookup.method(str(values.get("method"))).config)
    folder = str(name).rpartition("/")[0] or str(name)
    overrides = [f"method={json.dumps(method)}", f"name={json.dumps(f'{folder}/{method}')}"]
    if values.get("output") is not None:
        overrides.append("output=null")
    left_out: list[str] = []
    if isinstance(training, dict):
        left_out = [key for key in training if key in before and key not in known]
        kept = {key: value for key, value in training.items() if key not in left_out}
        overrides += [f"training={json.dumps(kept)}"] if left_out else []
    return Variant(method, _given(base), tuple(overrides), tuple(f"training.{key}" for key in left_out))
