"""What a model scores beyond the reference that it is compared with, an example at a time."""

from __future__ import annotations

import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, mean_result, not_measured
from unlearnkit.evaluation.records import join


def paired_difference(
    name: str, own: pd.Series[float], other: pd.Series[float], *, variant: str, note: str = "", seed: int = 0
) -> MetricResult:
    """Mean over examples of own minus the reference's score, with the interval of the differences.

    `extra` has both means over the examples that both models could score; the others are named as unscored.

    Args:
        own, other: a score for each example (index: example id).

    Raises:
        RecordsError: the two do not cover the same examples.
    """
    both = join(own, other, left_name="this model's", right_name="the reference's")
    result = mean_result(name, both["left"] - both["right"], variant=variant, note=note, seed=seed)
    if result.measured:
        scored = both.dropna()
        result.extra = {"own": float(scored["left"].mean()), "reference": float(scored["right"].mean())}
    return result


def no_reference(name: str, *, variant: str) -> MetricResult:
    """The result without records to compare with."""
    why = "there is no model to compare with; name it with --reference, or as evaluation.reference"
    return not_measured(name, why, variant=variant)
