"""Sampled leakage: what m sampled answers still tell, where the greedy answer hides it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, mean_result, not_measured
from unlearnkit.evaluation.metrics.rouge import (
    Measure,
    RougeTokenizer,
    rouge_note,
    rouge_scores,
    rouge_variant,
)
from unlearnkit.evaluation.records import SAMPLE, SAMPLE_ANSWER, Records, select

Aggregate: TypeAlias = Literal["expected", "worst"]


def sampled_leakage(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    aggregate: Aggregate = "expected",
    measure: Measure = "recall",
    tokenizer: RougeTokenizer = "auto",
    stemmer: bool = True,
    seed: int = 0,
) -> MetricResult:
    """ROUGE-L of sampled answers against the true one: mean over examples of the mean or of the maximum over
    the m samples of each, in [0, 1].

    Greedy decoding understates what is left in a model (arXiv 2511.04934); who may ask m times gets the worst
    of m. The worst grows with m, so that only values of the same m compare: `extra["samples"]` holds m, and a
    note counts the examples that have fewer scored samples. The interval resamples examples, not the samples
    of one.

    Args:
        aggregate: `expected` (mean over an example's samples) or `worst` (maximum).
        measure, tokenizer, stemmer: see `rouge`.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("aggregate", aggregate, ("expected", "worst"))
    definition = rouge_variant(measure=measure, tokenizer=tokenizer, stemmer=stemmer)
    records = select(run, SAMPLE_ANSWER, dataset, SAMPLE)
    if records.empty:
        return not_measured("sampled_leakage", f"no sampled answers for {dataset!r}", variant=definition)
    by_example = rouge_scores(records, measure=measure, tokenizer=tokenizer, stemmer=stemmer).groupby(level=0)
    samples = int(by_example.size().max())
    variant = f"{aggregate} of m = {samples} sampled answers, {definition}"
    scores = by_example.mean() if aggregate == "expected" else by_example.max()
    counts = by_example.count()
    fewer = int(((counts > 0) & (counts < samples)).sum())
    notes = [rouge_note(records.drop_duplicates("example_id"), tokenizer)]
    if fewer:
        notes.append(f"{fewer} of {len(counts)} examples have fewer than {samples} scored samples")
    note = "; ".join(filter(None, notes))
    result = mean_result("sampled_leakage", scores, variant=variant, note=note, seed=seed)
    result.extra = {"samples": samples}
    return result
