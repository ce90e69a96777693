"""What a report is about, and the words that follow from it: forgetting, texts by heart, or mentions.

A suite of the second or third kind measures what a training left in a model, whether or not something was to
be forgotten; what is said of unlearning elsewhere would mislead there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unlearnkit.reporting.views import ROLES, EvalView

FORGETTING, TEXTS, MENTIONS = "forgetting", "texts", "mentions"
_OF_FORGETTING = ("forget_quality", "forget_rouge", "forget_probability", "verbmem_forget")

#: Subject -> role -> (head of a table of numbers, head of a table of answers).
_HEADS = {
    FORGETTING: {
        "target": ("Target (before)", "Before unlearning"),
        "unlearned": ("Unlearned (after)", "After unlearning"),
        "retain": ("Retain", "Retain model"),
    },
    TEXTS: {
        "target": ("Target (before)", "Before"),
        "unlearned": ("This model", "This model"),
        "retain": ("Retain (control)", "Retain model (control)"),
    },
    MENTIONS: {
        "target": ("Target (before)", "Before"),
        "unlearned": ("This model", "This model"),
        "retain": ("Reference", "Reference"),
    },
}


def subject_of(evaluations: Mapping[str, EvalView]) -> str:
    """FORGETTING, TEXTS or MENTIONS, by the metrics of the evaluations of one suite."""
    view = next((evaluations[role] for role in ("unlearned", *ROLES) if role in evaluations), None)
    metrics = {} if view is None else view.metrics
    if any(name in metrics for name in _OF_FORGETTING):
        return FORGETTING
    if "mention_rate" in metrics:
        return MENTIONS
    return TEXTS if "forget_verbatim_exact" in metrics else FORGETTING


def called(views: Iterable[EvalView], view: EvalView) -> str:
    """A model of a suite's evaluations within a sentence."""
    subject = subject_of({one.role: one for one in views})
    if subject != FORGETTING and view.role == "unlearned":
        return "this model"
    return "reference" if subject == MENTIONS and view.role == "retain" else f"{view.role} model"


def heads(evaluations: Mapping[str, EvalView], role: str) -> tuple[str, str]:
    """What a model is called above its numbers, and above its answers."""
    return _HEADS[subject_of(evaluations)][role]
