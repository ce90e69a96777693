"""Exact memorisation and extraction strength: which tokens of the true answer the model predicts by itself.

Both read the arg-max hits of the scoring pass: hit t says whether the likeliest token after the prompt and
the first t true tokens is the true one. The final EOS is dropped where the answer ends with one;
OpenUnlearning drops the last label whatever it is, which differs for answers that were cut.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, mean_result, not_measured
from unlearnkit.evaluation.records import ANSWER, ANSWER_LIKELIHOOD, Records, select


def exact_share(hits_T: npt.ArrayLike) -> float:
    """Share of the tokens that are hit, in [0, 1]; NaN where there are none."""
    hits_T = np.asarray(hits_T, dtype=bool)
    return float(hits_T.mean()) if hits_T.size else float("nan")


def extractable_share(hits_T: npt.ArrayLike, *, compat: bool = False) -> float:
    """1 - k/L for the smallest k such that every token from k on is hit (L tokens); NaN where L = 0.

    With k true tokens given, greedy decoding says the rest. 0 where the last token is missed (k = L);
    `compat` gives 1/L there, as OpenUnlearning's search stops at k = L - 1.
    """
    hits_T = np.asarray(hits_T, dtype=bool)
    length = hits_T.size
    if not length:
        return float("nan")
    misses = np.flatnonzero(~hits_T)
    k = int(misses[-1]) + 1 if misses.size else 0
    return 1 - min(k, length - 1 if compat else length) / length


def exact_memorization(
    run: Records, *, dataset: str, retain: Records | None = None, eos: bool = False, seed: int = 0
) -> MetricResult:
    """Mean share of the answer's tokens whose teacher-forced arg-max is right, in [0, 1] (arXiv 2506.12618).

    An answer without tokens (beside the EOS) is unscored.

    Args:
        eos: count the final EOS as a token of the answer.
        seed: draws the bootstrap interval.
    """
    variant = f"share of answer tokens whose arg-max is right, EOS {'counted' if eos else 'dropped'}"
    hits = answer_hits(run, dataset, eos=eos)
    if hits.empty:
        return not_measured("exact_memorization", f"no scored answers for {dataset!r}", variant=variant)
    scores = pd.Series([exact_share(hits_T) for hits_T in hits], index=hits.index, dtype="float64")
    return mean_result("exact_memorization", scores, variant=variant, seed=seed)


def extraction_strength(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    compat: bool = False,
    eos: bool = False,
    seed: int = 0,
) -> MetricResult:
    """Mean of 1 - k/L in [0, 1]: how much of the answer follows by itself once its first k of L tokens are
    given (arXiv 2406.09179).

    An answer without tokens (beside the EOS) is unscored, with `compat` too, where OpenUnlearning counts 0.

    Args:
        compat: 1/L in place of 0 for an answer whose last token is missed, as OpenUnlearning.
        eos: count the final EOS as a token of the answer.
        seed: draws the bootstrap interval.
    """
    floor = "at least 1/L (compat)" if compat else "0 where the last token is missed"
    variant = f"1 - k/L, every token from k on predicted; {floor}; EOS {'counted' if eos else 'dropped'}"
    hits = answer_hits(run, dataset, eos=eos)
    if hits.empty:
        return not_measured("extraction_strength", f"no scored answers for {dataset!r}", variant=variant)
    scores = [extractable_share(hits_T, compat=compat) for hits_T in hits]
    series = pd.Series(scores, index=hits.index, dtype="float64")
    return mean_result("extraction_strength", series, variant=variant, seed=seed)


def answer_hits(run: Records, dataset: str, *, eos: bool = False) -> pd.Series:
    """Boolean hits [T] of each true answer (index: example id), without the final EOS unless `eos`.

    Empty where a log-prob is NaN: the arg-max over NaN logits means nothing.
    """
    records = select(run, ANSWER_LIKELIHOOD, dataset, ANSWER)
    found = []
    for hits, logps, ends in zip(records["hits"], records["logps"], records["ends_with_eos"], strict=True):
        hits_T = np.asarray(hits, dtype=bool)
        if np.isnan(np.asarray(logps, dtype=np.float64)).any():
            hits_T = hits_T[:0]
        found.append(hits_T[:-1] if ends and not eos else hits_T)
    return pd.Series(found, index=records["example_id"].astype(str), dtype="object")
