"""A recipe's section `serving`: what a combined model is served with; nothing in it changes a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit import lookup
from unlearnkit.errors import RecipeError
from unlearnkit.files import read_json, write_atomic
from unlearnkit.recipe import Recipe

if TYPE_CHECKING:
    from unlearnkit.training.served import Served


def refuse_serving(recipe: Recipe) -> None:
    """Refuse strengths for a method that ends in one model.

    Raises:
        RecipeError: `serving` or `evaluation.alphas` without a combined model.
    """
    if getattr(lookup.method(recipe.method).trainer, "served_kind", None) is not None:
        from unlearnkit.evaluation.serving import check_alphas

        check_alphas(recipe.evaluation.alphas, "evaluation.alphas")
        return
    for key, given in (("serving", recipe.serving), ("evaluation.alphas", recipe.evaluation.alphas)):
        if given:
            raise RecipeError(
                f"{recipe.name}: {key} is set, but the method {recipe.method} ends in one model, which has "
                "no alpha; leave it out, or use a method that is served with its target model, such as uld"
            )


def set_serving(served: Served | None, recipe: Recipe) -> None:
    """Tell what will be served how strongly, where the recipe says so."""
    if served is None:
        return
    served.revision = recipe.model.revision
    spec = recipe.serving
    if spec is not None and spec.alpha is not None:
        served.alpha = spec.alpha
    if spec is not None and spec.top_logit_filter is not None:
        served.top_logit_filter = spec.top_logit_filter


def serving_differs(folder: Path, recipe: Recipe, defaults: Mapping[str, float | None]) -> bool:
    """Whether a saved combination is served otherwise than the recipe says.

    Args:
        defaults: of the method, for what the recipe leaves out; empty if it ends in one model.
    """
    path = folder / "config.json"
    if not defaults or not path.exists():
        return False
    return _as_asked(path, recipe, defaults) != dict(read_json(path))


def change_serving(folder: Path, recipe: Recipe, defaults: Mapping[str, float | None]) -> None:
    """Write what the recipe says into a saved combination."""
    path = folder / "config.json"
    write_atomic(path, json.dumps(_as_asked(path, recipe, defaults), indent=2, sort_keys=True) + "\n")


def _as_asked(path: Path, recipe: Recipe, defaults: Mapping[str, float | None]) -> dict[str, Any]:
    from unlearnkit.models.combined.configuration_combined import weights_for

    spec = recipe.serving
    wanted = {key: getattr(spec, key, None) for key in defaults}
    wanted = {key: defaults[key] if value is None else value for key, value in wanted.items()}
    config: dict[str, Any] = dict(read_json(path))
    changed = dict(config)
    changed["weights"] = weights_for(config["kind"], float(wanted["alpha"] or 0.0))
    changed["top_logit_filter"] = wanted["top_logit_filter"]
    return changed
