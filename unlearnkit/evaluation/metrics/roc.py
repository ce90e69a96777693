"""ROC arithmetic of a membership attack: scores in, numbers out.

A score is higher the less likely its example is a member. At a threshold t the attack calls every example
with a score of at most t a member: the true-positive rate (TPR) is the share of the members it calls so, the
false-positive rate (FPR) the share of the non-members. Examples with equal scores cross a threshold together.

Symbols: M members, H non-members, T thresholds (the distinct scores, with one below all of them), R bootstrap
resamples. Scores may be infinite, not NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unlearnkit.evaluation.metrics.formulas import FloatArray
from unlearnkit.evaluation.metrics.result import RESAMPLES, interval, resample_counts

#: Numbers of one block of resamples at most, [R, T] (64 MB).
_MOST_NUMBERS = 1 << 23


def auc(members_M: npt.ArrayLike, others_H: npt.ArrayLike) -> float:
    """P(score of a non-member > score of a member), ties counted half: Mann-Whitney's U / (M H), in [0, 1].

    Raises:
        ValueError: a side is empty or holds NaN.
    """
    true_T, false_T = _counts(members_M, others_H)
    return float(_area(true_T, false_T))


def tpr_at(members_M: npt.ArrayLike, others_H: npt.ArrayLike, fpr: float) -> float:
    """The largest TPR of a threshold whose FPR is at most `fpr`, in [0, 1].

    Nothing is interpolated between thresholds: where members and non-members tie, either all of them are
    called members or none. With fewer than 1 / fpr non-members it is the TPR without any false positive.

    Raises:
        ValueError: a side is empty or holds NaN.
    """
    true_T, false_T = _counts(members_M, others_H)
    return float(_tpr_at(true_T, false_T, fpr))


def points(members_M: npt.ArrayLike, others_H: npt.ArrayLike, *, most: int = 200) -> tuple[FloatArray, ...]:
    """(fpr, tpr) from (0, 0) to (1, 1), to be joined by straight lines.

    Points on a straight line between their neighbours are left out, which loses nothing: the area under the
    rest is the AUC. Where more than `most` remain, they are thinned evenly along the curve.

    Raises:
        ValueError: a side is empty or holds NaN.
    """
    true_T, false_T = _counts(members_M, others_H)
    corner_T = np.ones(len(true_T), dtype=bool)
    rise_T, run_T = np.diff(true_T), np.diff(false_T)
    # Counts are whole numbers, so that the test is exact.
    corner_T[1:-1] = rise_T[:-1] * run_T[1:] != rise_T[1:] * run_T[:-1]
    tpr, fpr = true_T[corner_T] / true_T[-1], false_T[corner_T] / false_T[-1]
    if len(fpr) > most:
        way = fpr + tpr  # grows with each point, from 0 to 2
        keep = np.unique(np.searchsorted(way, np.linspace(0, way[-1], most)))
        tpr, fpr = tpr[keep], fpr[keep]
    return fpr, tpr


@dataclass(frozen=True)
class Resampled:
    """What each bootstrap resample gives, shape [R]; `tprs` belong to the FPRs that were asked for."""

    aucs: FloatArray
    tprs: tuple[FloatArray, ...]


def resampled(
    members_M: npt.ArrayLike,
    others_H: npt.ArrayLike,
    counts_RM: FloatArray,
    counts_RH: FloatArray,
    fprs: Sequence[float] = (),
) -> Resampled:
    """AUC and TPRs when example i counts `counts_R*[r, i]` times in resample r.

    Raises:
        ValueError: a side is empty or holds NaN.
    """
    aucs: list[FloatArray] = []
    tprs: list[list[FloatArray]] = [[] for _ in fprs]
    for true_RT, false_RT in _weighted_counts(members_M, others_H, counts_RM, counts_RH):
        aucs.append(_area(true_RT, false_RT))
        for found, fpr in zip(tprs, fprs, strict=True):
            found.append(_tpr_at(true_RT, false_RT, fpr))
    return Resampled(np.concatenate(aucs), tuple(np.concatenate(found) for found in tprs))


def intervals(
    members_M: npt.ArrayLike,
    others_H: npt.ArrayLike,
    fprs: Sequence[float] = (),
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """95 % intervals of the AUC, then of the TPR at each of `fprs`: percentiles of the bootstrap.

    Members and non-members are resampled independently. The scores are sorted first, so that neither their
    order nor a monotone transform changes the interval. Where no false positive is allowed, resampling is
    kind to the attack: a resample without the lowest non-member raises the TPR, and none lowers it as much.

    Raises:
        ValueError: a side is empty or holds NaN.
    """
    members_M, others_H = np.sort(_checked(members_M)), np.sort(_checked(others_H))
    drawn = resampled(
        members_M,
        others_H,
        resample_counts(len(members_M), seed=[seed, 0], resamples=resamples),
        resample_counts(len(others_H), seed=[seed, 1], resamples=resamples),
        fprs,
    )
    ends = [interval(values_R) for values_R in (drawn.aucs, *drawn.tprs)]
    return [(low, high) for low, high in ends if low is not None and high is not None]


def _checked(scores: npt.ArrayLike) -> FloatArray:
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or np.isnan(values).any():
        raise ValueError("an ROC curve needs at least one member, one non-member and no NaN")
    return values


def _counts(members_M: npt.ArrayLike, others_H: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Members and non-members at or below each threshold, each [T] and starting at 0."""
    once_M, once_H = (np.ones((1, np.size(scores))) for scores in (members_M, others_H))
    true_RT, false_RT = next(_weighted_counts(members_M, others_H, once_M, once_H))
    return true_RT[0], false_RT[0]


def _weighted_counts(
    members_M: npt.ArrayLike, others_H: npt.ArrayLike, counts_RM: FloatArray, counts_RH: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """The same per resample, each [R, T], in blocks of resamples."""
    sides = (_checked(members_M), _checked(others_H))
    thresholds = np.unique(np.concatenate(sides))
    orders = [np.argsort(side, kind="stable") for side in sides]
    # How many of the sorted scores lie at or below each threshold; -inf too is a score, so 0 stands apart.
    places = [
        np.concatenate([[0], np.searchsorted(side[order], thresholds, side="right")])
        for side, order in zip(sides, orders, strict=True)
    ]
    block = max(1, _MOST_NUMBERS // (len(thresholds) + 1))
    for start in range(0, len(counts_RM), block):
        found = []
        for counts_R, order, place in zip((counts_RM, counts_RH), orders, places, strict=True):
            below = np.cumsum(counts_R[start : start + block, order], axis=1)
            found.append(np.concatenate([np.zeros((len(below), 1)), below], axis=1)[:, place])
        yield found[0], found[1]


def _area(true_T: FloatArray, false_T: FloatArray) -> FloatArray:
    """Area under the curve over the last axis: a non-member beats the members before it and half its ties."""
    steps = np.diff(false_T, axis=-1)
    beaten = (true_T[..., 1:] + true_T[..., :-1]) / 2
    return np.asarray((steps * beaten).sum(axis=-1) / (true_T[..., -1] * false_T[..., -1]))


def _tpr_at(true_T: FloatArray, false_T: FloatArray, fpr: float) -> FloatArray:
    # A hair above, since 0.29 * 100 is 28.999999999999996.
    allowed = fpr * false_T[..., -1:] * (1 + 1e-12)
    return np.asarray(np.where(false_T <= allowed, true_T, 0).max(axis=-1) / true_T[..., -1])
