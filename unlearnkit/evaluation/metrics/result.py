"""What a metric returns, and the bootstrap behind its interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.metrics.formulas import FloatArray

RESAMPLES = 1000
LEVEL = 0.95


@dataclass
class MetricResult:
    """One number with all that is needed to judge it.

    Attributes:
        value: the number; NaN when it could not be measured, and `note` then says why.
        low, high: 95 % bootstrap interval over examples; None where there is none.
        n: examples behind the value.
        unscored: ids of examples that could not be scored and were left out.
        variant: the definition that was used, in words.
        per_example: the score of each example (index: example id), NaN for the unscored.
        extra: further numbers, JSON-like.
        note: a plain sentence for the reader, or "".
        weaker: no retain model stands behind the number: weaker evidence, and a report says so.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    unscored: list[str] = field(default_factory=list)
    variant: str = ""
    per_example: pd.Series[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    weaker: bool = False

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def as_json(self) -> dict[str, Any]:
        """Everything but the per-example scores, with null in place of NaN and infinities."""
        keys = ("value", "low", "high", "n", "unscored", "variant", "note", "weaker", "extra")
        return {key: _plain(getattr(self, key)) for key in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def not_measured(name: str, why: str, *, variant: str = "", unscored: Sequence[str] = ()) -> MetricResult:
    """The result of a metric that has nothing to work on; `why` completes "not measured: ..."."""
    return MetricResult(
        name, float("nan"), variant=variant, unscored=list(unscored), note=f"not measured: {why}"
    )


def mean_result(
    name: str, scores: pd.Series[float], *, variant: str, note: str = "", seed: int = 0
) -> MetricResult:
    """The mean of per-example scores (index: example id) with its interval; NaN is named, not averaged.

    The scores are sorted by example id first, so that neither the sum nor the resampling depends on the row
    order.
    """
    scores = scores.sort_index(kind="stable")
    unscored = [str(name) for name in scores.index[scores.isna()]]
    values = np.asarray(scores.dropna(), dtype=np.float64)
    if not len(values):
        result = not_measured(name, "no example could be scored", variant=variant, unscored=unscored)
        result.per_example = scores
        return result
    low, high = interval(resampled_means(values, resample_counts(len(values), seed=seed)))
    return MetricResult(
        name,
        float(values.mean()),
        low,
        high,
        n=len(values),
        unscored=unscored,
        variant=variant,
        per_example=scores,
        note=note,
    )


def resample_counts(n: int, *, seed: int | Sequence[int], resamples: int = RESAMPLES) -> FloatArray:
    """How often each of n examples is drawn in each bootstrap resample, shape [resamples, n]; read-only."""
    return _resample_counts(n, seed if isinstance(seed, int) else tuple(seed), resamples)


@functools.lru_cache(maxsize=8)
def _resample_counts(n: int, seed: int | tuple[int, ...], resamples: int) -> FloatArray:
    # Remembered, since most metrics of a suite are means over the same examples.
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    counts_RN = draws.astype(np.float64)
    counts_RN.flags.writeable = False
    return counts_RN


def resampled_means(values_N: FloatArray, counts_RN: FloatArray) -> FloatArray:
    """Mean of the values in each resample, shape [R]; NaN values are left out, as they are of the mean."""
    known_N = ~np.isnan(values_N)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts_RN[:, known_N] @ values_N[known_N] / counts_RN[:, known_N].sum(axis=1))


def interval(values_R: FloatArray, level: float = LEVEL) -> tuple[float | None, float | None]:
    """The middle `level` of the resampled values (percentile bootstrap); None, None when there are none."""
    values_R = values_R[~np.isnan(values_R)]
    if not len(values_R):
        return None, None
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse an option value that a metric does not know.

    Raises:
        RecipeError: `value` is not one of `allowed`.
    """
    if value not in allowed:
        raise RecipeError(f"metric option {name}={value!r} is not known; use one of {', '.join(allowed)}")
