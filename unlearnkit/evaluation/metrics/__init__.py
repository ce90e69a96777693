"""Metrics: pure functions of records.

A suite names them by kind. Each is called as `KINDS[kind](run, dataset=..., retain=..., **options)` and
returns a `MetricResult`; `options_of(kind)` gives the options it takes and their defaults. `formulas` has the
bare arithmetic.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from unlearnkit.evaluation.metrics import formulas
from unlearnkit.evaluation.metrics.excess import verbatim_excess
from unlearnkit.evaluation.metrics.fluency import distinct_n, judged_logp, repetition
from unlearnkit.evaluation.metrics.indications import paraphrase_preference
from unlearnkit.evaluation.metrics.leakage import sampled_leakage
from unlearnkit.evaluation.metrics.likelihood import (
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratios,
)
from unlearnkit.evaluation.metrics.membership import member_scores, membership
from unlearnkit.evaluation.metrics.memorization import exact_memorization, extraction_strength
from unlearnkit.evaluation.metrics.mentions import (
    low_risk_logp,
    low_risk_logp_gap,
    mention_rate,
    rouge_without_terms,
)
from unlearnkit.evaluation.metrics.privleak import privleak
from unlearnkit.evaluation.metrics.recovery import recovered_share
from unlearnkit.evaluation.metrics.result import MetricResult
from unlearnkit.evaluation.metrics.rouge import rouge, rouge_l
from unlearnkit.evaluation.metrics.tasks import task_score
from unlearnkit.evaluation.metrics.tofu import PARTS, forget_quality, model_utility
from unlearnkit.evaluation.metrics.verbatim import (
    first_departure,
    longest_common_substring,
    verbatim_exact,
    verbatim_rouge,
)

KINDS: dict[str, Callable[..., MetricResult]] = {
    "probability": probability,
    "normalised_probability": normalised_probability,
    "truth_ratio": truth_ratio,
    "rouge": rouge,
    "forget_quality": forget_quality,
    "model_utility": model_utility,
    "repetition": repetition,
    "distinct_n": distinct_n,
    "judged_logp": judged_logp,
    "exact_memorization": exact_memorization,
    "extraction_strength": extraction_strength,
    "verbatim_rouge": verbatim_rouge,
    "verbatim_exact": verbatim_exact,
    "verbatim_excess": verbatim_excess,
    "longest_common_substring": longest_common_substring,
    "first_departure": first_departure,
    "mention_rate": mention_rate,
    "low_risk_logp": low_risk_logp,
    "low_risk_logp_gap": low_risk_logp_gap,
    "rouge_without_terms": rouge_without_terms,
    "sampled_leakage": sampled_leakage,
    "paraphrase_preference": paraphrase_preference,
    "membership": membership,
    "privleak": privleak,
    "task_score": task_score,
}


def options_of(kind: str) -> dict[str, Any]:
    """The options of a kind of metric and their defaults, without the records and the data set."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return {item.name: item.default for item in parameters if item.name not in ("run", "dataset", "retain")}


def hints_of(kind: str) -> dict[str, Any]:
    """The types of the options of a kind of metric."""
    hints = typing.get_type_hints(KINDS[kind])
    return {name: hints.get(name, Any) for name in options_of(kind)}


__all__ = [
    "KINDS",
    "PARTS",
    "MetricResult",
    "distinct_n",
    "exact_memorization",
    "extraction_strength",
    "first_departure",
    "forget_quality",
    "formulas",
    "hints_of",
    "judged_logp",
    "longest_common_substring",
    "low_risk_logp",
    "low_risk_logp_gap",
    "member_scores",
    "membership",
    "mention_rate",
    "model_utility",
    "normalised_probability",
    "options_of",
    "paraphrase_preference",
    "privleak",
    "probability",
    "recovered_share",
    "repetition",
    "rouge",
    "rouge_l",
    "rouge_without_terms",
    "sampled_leakage",
    "truth_ratio",
    "truth_ratios",
    "verbatim_exact",
    "verbatim_excess",
    "verbatim_rouge",
]
