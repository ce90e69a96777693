"""What each of several runs serves, side by side: one model, a model under an adapter, or a combination."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlearnkit.reporting.distilled import Near, distilled_from, nearness
from unlearnkit.reporting.numbers import MISSING, count, number, percent
from unlearnkit.reporting.serving import serving
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.views import RunView

TITLE = "What is served"
LEAD = (
    "What answers the questions of each run, and how large it is. Parameters that two networks share are "
    "counted in both. Unchanged weights still hold what was to be forgotten."
)
ONE_MODEL, UNDER_ADAPTER = "one model", "one model under an adapter"


def served_rows(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """The rows of the table; empty where every run serves one model whose weights were changed."""
    if not any(serving(run) is not None or distilled_from(run) for run in runs):
        return []
    rows = (
        ("Served", [Cell(served_as(run)) for run in runs]),
        ("Distilled from", [Cell(distilled_from(run) or MISSING) for run in runs]),
        ("Weights of the model that was to forget", [Cell(_weights(run)) for run in runs]),
        ("Parameters in all", [_size(_served_size(run)) for run in runs]),
        ("Parameters trained", [_size(_model(run).get("trainable")) for run in runs]),
        *_near_rows(runs),
    )
    return [
        {"title": title, "cells": cells} for title, cells in rows if any(one.text != MISSING for one in cells)
    ]


def _near_rows(runs: Sequence[RunView]) -> list[tuple[str, list[Cell]]]:
    """How near each distilled run came to what it was to match, and how near the target model was."""
    found = [{one.where: one for one in nearness(run)} for run in runs]
    return [
        (
            f"KL to what was distilled, {where} (nats a token)",
            [_near(one.get(where)) for one in found],
        )
        for where in dict.fromkeys(where for one in found for where in one)
    ]


def _near(one: Near | None) -> Cell:
    if one is None or math.isnan(one.kl):
        return Cell(MISSING)
    before = f"target model {number(one.kl_before)}, at {percent(one.same_before)}"
    return Cell(f"{number(one.kl)}, same token at {percent(one.same)}", one.kl, before, round(one.tokens))


def served_as(run: RunView) -> str:
    """ "pair, alpha 0.75, filter 0.01", "one model", ..."""
    served = serving(run)
    if served is not None:
        return served.short
    return UNDER_ADAPTER if _is_adapter(run) else ONE_MODEL


def _weights(run: RunView) -> str:
    if serving(run) is not None:
        return "unchanged"
    return "unchanged under the adapter, until it is merged" if _is_adapter(run) else "changed"


def _is_adapter(run: RunView) -> bool:
    model = run.recipe.get("model")
    return bool(distilled_from(run) or (isinstance(model, Mapping) and model.get("lora")))


def _served_size(run: RunView) -> Any:
    served = serving(run)
    return _model(run).get("parameters") if served is None else sum(served.parameters.values()) or None


def _model(run: RunView) -> Mapping[str, Any]:
    model = run.manifest.get("model")
    return model if isinstance(model, Mapping) else {}


def _size(value: Any) -> Cell:
    return Cell(count(value), float(value)) if isinstance(value, int | float) else Cell(MISSING)
