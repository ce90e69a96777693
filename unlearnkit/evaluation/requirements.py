"""What a suite cannot do without, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnkit.errors import DataError
from unlearnkit.evaluation.suite import MetricSpec, Suite

#: Kinds of metrics that read wrong answers beside the right one.
_NEED_WRONG_ANSWERS = {"truth_ratio", "forget_quality", "normalised_probability", "paraphrase_preference"}

#: Kinds of metrics that are a difference to the retain model's records.
_DIFFERENCES = {"forget_quality", "verbatim_excess", "low_risk_logp_gap"}
#: A further data set that a kind of metric reads: the option that names it, and its default.
_FURTHER = {
    **dict.fromkeys(("membership", "privleak"), ("holdout", "holdout")),
    **dict.fromkeys(
        ("mention_rate", "low_risk_logp", "low_risk_logp_gap", "rouge_without_terms"), ("terms", "terms")
    ),
}


def needs_retain(spec: MetricSpec) -> bool:
    """Whether a metric says nothing without the retain model's records."""
    return spec.kind in _DIFFERENCES or (
        spec.kind == "membership" and spec.options.get("attack") == "reference"
    )


def further_set(spec: MetricSpec) -> str | None:
    """The data set that a metric reads beside its own: a holdout, a list of terms; None if it reads none."""
    option, default = _FURTHER.get(spec.kind, (None, None))
    return None if option is None else str(spec.options.get(option, default))


def compares(spec: MetricSpec) -> bool:
    """Whether a metric reads the retain model's records where there are any."""
    return needs_retain(spec) or spec.kind == "privleak"


def check_inputs(suite: Suite, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, has_retain: bool) -> None:
    """Refuse a suite whose required metrics lack a data set, a column or the retain model.

    Raises:
        DataError: every such lack, one a line, each with what to add.
    """
    faults = dict.fromkeys(
        fault
        for name, spec in suite.metrics.items()
        if spec.required
        for fault in _faults(suite, name, spec, rows, has_retain)
    )
    if faults:
        raise DataError(f"the suite {suite.name} cannot be run as it is:\n" + "\n".join(faults))


def _faults(
    suite: Suite, name: str, spec: MetricSpec, rows: Mapping[str, Sequence[Mapping[str, Any]]],
    has_retain: bool,
) -> list[str]:  # fmt: skip
    found = []
    for dataset in filter(None, (spec.dataset, further_set(spec))):
        if not rows.get(dataset):
            found.append(
                f"- {name} needs the data set {dataset!r}, which is absent; add --data {dataset}=FILE, or in "
                f"a recipe `evaluation: {{data: {{{dataset}: FILE}}}}`"
            )
    asked = rows.get(spec.dataset or "", ())
    if spec.kind in _NEED_WRONG_ANSWERS and asked and not any(row.get("perturbed_answer") for row in asked):
        found.append(
            f"- {name} needs wrong answers to compare with: a column `perturbed_answer` (a list of texts) in "
            f"the data set {spec.dataset!r}"
        )
    if needs_retain(spec) and not has_retain:
        found.append(
            f"- {name} compares with a retain model; name it with --reference PATH, or in a recipe as "
            "`evaluation: {reference: PATH}`"
        )
    return found
