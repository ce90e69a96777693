"""Signs of collapse in what a model generates: repeated n-grams, and text unlikely to the target.

Not part of TOFU; they back a warning.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, mean_result, not_measured
from unlearnkit.evaluation.metrics.rouge import unicode_tokens
from unlearnkit.evaluation.records import (
    GENERATE_ANSWER,
    GENERATION,
    JUDGED_LIKELIHOOD,
    Records,
    answer_nll,
    select,
)


def _ngrams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def repeated_share(text: str, *, size: int = 4) -> float:
    """1 - distinct n-grams / n-grams of one text, in [0, 1); 0 for a text too short to have any."""
    grams = _ngrams(unicode_tokens(text), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(
    run: Records, *, dataset: str, retain: Records | None = None, size: int = 4, seed: int = 0
) -> MetricResult:
    """Mean share of repeated n-grams (n = `size`) within each generation, in [0, 1); near 1 is babble."""
    variant = f"share of repeated {size}-grams within a generation"
    records = select(run, GENERATE_ANSWER, dataset, GENERATION)
    if records.empty:
        return not_measured("repetition", f"no generations for {dataset!r}", variant=variant)
    scores = [
        repeated_share(text, size=size) if isinstance(text, str) else float("nan") for text in records["text"]
    ]
    series = pd.Series(scores, index=records["example_id"].astype(str), dtype="float64")
    return mean_result("repetition", series, variant=variant, seed=seed)


def distinct_n(run: Records, *, dataset: str, retain: Records | None = None, size: int = 2) -> MetricResult:
    """Distinct n-grams over all n-grams of all generations, in (0, 1]; near 0 the answers are all alike.

    One number of the whole set: it has no per-example scores and no interval (arXiv 1510.03055).
    """
    variant = f"distinct {size}-grams over all generations"
    records = select(run, GENERATE_ANSWER, dataset, GENERATION)
    texts = [text for text in records["text"] if isinstance(text, str)]
    grams = [gram for text in texts for gram in _ngrams(unicode_tokens(text), size)]
    if not grams:
        why = f"no generations of {size} words or more for {dataset!r}"
        return not_measured("distinct_n", why, variant=variant)
    unscored = [str(key) for key in records.loc[records["text"].isna(), "example_id"]]
    value = len(set(grams)) / len(grams)
    return MetricResult("distinct_n", value, n=len(texts), unscored=unscored, variant=variant)


def judged_logp(run: Records, *, dataset: str, retain: Records | None = None, seed: int = 0) -> MetricResult:
    """Mean log-prob per token, in nats (<= 0), that the target model gives to what the model itself says.

    Per example the mean over the tokens of its own generation, then the mean over examples. Far below the
    value of the target model's own answers, the model babbles. A generation without tokens is unscored.
    """
    variant = "mean per-token log-prob of the model's own answers under the target model"
    records = select(run, JUDGED_LIKELIHOOD, dataset, GENERATION)
    if records.empty:
        why = f"no generations for {dataset!r} that the target model has judged; name it with --target"
        return not_measured("judged_logp", why, variant=variant)
    scores = -answer_nll(records).set_axis(records["example_id"].astype(str))
    return mean_result("judged_logp", scores, variant=variant, seed=seed)
