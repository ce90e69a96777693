"""How much of what was forgotten an attack brings back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from unlearnkit.errors import RecordsError
from unlearnkit.evaluation.metrics.likelihood import probability
from unlearnkit.evaluation.metrics.result import (
    LEVEL,
    MetricResult,
    check_choice,
    interval,
    not_measured,
    resample_counts,
)
from unlearnkit.evaluation.metrics.rouge import rouge
from unlearnkit.evaluation.records import Records

RecoveryMeasure: TypeAlias = Literal["rouge", "probability"]
# Of ROUGE-L recall or probability: less was not forgotten, and a share of it would be noise.
FORGOTTEN_AT_LEAST = 0.01
_SIDES = ("target", "unlearned", "attacked")


def recovered_share(
    attacked: Records,
    *,
    unlearned: Records,
    target: Records,
    measure: RecoveryMeasure = "rouge",
    dataset: str = "forget",
    leave_out: Collection[str] = (),
    threshold: float = FORGOTTEN_AT_LEAST,
    seed: int = 0,
) -> MetricResult:
    """(attacked - unlearned) / (target - unlearned), each a mean over the same examples: 0 nothing came back,
    1 all of it.

    Not clipped: below 0 the attack made the model say less, above 1 more than the target. `extra` holds the
    three means (`target`, `unlearned`, `attacked`); `per_example` splits the value up:
    (attacked_i - unlearned_i) / (target - unlearned), of which the value is the mean. The interval resamples
    examples, all three models together. The control of an attack is the same with the retain model in the
    unlearned one's place: attacked retain, `unlearned=retain`.

    The examples are those of the attacked model's records; a note counts the ones that it lacks. Examples
    that one of the three could not score are left out of all.

    Args:
        attacked, unlearned, target: records of the three models.
        measure: `rouge` (ROUGE-L recall of the greedy answer) or `probability` (of the true answer).
        dataset: the suite's name of the forget set.
        leave_out: example ids that the attack itself disclosed.
        threshold: a drop from target to unlearned of at most this counts as nothing forgotten; the value is
            NaN then.
        seed: draws the bootstrap interval.

    Raises:
        RecordsError: the attacked model was asked about examples that one of the others was not.
        RecipeError: `measure` is not known.
    """
    check_choice("measure", measure, ("rouge", "probability"))
    name = "recovered_share"
    metric = {"rouge": rouge, "probability": probability}[measure]
    results = {
        side: metric(run, dataset=dataset)
        for side, run in zip(_SIDES, (target, unlearned, attacked), strict=True)
    }
    definition = results["attacked"].variant
    variant = f"(attacked - unlearned) / (target - unlearned) of {definition}"
    for side, result in results.items():
        if result.per_example is None:
            return not_measured(
                name, f"{result.note.removeprefix('not measured: ')} of the {side} model", variant=variant
            )
    table = pd.DataFrame(
        {side: result.per_example for side, result in results.items()}, columns=list(_SIDES), dtype="float64"
    )
    asked = {
        side: set(result.per_example.index) - set(leave_out)
        for side, result in results.items()
        if result.per_example is not None
    }
    for side in ("target", "unlearned"):
        if extra := sorted(asked["attacked"] - asked[side]):
            raise RecordsError(
                f"the attacked model was asked about {len(extra)} examples of {dataset!r} that the records "
                f"of the {side} model lack (such as {', '.join(extra[:3])}); evaluate both on the same data"
            )
    table = table.loc[sorted(asked["attacked"])]
    unscored = [str(key) for key in table.index[table.isna().any(axis=1)]]
    table = table.dropna()
    if table.empty:
        why = "no example is left that all three models were scored on"
        return not_measured(name, why, variant=variant, unscored=unscored)
    means = {side: float(table[side].mean()) for side in _SIDES}
    gap = means["target"] - means["unlearned"]
    if not gap > threshold:
        why = f"nothing was forgotten: {means['target']:.3f} before and {means['unlearned']:.3f} after"
        result = not_measured(name, why, variant=variant, unscored=unscored)
        result.n, result.extra = len(table), dict(means)
        return result
    shares = (table["attacked"] - table["unlearned"]) / gap
    low, high = _share_interval(table, threshold, seed=seed)
    lacking = len((asked["target"] & asked["unlearned"]) - asked["attacked"])
    notes = [f"the attacked model was not asked about {lacking} of the other examples"] if lacking else []
    if low is None:
        notes.append("no interval: in many resamples nothing was forgotten")
    return MetricResult(
        name,
        (means["attacked"] - means["unlearned"]) / gap,
        low,
        high,
        n=len(table),
        unscored=unscored,
        variant=variant,
        per_example=shares,
        extra=dict(means),
        note="; ".join(notes),
    )


def _share_interval(table: pd.DataFrame, threshold: float, *, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval over resampled examples; None where too many resamples have nothing forgotten."""
    counts_RN = resample_counts(len(table), seed=seed)
    target_R, unlearned_R, attacked_R = (
        counts_RN @ table[side].to_numpy(dtype=np.float64) / len(table) for side in _SIDES
    )
    forgotten_R = target_R - unlearned_R > threshold
    # A resample without a share could lie on either side: leaving out more than a tail would hide that.
    if 1 - forgotten_R.mean() > (1 - LEVEL) / 2:
        return None, None
    gap_R = (target_R - unlearned_R)[forgotten_R]
    return interval((attacked_R - unlearned_R)[forgotten_R] / gap_R)
