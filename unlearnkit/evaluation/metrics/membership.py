"""Membership inference: can the forget set be told from examples that the model never saw?

Each attack gives an example a score, higher the less likely it is a member (was trained on). The AUC is the
probability that a non-member (the holdout) scores above a member (the forget set): 1 is fully memorised, 0.5
no evidence, below 0.5 over-unlearned, since the forget set then stands out the other way. Attacks, for an
answer of L tokens with log-probs lp:

- `loss`: mean NLL per token, EOS included (Yeom et al., arXiv 1709.01604).
- `zlib`: that loss / bytes of the zlib-compressed answer (Carlini et al., arXiv 2012.07805).
- `min_k`: minus the mean of the lowest max(1, floor(k L)) lp, EOS left out (Min-K%, arXiv 2310.16789).
- `min_k_pp`: the same of (lp - mu) / sqrt(max(var, 1e-6)), mu and var those of the log-probs over the
  vocabulary under the model itself (Min-K%++, arXiv 2404.02936).
- `reference`: the loss - the loss under a reference model, here the retain model.
- `gradient_norm`: the norm of the loss's gradient (see `evaluation.gradients`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.metrics import roc
from unlearnkit.evaluation.metrics.formulas import FloatArray
from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, not_measured
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    GLOBAL_NORM,
    GRADIENT_NORM,
    MEAN_NORM,
    Records,
    answer_nll,
    join,
    select,
)

Attack: TypeAlias = Literal["loss", "zlib", "min_k", "min_k_pp", "reference", "gradient_norm"]
#: Attack -> its score in words.
ATTACKS = {
    "loss": "mean NLL, EOS included",
    "zlib": "mean NLL / bytes of the zlib-compressed answer",
    "min_k": "Min-K% (k = {k:g}), {end} left out",
    "min_k_pp": "Min-K%++ (k = {k:g}), {end} left out",
    "reference": "mean NLL - mean NLL under the retain model",
    "gradient_norm": "{norm} of the gradient",
}
# Min-K%++ divides by a standard deviation, which is 0 where the model is certain (OpenUnlearning's floor).
LEAST_VARIANCE = 1e-6
FPRS = {"tpr_at_1_fpr": 0.01, "tpr_at_01_fpr": 0.001}


def lowest_mean(values_L: npt.ArrayLike, k: float) -> float:
    """Mean of the lowest max(1, floor(k L)) of L values; NaN of none, or where one is NaN."""
    values = np.sort(np.asarray(values_L, dtype=np.float64))
    return float(values[: max(1, int(k * len(values)))].mean()) if len(values) else float("nan")


def zlib_bytes(text: str) -> int:
    """Bytes of the zlib-compressed text (UTF-8, default level)."""
    return len(zlib.compress(text.encode("utf-8")))


def describe(attack: str, *, k: float = 0.4, compat: bool = False) -> str:
    """An attack's score, in words.

    Raises:
        RecipeError: `attack` is not known, or k is not in (0, 1].
    """
    check_choice("attack", attack, tuple(ATTACKS))
    if not 0 < k <= 1:
        raise RecipeError(f"metric option k={k!r} is not a share of tokens; give a number above 0, at most 1")
    norm = "mean of the parameter tensors' norms, EOS left out," if compat else "L2 norm"
    return ATTACKS[attack].format(k=k, end="last token" if compat else "EOS", norm=norm)


def member_scores(
    run: Records,
    dataset: str,
    attack: Attack = "loss",
    *,
    k: float = 0.4,
    retain: Records | None = None,
    compat: bool = False,
) -> pd.Series[float]:
    """An attack's score of every example of a data set, higher = less likely a member.

    Index: sorted example ids; NaN for examples that could not be scored; empty where the records that the
    attack reads are absent.

    Args:
        run: the attacked model's records.
        dataset: the suite's name of the data.
        attack: see the top of this file.
        k: the share of tokens that `min_k` and `min_k_pp` take.
        retain: the reference model's records, for `reference` only.
        compat: as OpenUnlearning computes it, where that differs: `gradient_norm` is the mean over parameter
            tensors, and the Min-K% attacks leave out the last token even where it is not an EOS.

    Raises:
        RecipeError: an option has an unknown value.
        RecordsError: the reference model's records do not cover the same examples.
    """
    describe(attack, k=k, compat=compat)
    if attack == "gradient_norm":
        records = select(run, GRADIENT_NORM, dataset, MEAN_NORM if compat else GLOBAL_NORM)
        return _by_example(records, records["value"])
    records = select(run, ANSWER_LIKELIHOOD, dataset, ANSWER)
    if attack in ("min_k", "min_k_pp"):
        kept = zip(*(records[name] for name in ("logps", "means", "variances", "ends_with_eos")), strict=True)
        values = []
        for logps, means, variances, ends in kept:
            end = max(0, len(logps) - int(ends or compat))
            lp_L, mu_L, var_L = (np.asarray(x[:end], dtype=np.float64) for x in (logps, means, variances))
            if attack == "min_k_pp":
                lp_L = (lp_L - mu_L) / np.sqrt(np.maximum(var_L, LEAST_VARIANCE))
            values.append(-lowest_mean(lp_L, k))
        return _by_example(records, values)
    loss = _by_example(records, answer_nll(records))
    if attack == "zlib":
        return loss / _by_example(records, [zlib_bytes(text) for text in records["reference_text"]])
    if attack == "reference":
        if retain is None:
            return loss.iloc[:0]
        names = {"left_name": "the attacked model's", "right_name": "the reference model's"}
        both = join(loss, member_scores(retain, dataset, "loss"), **names)
        return both["left"] - both["right"]
    return loss


def _by_example(records: pd.DataFrame, values: Iterable[float]) -> pd.Series[float]:
    return pd.Series(list(values), index=records["example_id"].astype(str), dtype="float64")


@dataclass(frozen=True)
class Sides:
    """Scores of members and of non-members (index: example id, NaN for the unscored), and their sets' names.

    `missing` says which records an attack lacks, "" where it has all.
    """

    members: pd.Series[float]
    others: pd.Series[float]
    dataset: str
    holdout: str
    missing: str = ""

    @property
    def arrays(self) -> tuple[FloatArray, FloatArray]:
        """The scores without NaN, members first."""
        members, others = (np.asarray(s.dropna(), dtype=np.float64) for s in (self.members, self.others))
        return members, others

    @property
    def unscored(self) -> list[str]:
        """SET/ID of every example without a score."""
        both = ((self.dataset, self.members), (self.holdout, self.others))
        return [f"{name}/{key}" for name, scores in both for key in scores.index[scores.isna()]]


def sides(
    run: Records,
    dataset: str,
    holdout: str,
    attack: Attack,
    *,
    k: float = 0.4,
    retain: Records | None = None,
    compat: bool = False,
) -> Sides:
    """Score members and non-members with one attack; see `member_scores`.

    Raises:
        RecipeError: an option has an unknown value, or both sets are the same.
        RecordsError: the reference model's records do not cover the same examples.
    """
    if dataset == holdout:
        raise RecipeError(
            f"members and non-members are both {dataset!r}; set holdout to a data set the model never saw"
        )
    members, others = (
        member_scores(run, name, attack, k=k, retain=retain, compat=compat) for name in (dataset, holdout)
    )
    missing = ""
    if attack == "reference" and retain is None:
        missing = "the attack compares with a retain model, and none was given; train or name one"
    elif lacking := [name for name, scores in ((dataset, members), (holdout, others)) if scores.empty]:
        probe, what = (
            (GRADIENT_NORM, f"{MEAN_NORM if compat else GLOBAL_NORM} gradient norms")
            if attack == "gradient_norm"
            else (ANSWER_LIKELIHOOD, "scored answers")
        )
        missing = (
            f"no {what} for {' and '.join(map(repr, lacking))}; "
            f"give its data and name it under the suite's probes.{probe}"
        )
    elif members.isna().all() or others.isna().all():
        missing = f"no example of {dataset if members.isna().all() else holdout!r} could be scored"
    return Sides(members, others, dataset, holdout, missing)


def membership(
    run: Records,
    *,
    dataset: str = "forget",
    retain: Records | None = None,
    attack: Attack = "loss",
    k: float = 0.4,
    holdout: str = "holdout",
    compat: bool = False,
    seed: int = 0,
) -> MetricResult:
    """AUC of a membership attack on the forget set against a holdout, in [0, 1] (attacks: top of this file).

    `extra` has the TPR at 1 % and at 0.1 % FPR with their intervals, the ROC curve and the numbers of
    examples; `retain_auc` is the retain model's AUC: what a model that never saw the forget set scores on
    these two sets, which need not be 0.5. Without it the value is weaker evidence. Intervals resample members
    and non-members independently.

    Args:
        run: the attacked model's records.
        dataset: the suite's name of the members.
        retain: the retain model's records: the reference of `reference`, the comparison of all others.
        attack, k, compat: see `member_scores`.
        holdout: the suite's name of the non-members.
        seed: draws the bootstrap intervals.

    Raises:
        RecipeError: an option has an unknown value, or members and non-members are the same set.
        RecordsError: the reference model's records do not cover the same examples.
    """
    variant = f"AUC of the attack {attack!r} ({describe(attack, k=k, compat=compat)}), ties count half"
    found = sides(run, dataset, holdout, attack, k=k, retain=retain, compat=compat)
    if found.missing:
        return not_measured("membership", found.missing, variant=variant, unscored=found.unscored)
    members_M, others_H = found.arrays
    (low, high), *tpr_ends = roc.intervals(members_M, others_H, tuple(FPRS.values()), seed=seed)
    extra: dict[str, object] = {}
    for (name, fpr), ends in zip(FPRS.items(), tpr_ends, strict=True):
        extra[name] = roc.tpr_at(members_M, others_H, fpr)
        extra[f"{name}_low"], extra[f"{name}_high"] = ends
    fpr_T, tpr_T = roc.points(members_M, others_H)
    extra |= {"n_members": len(members_M), "n_holdout": len(others_H)}
    extra["roc"] = {"fpr": fpr_T.tolist(), "tpr": tpr_T.tolist()}
    value = roc.auc(members_M, others_H)
    result = MetricResult(
        "membership",
        value,
        low,
        high,
        n=len(members_M) + len(others_H),
        unscored=found.unscored,
        variant=variant,
        per_example=found.members,
        extra=extra,
        weaker=attack != "reference",
    )
    if attack != "reference" and retain is not None:
        control = sides(retain, dataset, holdout, attack, k=k, compat=compat)
        if not control.missing:
            extra["retain_auc"] = roc.auc(*control.arrays)
            result.weaker = False
    result.note = "; ".join(filter(None, (_few(len(others_H)), _shared(run, found), _separated(value))))
    return result


def _few(n_holdout: int) -> str:
    rates = [text for text, least in (("1 %", 100), ("0.1 %", 1000)) if n_holdout < least]
    if not rates:
        return ""
    one = "one non-member" if n_holdout == 1 else f"{n_holdout} non-members"
    return (
        f"TPR at {' and '.join(rates)} FPR rests on fewer than one example, since there are only {one}: "
        "it is the share of members that score below every non-member"
    )


def _separated(auc: float) -> str:
    if 0 < auc < 1:
        return ""
    return "members and non-members do not overlap, so that resampling gives an interval without width"


def _shared(run: Records, found: Sides) -> str:
    """A warning where the same question and answer are in both sets."""
    texts = [
        {pair for pair in zip(records["prompt"], records["reference_text"], strict=True) if any(pair)}
        for records in (
            select(run, ANSWER_LIKELIHOOD, name, ANSWER) for name in (found.dataset, found.holdout)
        )
    ]
    shared = len(texts[0] & texts[1])
    return f"{shared} example(s) are in {found.dataset!r} and in {found.holdout!r}" if shared else ""
