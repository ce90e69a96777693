"""TOFU's two headline numbers: forget quality and model utility (arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.metrics import formulas
from unlearnkit.evaluation.metrics.formulas import GUARD, FloatArray, WrongMean
from unlearnkit.evaluation.metrics.likelihood import (
    Correct,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_variant,
    truth_ratios,
)
from unlearnkit.evaluation.metrics.result import (
    LEVEL,
    MetricResult,
    interval,
    not_measured,
    resample_counts,
    resampled_means,
)
from unlearnkit.evaluation.metrics.rouge import rouge
from unlearnkit.evaluation.records import Records, join

PARTS = tuple(
    f"{dataset}_{metric}"
    for dataset, metrics in (
        ("retain", ("probability", "rouge", "truth_ratio")),
        ("real_authors", ("probability_normalised", "rouge", "truth_ratio")),
        ("world_facts", ("probability_normalised", "rouge", "truth_ratio")),
    )
    for metric in metrics
)
_PART_METRICS = ("probability_normalised", "probability", "rouge", "truth_ratio")


def forget_quality(
    run: Records,
    *,
    dataset: str = "forget",
    retain: Records | None = None,
    correct: Correct = "paraphrased_answer",
    wrong: WrongMean = "geometric",
    guard: float = GUARD,
    seed: int = 0,
) -> MetricResult:
    """p-value of a two-sided KS test of the unlearned against the retain model's truth ratios, in [0, 1].

    High means that the test cannot tell the two apart. At full separation (D = 1) p depends on n alone, so
    `extra` also gives the distance (`statistic`), `log10_p` and intervals of both. The test compares two
    samples, not pairs; the examples must be the same ones all the same. Examples that one of the two could
    not score are left out of both.

    The interval resamples both sides and takes the bias-corrected percentiles of D (Efron 1981), since
    resampling by itself pushes a small D up; p follows from D. Near D = 0 even so it says little: D is never
    below 0.

    Args:
        run: the unlearned model's records.
        dataset: the suite's name of the forget set.
        retain: the retain model's records; without them the result is "n/a", never a number.
        correct, wrong, guard: the truth ratio's definition, see `truth_ratio`.
        seed: draws the bootstrap interval.

    Raises:
        RecordsError: the two runs do not cover the same examples.
        RecipeError: an option has an unknown value.
    """
    table = truth_ratios(run, dataset, correct=correct, wrong=wrong, guard=guard)
    variant = f"two-sided KS test of truth ratios: {truth_ratio_variant(table, wrong, guard)}"
    if table.empty:
        why = f"no perturbed answers in the data for {dataset!r}"
        return not_measured("forget_quality", why, variant=variant)
    if retain is None:
        result = not_measured("forget_quality", "", variant=variant)
        result.note = (
            "n/a: no retain model was given, and forget quality compares with one; "
            "train or name a retain model to measure it"
        )
        return result
    other = truth_ratios(retain, dataset, correct=correct, wrong=wrong, guard=guard)
    names = {"left_name": "the unlearned model's", "right_name": "the retain model's"}
    both = join(table["ratio"], other["ratio"], **names)
    unscored = [str(key) for key in both.index[both.isna().any(axis=1)]]
    scored = both.dropna()
    if scored.empty:
        why = "no example could be scored with both models"
        return not_measured("forget_quality", why, variant=variant, unscored=unscored)
    result = _ks_result(scored["left"].to_numpy(), scored["right"].to_numpy(), seed=seed)
    result.unscored, result.variant, result.per_example = unscored, variant, both["left"]
    return result


def _ks_result(ratio_N: FloatArray, retain_N: FloatArray, *, seed: int) -> MetricResult:
    test = formulas.ks_test(ratio_N, retain_N)
    low_test, high_test = _ks_interval(ratio_N, retain_N, test, seed=seed)
    extra = {
        "statistic": test.statistic,
        "statistic_low": low_test.statistic,
        "statistic_high": high_test.statistic,
        "log10_p": test.log10_p,
        # A larger distance is a smaller p.
        "log10_p_low": high_test.log10_p,
        "log10_p_high": low_test.log10_p,
        "n_unlearned": len(ratio_N),
        "n_retain": len(retain_N),
    }
    note = f"p is below 1e-300 and shown as 0; log10 p is about {test.log10_p:.0f}" if test.underflow else ""
    return MetricResult(
        "forget_quality",
        test.p_value,
        high_test.p_value,
        low_test.p_value,
        n=len(ratio_N),
        extra=extra,
        note=note,
    )


def _ks_interval(
    first_N: FloatArray, second_N: FloatArray, observed: formulas.KSTest, *, seed: int
) -> tuple[formulas.KSTest, formulas.KSTest]:
    """The resamples at both ends of the bias-corrected 95 % interval of D, widened to hold the observed D."""
    from scipy.special import ndtr, ndtri

    n = len(first_N)
    # Resampling goes by position in the sorted sample: it may not depend on the order of the examples.
    first_N, second_N = np.sort(first_N), np.sort(second_N)
    first_RN, second_RN = resample_counts(n, seed=[seed, 0]), resample_counts(n, seed=[seed, 1])
    pooled = np.concatenate([first_N, second_N])
    order = np.argsort(pooled, kind="stable")
    last_of_tie = np.append(pooled[order][1:] > pooled[order][:-1], True)
    steps = np.concatenate([first_RN, -second_RN], axis=1)[:, order]
    distances_R = np.abs(steps.cumsum(axis=1)[:, last_of_tie]).max(axis=1) / n

    # D is a multiple of 1/n: half a step decides what counts as equal, whatever the rounding.
    above = np.mean(distances_R > observed.statistic + 0.5 / n)
    below = np.mean(distances_R < observed.statistic - 0.5 / n)
    shift = ndtri(np.clip(below + (1 - above - below) / 2, 1e-3, 1 - 1e-3))
    by_distance = np.argsort(distances_R, kind="stable")
    ends = []
    for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        place = round(float(ndtr(2 * shift + ndtri(level))) * (len(by_distance) - 1))
        pick = by_distance[place]
        ends.append(
            formulas.ks_test(
                np.repeat(first_N, first_RN[pick].astype(int)),
                np.repeat(second_N, second_RN[pick].astype(int)),
            )
        )
    low = min(ends[0], observed, key=lambda test: test.statistic)
    high = max(ends[1], observed, key=lambda test: test.statistic)
    return low, high


def model_utility(
    run: Records,
    *,
    dataset: str | None = None,
    retain: Records | None = None,
    parts: Sequence[str] = PARTS,
    measure: Literal["recall", "precision", "fmeasure"] = "recall",
    length_normalised: bool = True,
    wrong: WrongMean = "geometric",
    guard: float = GUARD,
    seed: int = 0,
) -> MetricResult:
    """Harmonic mean of the nine scores of what must stay, in [0, 1] (arXiv 2401.06121, 2.2.2); any 0 gives 0.

    The nine are {probability, ROUGE-L, truth ratio} x {retain, real authors, world facts}, the probability
    of the last two normalised. `extra["parts"]` holds them (NaN where missing). A missing part makes the
    value NaN: a mean over fewer parts would not compare with published ones; name the `parts` that you have
    to get one on purpose. The interval resamples the examples within each set.

    Args:
        run: the model's records.
        dataset, retain: not used; every metric takes them.
        parts: which scores, named `SET_METRIC` with the metric one of probability, probability_normalised,
            rouge, truth_ratio.
        measure, length_normalised, wrong, guard: see `rouge`, `normalised_probability` and `truth_ratio`.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: a part or an option is not known.
    """
    if not parts:
        raise RecipeError("model utility has an empty list of parts; leave `parts` out to get TOFU's nine")
    measures: dict[str, Callable[[str], MetricResult]] = {
        "probability": lambda name: probability(run, dataset=name),
        "probability_normalised": lambda name: normalised_probability(
            run,
            dataset=name,
            length_normalised=length_normalised,
            guard=guard if length_normalised else None,
        ),
        "rouge": lambda name: rouge(run, dataset=name, measure=measure),
        "truth_ratio": lambda name: truth_ratio(
            run, dataset=name, aggregate="true_better", wrong=wrong, guard=guard
        ),
    }
    split = {part: _split_part(part) for part in parts}
    results = {part: measures[metric](name) for part, (name, metric) in split.items()}
    values = {part: result.value for part, result in results.items()}
    kind = "length-normalised" if length_normalised else "whole-answer"
    variant = (
        f"harmonic mean of {len(values)} parts: ROUGE-L {measure}, {kind} normalised probability, "
        f"truth ratio true_better with the {wrong} mean, guard {guard:g}"
    )
    unscored = sorted({f"{split[part][0]}/{key}" for part in results for key in results[part].unscored})
    if missing := [part for part, value in values.items() if math.isnan(value)]:
        result = not_measured(
            "model_utility", f"missing {', '.join(missing)}", variant=variant, unscored=unscored
        )
        result.extra = {"parts": values}
        return result
    scores = {part: result.per_example for part, result in results.items() if result.per_example is not None}
    resampled = _resampled_parts({part: name for part, (name, _) in split.items()}, scores, seed=seed)
    low, high = interval(formulas.harmonic_mean(resampled.T))
    return MetricResult(
        "model_utility",
        float(formulas.harmonic_mean(list(values.values()))),
        low,
        high,
        n=len({(split[part][0], key) for part, series in scores.items() for key in series.dropna().index}),
        unscored=unscored,
        variant=variant,
        extra={"parts": values},
    )


def _split_part(part: str) -> tuple[str, str]:
    for metric in _PART_METRICS:
        if part.endswith(f"_{metric}"):
            return part.removesuffix(f"_{metric}"), metric
    raise RecipeError(
        f"model utility has no part {part!r}; "
        f"name it SET_METRIC, with the metric one of {', '.join(_PART_METRICS)}"
    )


def _resampled_parts(set_of: dict[str, str], scores: dict[str, pd.Series[float]], *, seed: int) -> FloatArray:
    """Means of every part in each resample, shape [parts, R]; parts of one set share its drawn examples."""
    rows = []
    for place, name in enumerate(sorted(set(set_of.values()))):
        members = [part for part in sorted(set_of) if set_of[part] == name]
        ids = sorted(set().union(*(scores[part].index for part in members)))
        counts_RN = resample_counts(len(ids), seed=[seed, place])
        rows += [
            resampled_means(np.asarray(scores[part].reindex(ids), dtype=np.float64), counts_RN)
            for part in members
        ]
    return np.stack(rows)
