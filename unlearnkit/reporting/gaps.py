"""What a report must admit: what was not measured, and what the reader has to keep in mind."""

from __future__ import annotations

import json

from unlearnkit.reporting.views import ROLES, EvalView, Metric


def why_missing(metric: Metric) -> str:
    """The reason why a metric has no value, without its "not measured:" and without a full stop."""
    return metric.note.removeprefix("not measured:").removeprefix("n/a:").strip().rstrip(".")


def gaps_in(evaluations: dict[str, EvalView]) -> tuple[str, ...]:
    """What could not be measured, and why: phrases without a full stop."""
    gaps = []
    if "unlearned" in evaluations:
        if "target" not in evaluations:
            gaps.append("the model before unlearning: it was not evaluated, so there is no before and after")
        if "retain" not in evaluations:
            gaps.append(
                "a retain model (one that never saw the forget set): none was evaluated with this run"
            )
    for role in ROLES:
        if role in evaluations:
            for metric in evaluations[role].metrics.values():
                if not metric.measured and role == ("unlearned" if "unlearned" in evaluations else role):
                    reason = why_missing(metric) or "no reason was recorded"
                    gaps.append(f"{metric.title}: {reason}")
    return tuple(gaps)


def cautions_about(evaluations: dict[str, EvalView]) -> tuple[str, ...]:
    """Unscored examples, notes of metrics, and models that were not measured alike."""
    cautions = []
    views = list(evaluations.values())
    for part, what in (("data", "data"), ("template", "prompt template")):
        if len({json.dumps(view.fingerprint(part), sort_keys=True) for view in views}) > 1:
            cautions.append(f"the models were not evaluated with the same {what} (fingerprints differ)")
    for view in views:
        for metric in view.metrics.values():
            if metric.measured and metric.note:
                cautions.append(f"{metric.title}, {view.role} model: {metric.note.rstrip('.')}")
            if metric.unscored:
                shown = ", ".join(metric.unscored[:5]) + (", …" if len(metric.unscored) > 5 else "")
                cautions.append(
                    f"{metric.title}, {view.role} model: {len(metric.unscored)} example(s) could not be "
                    f"scored and are not in the number ({shown})"
                )
    return tuple(cautions)
