"""Metrics: pure functions of records.

A suite names them by kind. Each is called as `KINDS[kind](run, dataset=..., retain=..., **options)` and
returns a `MetricResult`; `options_of(kind)` gives the options it takes and their defaults. `formulas` has the
bare arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from unlearnkit.evaluation.metrics import formulas
from unlearnkit.evaluation.metrics.fluency import distinct_n, repetition
from unlearnkit.evaluation.metrics.likelihood import (
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratios,
)
from unlearnkit.evaluation.metrics.result import MetricResult
from unlearnkit.evaluation.metrics.rouge import rouge, rouge_l
from unlearnkit.evaluation.metrics.tofu import PARTS, forget_quality, model_utility

KINDS: dict[str, Callable[..., MetricResult]] = {
    "probability": probability,
    "normalised_probability": normalised_probability,
    "truth_ratio": truth_ratio,
    "rouge": rouge,
    "forget_quality": forget_quality,
    "model_utility": model_utility,
    "repetition": repetition,
    "distinct_n": distinct_n,
}


def options_of(kind: str) -> dict[str, Any]:
    """The options of a kind of metric and their defaults, without the records and the data set."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return {item.name: item.default for item in parameters if item.name not in ("run", "dataset", "retain")}


__all__ = [
    "KINDS",
    "PARTS",
    "MetricResult",
    "distinct_n",
    "forget_quality",
    "formulas",
    "model_utility",
    "normalised_probability",
    "options_of",
    "probability",
    "repetition",
    "rouge",
    "rouge_l",
    "truth_ratio",
    "truth_ratios",
]
