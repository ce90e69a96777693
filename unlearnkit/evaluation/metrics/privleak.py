"""PrivLeak of MUSE (arXiv 2407.06460, section 3.2): how far membership inference is from the retain model's.

    PrivLeak = ((1 - AUC_u) - (1 - AUC_r)) / (1 - AUC_r) x 100

AUC_u and AUC_r are the AUCs of the unlearned and of the retain model, P(score of a non-member > score of a
member) on Min-K% with k = 0.4 (see `membership`). Against a retain model at 0.5, -100 is fully memorised; 0
is like the retain model; positive is over-unlearned: the forget set stands out as less likely than text that
was never seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unlearnkit.evaluation.metrics import roc
from unlearnkit.evaluation.metrics.formulas import FloatArray
from unlearnkit.evaluation.metrics.membership import ATTACKS, Attack, Sides, describe, sides
from unlearnkit.evaluation.metrics.result import (
    MetricResult,
    check_choice,
    interval,
    not_measured,
    resample_counts,
)
from unlearnkit.evaluation.records import Records, join

#: Stands in for a retain model's AUC: no evidence of membership.
CHANCE = 0.5


def relative_leak(auc: npt.ArrayLike, retain_auc: npt.ArrayLike) -> FloatArray:
    """PrivLeak in percent, at least -100; NaN where the retain model's AUC is 1 (nothing to divide by)."""
    rest, retain_rest = 1 - np.asarray(auc, dtype=np.float64), 1 - np.asarray(retain_auc, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(retain_rest > 0, (rest - retain_rest) / retain_rest * 100, np.nan)


def privleak(
    run: Records,
    *,
    dataset: str = "forget",
    retain: Records | None = None,
    attack: Attack = "min_k",
    k: float = 0.4,
    holdout: str = "holdout",
    compat: bool = False,
    seed: int = 0,
) -> MetricResult:
    """PrivLeak in percent: -100 fully memorised, 0 like the retain model, positive over-unlearned.

    Without a retain model's records of both sets, 0.5 stands in for its AUC: weaker evidence, since two sets
    may differ by more than membership. Examples that one of the two models could not score are left out of
    both. The interval resamples members and non-members independently, and the same ones for both models.

    Args:
        run: the unlearned model's records.
        dataset: the suite's name of the members.
        retain: the retain model's records.
        attack, k, compat: see `membership.member_scores`; any attack but `reference`.
        holdout: the suite's name of the non-members.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value, or members and non-members are the same set.
        RecordsError: the two models' records do not cover the same examples.
    """
    check_choice("attack", attack, tuple(name for name in ATTACKS if name != "reference"))
    words = f"{attack!r} ({describe(attack, k=k, compat=compat)})"
    found = sides(run, dataset, holdout, attack, k=k, compat=compat)
    control = None if retain is None else sides(retain, dataset, holdout, attack, k=k, compat=compat)
    weaker = control is None or bool(control.missing)
    variant = f"{words} against {f'an AUC of {CHANCE:g}' if weaker else 'the retain model'}"
    if found.missing:
        result = not_measured("privleak", found.missing, variant=variant, unscored=found.unscored)
        result.weaker = weaker
        return result
    if control is None or control.missing:
        why = "no retain model was given" if control is None else f"for the retain model: {control.missing}"
        result = _result(found, None, seed=seed)
        result.note = "; ".join(filter(None, (f"weaker evidence, against {CHANCE:g} ({why})", result.note)))
    else:
        found, control = _scored_by_both(found, control)
        if found.missing:
            return not_measured("privleak", found.missing, variant=variant, unscored=found.unscored)
        result = _result(found, control, seed=seed)
    result.variant, result.weaker = variant, weaker
    return result


def _scored_by_both(first: Sides, second: Sides) -> tuple[Sides, Sides]:
    """Both models' scores, with NaN for both where one is missing.

    Raises:
        RecordsError: they do not cover the same examples.
    """
    names = {"left_name": "the unlearned model's", "right_name": "the retain model's"}
    members = join(first.members, second.members, **names)
    others = join(first.others, second.others, **names)
    members[members.isna().any(axis=1)] = np.nan
    others[others.isna().any(axis=1)] = np.nan
    none = members["left"].isna().all() or others["left"].isna().all()
    missing = "no example of one of the two sets could be scored with both models" if none else ""
    first, second = (
        Sides(members[side], others[side], first.dataset, first.holdout, missing)
        for side in ("left", "right")
    )
    return first, second


def _result(found: Sides, control: Sides | None, *, seed: int) -> MetricResult:
    members_M, others_H = found.arrays
    counts_RM = resample_counts(len(members_M), seed=[seed, 0])
    counts_RH = resample_counts(len(others_H), seed=[seed, 1])
    auc, auc_R = roc.auc(members_M, others_H), roc.resampled(members_M, others_H, counts_RM, counts_RH).aucs
    retain_auc, retain_R = CHANCE, np.full_like(auc_R, CHANCE)
    if control is not None:
        retain_auc, retain_R = (
            roc.auc(*control.arrays),
            roc.resampled(*control.arrays, counts_RM, counts_RH).aucs,
        )
    value, values_R = float(relative_leak(auc, retain_auc)), relative_leak(auc_R, retain_R)
    undefined = int(np.isnan(values_R).sum())
    low, high = (None, None) if undefined else interval(values_R)
    note = ""
    if np.isnan(value):
        note = (
            "not measured: the retain model's AUC is 1, so that PrivLeak divides by 0; "
            "the two sets differ by more than membership"
        )
    elif undefined:
        note = f"no interval: in {undefined} of {len(values_R)} resamples the retain model's AUC is 1"
    return MetricResult(
        "privleak",
        value,
        low,
        high,
        n=len(members_M) + len(others_H),
        unscored=found.unscored,
        per_example=found.members,
        extra={
            "auc": auc,
            "retain_auc": None if control is None else retain_auc,
            "n_members": len(members_M),
            "n_holdout": len(others_H),
        },
        note=note,
    )
