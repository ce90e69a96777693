"""What a suite cannot do without, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnkit.errors import DataError
from unlearnkit.evaluation.suite import MetricSpec, Suite

#: Kinds of metrics that read wrong answers beside the right one.
_NEED_WRONG_ANSWERS = {"truth_ratio", "forget_quality", "normalised_probability", "paraphrase_preference"}


def needs_retain(spec: MetricSpec) -> bool:
    """Whether a metric says nothing without the retain model's records."""
    return spec.kind == "forget_quality" or (
        spec.kind == "membership" and spec.options.get("attack") == "reference"
    )


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
    holdout = spec.options.get("holdout", "holdout") if spec.kind in ("membership", "privleak") else None
    for dataset in filter(None, (spec.dataset, holdout)):
        if not rows.get(str(dataset)):
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
