"""Probability, normalised probability and truth ratio of TOFU, read from likelihood records.

Every metric is called as `metric(run, dataset=..., retain=..., **options)`; `retain` (the retain model's
records) is used by forget quality only. The formulas are in `formulas.py`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from unlearnkit.evaluation.metrics import formulas
from unlearnkit.evaluation.metrics.formulas import GUARD, WrongMean
from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, mean_result, not_measured
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    PARAPHRASED_ANSWER,
    PERTURBED_ANSWER,
    Records,
    answer_nll,
    select,
)

Correct: TypeAlias = Literal["paraphrased_answer", "answer"]
TRUTH_RATIO_AGGREGATES = ("closer_to_1_better", "true_better", "prob_mean")
_NO_WRONG_ANSWERS = "no perturbed answers in the data for {!r}"


def field_nll(run: Records, dataset: str, field: str, *, total: bool = False) -> pd.Series[float]:
    """NLL of one answer per example (index: sorted ids): nats per token, or per answer with `total`."""
    records = select(run, ANSWER_LIKELIHOOD, dataset, field)
    return answer_nll(records, total=total).set_axis(records["example_id"].astype(str))


def wrong_nlls(run: Records, dataset: str, *, total: bool = False) -> dict[str, np.ndarray]:
    """Example id -> NLLs [K] of its perturbed answers; NaN among them where one could not be scored."""
    nll = field_nll(run, dataset, PERTURBED_ANSWER, total=total)
    return {str(key): group.to_numpy(dtype=np.float64) for key, group in nll.groupby(level=0)}


def probability(run: Records, *, dataset: str, retain: Records | None = None, seed: int = 0) -> MetricResult:
    """Mean over examples of exp(-mean NLL per token) of the true answer, in [0, 1] (arXiv 2401.06121, 2.2.2).

    NaN with a note when there are no answers to read; `seed` draws the bootstrap interval.
    """
    variant = "length-normalised probability of the answer, EOS included"
    nll = field_nll(run, dataset, ANSWER)
    if nll.empty:
        return not_measured("probability", f"no scored answers for {dataset!r}", variant=variant)
    scores = pd.Series(formulas.probability(nll.to_numpy()), index=nll.index)
    return mean_result("probability", scores, variant=variant, seed=seed)


def normalised_probability(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    length_normalised: bool = True,
    guard: float | None = None,
    seed: int = 0,
) -> MetricResult:
    """Mean of p_c / (p_c + sum p_wrong + guard) in [0, 1]: TOFU's score for real authors and world facts.

    Args:
        length_normalised: p = exp(-mean NLL per token) (OpenUnlearning); False takes exp(-summed NLL), as
            the paper.
        guard: added to the denominator; by default 1e-10, and 0 when not length-normalised, where
            whole-answer probabilities are far smaller than any guard.
        seed: draws the bootstrap interval.
    """
    guard = (GUARD if length_normalised else 0.0) if guard is None else guard
    kind = "length-normalised" if length_normalised else "whole-answer"
    variant = f"p / (p + sum of wrong + {guard:g}), {kind} probabilities"
    name = "normalised_probability"
    correct = field_nll(run, dataset, ANSWER, total=not length_normalised)
    wrong = wrong_nlls(run, dataset, total=not length_normalised)
    if correct.empty:
        return not_measured(name, f"no scored answers for {dataset!r}", variant=variant)
    if not wrong:
        return not_measured(name, _NO_WRONG_ANSWERS.format(dataset), variant=variant)
    scores = {
        key: float(formulas.normalised_probability(nll, wrong[key], guard=guard)) if key in wrong else np.nan
        for key, nll in correct.items()
    }
    series = pd.Series(scores, dtype="float64")
    return mean_result(name, series, variant=variant, note=_partly(correct.index, wrong), seed=seed)


def truth_ratios(
    run: Records,
    dataset: str,
    *,
    correct: Correct = "paraphrased_answer",
    wrong: WrongMean = "geometric",
    guard: float = GUARD,
) -> pd.DataFrame:
    """Per example (index: example id, sorted): `correct` c, `wrong` w, `ratio` r = w / (c + guard).

    c is the probability of the paraphrased answer, or of the answer where an example has no paraphrase
    (`paraphrased` says which). NaN where an answer could not be scored or there are no wrong answers.
    The table is empty when the data set has no wrong answers at all.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("correct", correct, (PARAPHRASED_ANSWER, ANSWER))
    check_choice("wrong", wrong, ("geometric", "arithmetic"))
    answers = field_nll(run, dataset, ANSWER)
    paraphrases = field_nll(run, dataset, PARAPHRASED_ANSWER)
    if correct == ANSWER:
        paraphrases = paraphrases.iloc[:0]
    wrong_by_id = wrong_nlls(run, dataset)
    ids = sorted({*answers.index, *paraphrases.index, *wrong_by_id}) if wrong_by_id else []
    rows = []
    for key in ids:
        paraphrased = key in paraphrases.index
        nll = paraphrases[key] if paraphrased else answers.get(key, np.nan)
        c = float(formulas.probability(nll))
        nll_K = wrong_by_id.get(key, np.array([np.nan]))
        w = float(formulas.wrong_probability(nll_K, wrong=wrong))
        rows.append((c, w, float(formulas.truth_ratio(c, nll_K, wrong=wrong, guard=guard)), paraphrased))
    table = pd.DataFrame(rows, index=ids, columns=["correct", "wrong", "ratio", "paraphrased"])
    return table.rename_axis("example_id")


def truth_ratio(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    aggregate: Literal["closer_to_1_better", "true_better", "prob_mean"] | None = None,
    correct: Correct = "paraphrased_answer",
    wrong: WrongMean = "geometric",
    guard: float = GUARD,
    seed: int = 0,
) -> MetricResult:
    """Mean of a score in [0, 1] made of the truth ratio r = w / (c + guard) (arXiv 2401.06121, eq. 1).

    Args:
        aggregate: `closer_to_1_better` min(r, 1 / (r + guard)), the default for the set named "forget";
            `true_better` max(0, 1 - r), the default for all others; `prob_mean` c / (c + w + guard).
        correct: what c is; examples without a paraphrase take the answer itself.
        wrong: `geometric` mean of the wrong answers' probabilities (OpenUnlearning) or `arithmetic` (paper).
        guard: added to denominators; 0 gives the bare formulas.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    if aggregate is None:
        aggregate = "closer_to_1_better" if dataset == "forget" else "true_better"
    check_choice("aggregate", aggregate, TRUTH_RATIO_AGGREGATES)
    table = truth_ratios(run, dataset, correct=correct, wrong=wrong, guard=guard)
    variant = f"{aggregate}, {truth_ratio_variant(table, wrong, guard)}"
    if table.empty:
        return not_measured("truth_ratio", _NO_WRONG_ANSWERS.format(dataset), variant=variant)
    ratio_N = table["ratio"].to_numpy(dtype=np.float64)
    if aggregate == "closer_to_1_better":
        scores_N = formulas.closer_to_one(ratio_N, guard=guard)
    elif aggregate == "true_better":
        scores_N = formulas.true_better(ratio_N)
    else:
        scores_N = formulas.share_of_truth(table["correct"], table["wrong"], guard=guard)
    note = _partly(table.index, wrong_nlls(run, dataset))
    return mean_result(
        "truth_ratio", pd.Series(scores_N, index=table.index), variant=variant, note=note, seed=seed
    )


def truth_ratio_variant(table: pd.DataFrame, wrong: str, guard: float) -> str:
    """The definition behind a table of `truth_ratios`, in words."""
    paraphrased = int(table["paraphrased"].sum())
    if paraphrased == len(table):
        correct = "paraphrased answer"
    else:
        correct = "paraphrased answer, or answer where there is none" if paraphrased else "answer"
    return f"{wrong} mean of wrong answers over {correct}, guard {guard:g}"


def _partly(ids: pd.Index, wrong: dict[str, np.ndarray]) -> str:
    without = sum(key not in wrong for key in ids)
    return f"{without} of {len(ids)} examples have no perturbed answers and are left out" if without else ""
