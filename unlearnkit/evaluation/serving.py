"""How a combined model (ULD's pair, its relatives) is served: its alpha, and the same networks at others.

Alpha is the weight of all networks but the first, signs aside: 0.75 where ULD's assistant has -0.75.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.models.combined.configuration_combined import alpha_of, weights_for
from unlearnkit.models.load import COMBINED
from unlearnkit.models.load import is_combined as is_combined_folder


def is_combined(model: Any) -> bool:
    """Whether a model consists of several networks, whoever's copy of the code has opened it."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind == COMBINED and not hasattr(model, "peft_config")


def own_alpha(model: Any) -> float:
    """The alpha that a combined model is served with."""
    return alpha_of(model.config)


def weights_at(model: Any, alpha: float) -> dict[str, float]:
    """Role -> weight of a combined model at another alpha."""
    return weights_for(model.config.kind, alpha)


@contextlib.contextmanager
def served_at(model: Any, alpha: float) -> Iterator[None]:
    """The model answers as if it were served with that alpha."""
    before = model.config.weights
    model.config.weights = weights_at(model, alpha)
    try:
        yield
    finally:
        model.config.weights = before


def serving(model: Any) -> dict[str, Any] | None:
    """What a summary says about how a combined model answers; None for any other one.

    What becomes of filtered tokens is said where there is a filter; parameters that two networks share are
    counted in both.
    """
    if not is_combined(model):
        return None
    config = model.config
    rate = config.top_logit_filter or None
    return {
        "kind": config.kind, "alpha": own_alpha(model), "weights": dict(config.weights),
        "top_logit_filter": rate,
        "filtered_likelihoods": "neutral" if rate else None,
        "filtered_generation": model.decoding_options["filtered"] if rate else None,
        "parameters": {
            role: sum(p.numel() for p in network.parameters()) for role, network in model.networks.items()
        },
    }  # fmt: skip


def check_alphas(alphas: Iterable[float], name: str = "alphas") -> list[float]:
    """The alphas, smallest first.

    Raises:
        RecipeError: one that is no number above 0, or the same one twice.
    """
    given = [float(alpha) for alpha in alphas]
    for alpha in given:
        if not 0 < alpha < math.inf:
            raise RecipeError(
                f"{name} holds {alpha:g}; use numbers above 0 (alpha 0 is the target model itself)"
            )
        if given.count(alpha) > 1:
            raise RecipeError(f"{name} holds {alpha:g} twice; leave one of them out")
    return sorted(given)


def refuse_without_alpha(model: Any) -> None:
    """What can be told about a model, or the path of one, before it is loaded.

    Raises:
        ModelError: it is one network, so that there is no alpha to change.
    """
    if isinstance(model, str | Path):  # one on a hub is seen when it is loaded
        fault, what = Path(model).is_dir() and not is_combined_folder(str(model)), str(model)
    else:
        fault, what = not is_combined(model), f"this {type(model).__name__}"
    if fault:
        raise ModelError(
            f"{what} is one model, so there is no alpha to change; leave the alphas out, or give a combined "
            "model, such as a ULD run's"
        )
