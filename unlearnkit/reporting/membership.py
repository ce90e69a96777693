"""Membership attacks in a report: which numbers are AUCs, their ROC curves, and the sentence of the verdict.

An AUC here is the chance that a holdout example looks less familiar to the model than a forget example:
0.5 = an attacker can only guess, 1 = every forget example gives itself away, near 0 = the forget examples
stand out the other way, as text that was pushed away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from unlearnkit.reporting.numbers import number
from unlearnkit.reporting.views import EvalView, Metric, RunView

TPRS = (
    ("tpr_1", "tpr_at_1_fpr", "hit rate at 1 % false alarms (TPR at 1 % FPR)"),
    ("tpr_01", "tpr_at_01_fpr", "hit rate at 0.1 % false alarms (TPR at 0.1 % FPR)"),
)
"""Suffix of the row's name, key in the metric's `extra`, title."""
VISIBLE = 0.15
"""From an AUC this far from the retain model's (from 0.5 where there is none) on, the verdict counts
membership as visible: a model that never saw the examples lies between 0.35 and 0.65 on sets of some tens of
examples, so that a smaller distance says nothing."""
_KNOWS = {
    "loss": "the loss",
    "zlib": "the loss for the length of the compressed text",
    "min_k": "the least likely words (Min-K)",
    "min_k_pp": "the least likely words, normalised (Min-K++)",
    "reference": "the loss compared with the retain model's",
    "gradient_norm": "the size of the gradient",
}


def is_auc(metric: Metric) -> bool:
    """Whether a metric is the AUC of a membership attack."""
    return isinstance(metric.extra.get("roc"), dict) or "tpr_at_1_fpr" in metric.extra


def aucs(view: EvalView) -> dict[str, Metric]:
    """The measured AUCs of an evaluation, by name."""
    return {name: metric for name, metric in view.metrics.items() if metric.measured and is_auc(metric)}


def roc_curves(evaluations: Mapping[str, EvalView]) -> list[dict[str, Any]]:
    """Every recorded ROC curve, those of one attack side by side; `fpr` and `tpr` run from 0 to 1."""
    names = dict.fromkeys(name for view in evaluations.values() for name in aucs(view))
    found = []
    for name in names:
        for role, view in evaluations.items():
            metric = aucs(view).get(name)
            curve = metric.extra.get("roc") if metric else None
            if metric and isinstance(curve, dict):
                found.append(
                    {
                        "metric": name,
                        "title": metric.title,
                        "role": role,
                        "label": view.title,
                        "auc": metric.value,
                        "fpr": list(curve.get("fpr") or ()),
                        "tpr": list(curve.get("tpr") or ()),
                    }
                )
    return found


def _usual(run: RunView, metric: Metric) -> float | None:
    """The AUC of a model that never saw the forget set, on the same examples; None where it is not known."""
    recorded = metric.extra.get("retain_auc")
    if isinstance(recorded, int | float):
        return float(recorded)
    other = aucs(run.retain).get(metric.name) if run.retain else None
    # With the retain model as the reference, its own score is 0 everywhere: no comparison.
    return other.value if other and attack_of(metric) != "reference" else None


def attack_of(metric: Metric) -> str:
    """ "loss", "zlib", ... as the metric's variant names it; "" where it names none."""
    match = re.search(r"attack '(\w+)'", metric.variant)
    return match.group(1) if match else ""


def strongest(run: RunView) -> Metric | None:
    """The attack on the unlearned model whose AUC is farthest from what a model without memory has."""
    found = aucs(run.unlearned).values() if run.unlearned else ()
    return max(found, key=lambda metric: _distance(run, metric), default=None)


def _distance(run: RunView, metric: Metric) -> float:
    usual = _usual(run, metric)
    return abs(metric.value - (0.5 if usual is None else usual))


def is_visible(run: RunView) -> bool:
    """Whether an attack tells that the forget set was trained on: further from the retain model than its
    interval and VISIBLE allow for. Without a retain model nothing tells training from other differences."""
    metric = strongest(run)
    return metric is not None and _usual(run, metric) is not None and _stands_out(run, metric)


def _stands_out(run: RunView, metric: Metric) -> bool:
    if _distance(run, metric) < VISIBLE:
        return False
    usual = _usual(run, metric)
    base = 0.5 if usual is None else usual
    return not metric.low <= base <= metric.high  # NaN, no interval: visible


def sentences(run: RunView) -> list[str]:
    """What the verdict says about membership."""
    metric = strongest(run)
    if metric is None or run.unlearned is None:
        return ["Whether one can tell that it was trained on these examples (membership) was not tested."]
    interval = "" if math.isnan(metric.low) else f" (interval {number(metric.low)} to {number(metric.high)})"
    how = _KNOWS.get(attack_of(metric), metric.title)
    usual, before = _usual(run, metric), aucs(run.target).get(metric.name) if run.target else None
    compared = ["0.5 is guessing"]
    if before is not None:
        compared.append(f"before unlearning {number(before.value)}")
    if usual is not None:
        compared.append(f"a model that never saw them {number(usual)}")
    elif metric.weaker:
        compared.append("without a retain model to compare with this is weaker evidence")
    text = (
        f"Membership: an attacker who guesses from {how} tells forget from holdout examples with "
        f"AUC {number(metric.value)}{interval}; {', '.join(compared)}."
    )
    if is_visible(run):
        text += " So it can still be told that these examples had a part in its training."
    elif usual is None and _stands_out(run, metric):
        text += (
            " The two sets can be told apart, but without a retain model this may lie in the texts "
            "themselves and not in the training: no conclusion."
        )
    return [text]
