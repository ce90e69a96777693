"""Reading the evaluations at other alphas inside the evaluation folder of a combination: alphas/0.5.

alphas/alphas.json is written last: whose model it was, and which alphas there are. The model's own alpha is
among them and has no folder, since the evaluation around it is that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecordsError
from unlearnkit.reporting.read import json_object, load_metrics
from unlearnkit.reporting.serving import serving_of
from unlearnkit.reporting.views import AlphaView, EvalView

FOLDER = "alphas"
"""The folder of the evaluations at other alphas, inside an evaluation folder."""
LIST = "alphas.json"


def load_alphas(view: EvalView | None) -> tuple[tuple[AlphaView, ...], tuple[str, ...]]:
    """The evaluations of one model at all its alphas, its own included, and cautions about what was left out.

    Returns:
        the alphas, smallest first, empty where none but its own was measured; the cautions, without a full
        stop.

    Raises:
        RecordsError: the list or an evaluation that it names cannot be read.
    """
    if view is None or not (view.folder / FOLDER).is_dir():
        return (), ()
    path, own = view.folder / FOLDER / LIST, view.summary.get("fingerprint")
    written = json_object(path) if path.exists() else {}
    if not own or written.get("of") != own:
        return (), (
            f"{view.folder.name}/{FOLDER} belongs to another model or was not finished, and is left out; "
            "evaluate the alphas again",
        )
    served = serving_of(view)
    found = []
    for alpha in _listed(written.get("alphas"), path):
        if served is not None and alpha == served.alpha:
            summary, metrics = view.summary, view.metrics
        else:
            summary, metrics = load_metrics(view.folder / FOLDER / str(alpha))
        found.append(AlphaView(alpha, metrics, summary))
    return (tuple(found) if len(found) > 1 else ()), ()


def _listed(values: Any, path: Path) -> list[float]:
    is_list = isinstance(values, list) and values
    if not is_list or not all(isinstance(one, int | float) and math.isfinite(one) for one in values):
        raise RecordsError(f"{path} does not list the alphas; delete it and evaluate the alphas again")
    return sorted({float(one) for one in values})
