"""Verbatim extraction: how far a greedy continuation repeats the true text (goldfish loss, arXiv 2406.10209).

The model is given the first part of a document and goes on by itself; the true continuation stands beside.
The metrics below compare either their texts (ROUGE-L) or their token ids, EOS left out. An example without a
true continuation is unscored; a model that says nothing scores 0. Some of any text can be guessed, so that
`excess.py` sets the score of a model that never saw the texts against the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, mean_result, not_measured
from unlearnkit.evaluation.metrics.rouge import (
    Measure,
    RougeTokenizer,
    rouge_note,
    rouge_scores,
    rouge_variant,
)
from unlearnkit.evaluation.records import (
    CONTINUATION,
    CONTINUE_TEXT,
    GENERATE_ANSWER,
    GENERATION,
    Records,
    select,
)

TextProbe: TypeAlias = Literal["continue_text", "generate_answer"]
Unit: TypeAlias = Literal["continuation", "token"]
_FIELDS = {CONTINUE_TEXT: CONTINUATION, GENERATE_ANSWER: GENERATION}


def matching_start(reference: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of `reference` are repeated before the first one that is not, in [0, len(reference)].

    A continuation that ends early departs where it ends; what it says beyond the reference is not looked at.
    """
    pairs = zip(reference, tokens, strict=False)
    departure = next((place for place, (true, said) in enumerate(pairs) if true != said), None)
    return min(len(reference), len(tokens)) if departure is None else departure


def is_whole(reference: Sequence[int], tokens: Sequence[int]) -> float:
    """1 if every token of `reference` is repeated in its place, else 0."""
    return float(matching_start(reference, tokens) == len(reference))


def common_run(reference: Sequence[int], tokens: Sequence[int]) -> int:
    """Length of the longest run of tokens that stands in both, wherever: the longest common substring."""
    places: dict[int, list[int]] = {}
    for place, token in enumerate(reference):
        places.setdefault(token, []).append(place)
    best = 0
    ending: dict[int, int] = {}  # place in the reference -> length of the run that ends there and here
    for token in tokens:
        ending = {place: ending.get(place - 1, 0) + 1 for place in places.get(token, ())}
        best = max(best, max(ending.values(), default=0))
    return best


def verbatim_rouge(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    probe: TextProbe = "continue_text",
    measure: Measure = "recall",
    tokenizer: RougeTokenizer = "auto",
    stemmer: bool = True,
    seed: int = 0,
) -> MetricResult:
    """Mean ROUGE-L of the continuations against the true ones, in [0, 1].

    With `measure="fmeasure"` and `stemmer=False`, this is VerbMem of MUSE (arXiv 2407.06460).

    Args:
        probe: `continue_text` (a document is continued) or `generate_answer` (a question is answered).
        measure, tokenizer, stemmer: see `rouge`.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    variant = rouge_variant(measure=measure, tokenizer=tokenizer, stemmer=stemmer)
    records = said_records(run, dataset, probe)
    if records.empty:
        return not_measured("verbatim_rouge", nothing_said(dataset, probe), variant=variant)
    scores = rouge_scores(records, measure=measure, tokenizer=tokenizer, stemmer=stemmer)
    note = "; ".join(filter(None, (rouge_note(records, tokenizer), cut_note(records))))
    return mean_result("verbatim_rouge", scores, variant=variant, note=note, seed=seed)


def verbatim_exact(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    probe: TextProbe = "continue_text",
    unit: Unit = "continuation",
    seed: int = 0,
) -> MetricResult:
    """Exact match rate in [0, 1]: share of the examples whose true continuation is repeated token by token.

    A continuation of L true tokens counts as matched when the first L tokens generated are those, in their
    places; an early end is no match, and words after the L tokens do no harm.

    Args:
        probe: see `verbatim_rouge`.
        unit: `continuation` counts whole continuations (1 or 0 an example); `token` takes the share of the L
            places whose token is right, whether or not the ones before it were.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("unit", unit, ("continuation", "token"))

    def share(reference: Sequence[int], tokens: Sequence[int]) -> float:
        equal = sum(true == said for true, said in zip(reference, tokens, strict=False))
        return equal / len(reference)

    variant = {
        "continuation": "share of continuations whose every true token is generated in its place",
        "token": "share of true tokens that are generated in their place",
    }[unit]
    scores = _token_scores(run, dataset, probe, is_whole if unit == "continuation" else share)
    note = cut_note(said_records(run, dataset, probe))
    return _result("verbatim_exact", scores, dataset, probe, variant=variant, note=note, seed=seed)


def longest_common_substring(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    probe: TextProbe = "continue_text",
    normalised: bool = False,
    seed: int = 0,
) -> MetricResult:
    """Mean length, in tokens, of the longest run of tokens that stands in both continuations, at any place.

    Args:
        probe: see `verbatim_rouge`.
        normalised: as a share of the true continuation's length, in [0, 1].
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    variant = f"longest run of common tokens, {_unit(normalised)}"
    scores = _token_scores(run, dataset, probe, common_run, normalised=normalised)
    return _result("longest_common_substring", scores, dataset, probe, variant=variant, seed=seed)


def first_departure(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    probe: TextProbe = "continue_text",
    normalised: bool = False,
    seed: int = 0,
) -> MetricResult:
    """Mean number of tokens that a continuation repeats before it first departs from the true one.

    One that never departs scores the true continuation's whole length, which caps the mean;
    `extra["never_departed"]` counts them.

    Args:
        probe: see `verbatim_rouge`.
        normalised: as a share of the true continuation's length, in [0, 1].
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    variant = f"tokens before the first departure, {_unit(normalised)}"
    scores = _token_scores(run, dataset, probe, matching_start, normalised=normalised)
    result = _result("first_departure", scores, dataset, probe, variant=variant, seed=seed)
    if result.measured:
        whole = _token_scores(run, dataset, probe, matching_start, normalised=True)
        result.extra = {"never_departed": int((whole == 1).sum())}
    return result


def cut_note(records: pd.DataFrame) -> str:
    """Says how many documents were shown without their beginning."""
    count = int((records["cut_tokens"] > 0).sum())
    return (
        f"{count} document(s) are longer than the model's positions and lost their beginning" if count else ""
    )


def _unit(normalised: bool) -> str:
    return "share of the true continuation" if normalised else "in tokens"


def nothing_said(dataset: str, probe: str) -> str:
    """Why there is nothing to compare with the true texts."""
    return f"no {'continuations' if probe == CONTINUE_TEXT else 'generations'} for {dataset!r}"


def said_records(run: Records, dataset: str, probe: TextProbe) -> pd.DataFrame:
    """What was said in a probe, beside the true texts.

    Raises:
        RecipeError: an unknown probe.
    """
    check_choice("probe", probe, tuple(_FIELDS))
    return select(run, probe, dataset, _FIELDS[probe])


def _token_scores(
    run: Records,
    dataset: str,
    probe: TextProbe,
    score: Callable[[Sequence[int], Sequence[int]], float],
    *,
    normalised: bool = False,
) -> pd.Series[float]:
    """`score(reference, tokens)` of each record (index: example id); NaN without a reference or a text."""
    records = said_records(run, dataset, probe)
    scores = []
    for text, reference, tokens in zip(
        records["text"], records["reference_tokens"], records["tokens"], strict=True
    ):
        true, said = _ids(reference), _ids(tokens)
        if not isinstance(text, str) or not true:
            scores.append(float("nan"))
        else:
            scores.append(score(true, said) / (len(true) if normalised else 1))
    return pd.Series(scores, index=records["example_id"].astype(str), dtype="float64")


def _ids(tokens: Any) -> list[int]:
    return [int(token) for token in tokens]


def _result(
    name: str, scores: pd.Series[float], dataset: str, probe: str, *, variant: str, seed: int, note: str = ""
) -> MetricResult:
    if scores.empty:
        return not_measured(name, nothing_said(dataset, probe), variant=variant)
    return mean_result(name, scores, variant=variant, note=note, seed=seed)
