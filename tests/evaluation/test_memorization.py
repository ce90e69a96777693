"""Exact memorisation, extraction strength, verbatim extraction: values worked by hand, degenerate cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers_metrics import answer, continuation
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError, RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics.memorization import exact_share, extractable_share
from unlearnkit.evaluation.metrics.verbatim import common_run, matching_start
from unlearnkit.evaluation.records import EvalRun, new_records

Y, N = True, False


def hit(example_id: str, *hits: bool, eos: bool = True) -> dict[str, Any]:
    return answer(example_id, [-1.0] * len(hits), hits=hits, eos=eos)


@pytest.mark.parametrize(
    ("hits", "exact", "strength", "compat"),
    [
        # L = 4, misses at 1: from k = 2 on all are predicted, 1 - 2/4.
        ([Y, N, Y, Y], 3 / 4, 1 / 2, 1 / 2),
        ([Y, Y, Y, Y], 1, 1, 1),  # all extracted: k = 0
        ([N, N, N, N], 0, 0, 1 / 4),  # nothing extracted: k = L; the peer stops at k = L - 1
        ([Y, Y, Y, N], 3 / 4, 0, 1 / 4),  # nothing follows to the end, though most is predicted
        ([N, N, N, Y], 1 / 4, 1 / 4, 1 / 4),  # the last token: k = L - 1, for the peer too
        ([Y], 1, 1, 1),
        ([N], 0, 0, 1),  # one missed token is the peer's strangest case: 1/L = 1
    ],
)
def test_shares_of_one_answer(hits: list[bool], exact: float, strength: float, compat: float) -> None:
    assert exact_share(hits) == exact
    assert extractable_share(hits) == strength
    assert extractable_share(hits, compat=True) == compat


def test_no_tokens_have_no_share() -> None:
    assert math.isnan(exact_share([]))
    assert math.isnan(extractable_share([]))
    assert math.isnan(extractable_share([], compat=True))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_by_its_definition(hits: list[bool]) -> None:
    """1 - k/L with k searched as the definition says, and as the peer's loop does (k < L, last k kept)."""
    length = len(hits)
    suffixes = [k for k in range(length + 1) if all(hits[k:])]
    assert extractable_share(hits) == 1 - suffixes[0] / length
    peer = next((k for k in range(length) if all(hits[k:])), length - 1)
    assert extractable_share(hits, compat=True) == 1 - peer / length
    assert extractable_share(hits) <= exact_share(hits) + 1e-12
    assert extractable_share(hits) <= extractable_share(hits, compat=True)


def test_the_final_eos_is_dropped() -> None:
    """a: tokens Y N Y, EOS missed: 2/3 and 1/3; with the EOS 2/4 and 0. b was cut, so its last token counts:
    1/2 and 1/2. Means (2/3 + 1/2) / 2 = 7/12 and (1/3 + 1/2) / 2 = 5/12; with EOS 1/2 and 1/4.
    """
    run = new_records([hit("a", Y, N, Y, N), hit("b", N, Y, eos=False)])
    assert metrics.exact_memorization(run, dataset="forget").value == pytest.approx(7 / 12)
    assert metrics.extraction_strength(run, dataset="forget").value == pytest.approx(5 / 12)
    assert metrics.exact_memorization(run, dataset="forget", eos=True).value == pytest.approx(1 / 2)
    assert metrics.extraction_strength(run, dataset="forget", eos=True).value == pytest.approx(1 / 4)


def test_answers_without_tokens_are_unscored() -> None:
    """b has no tokens, c only an EOS, d a NaN log-prob: its arg-max means nothing."""
    broken = answer("d", [-1.0, math.nan, -1.0], hits=[Y, Y, Y])
    run = new_records([hit("a", Y, Y), hit("b", eos=False), hit("c", Y), broken])
    for kind in ("exact_memorization", "extraction_strength"):
        result = metrics.KINDS[kind](run, dataset="forget")
        assert (result.value, result.n, result.unscored) == (1.0, 1, ["b", "c", "d"])
    assert metrics.extraction_strength(run, dataset="forget", compat=True).unscored == ["b", "c", "d"]
    with_eos = metrics.exact_memorization(run, dataset="forget", eos=True)
    assert (with_eos.n, with_eos.unscored) == (2, ["b", "d"])
    nothing = metrics.extraction_strength(new_records([hit("c", Y)]), dataset="forget")
    assert nothing.note == "not measured: no example could be scored"


def test_variants_are_named_and_paraphrases_left_alone() -> None:
    run = new_records([hit("a", Y, N, Y), {**hit("a", N, N, N), "field": "paraphrased_answer"}])
    assert metrics.exact_memorization(run, dataset="forget").value == 1 / 2
    assert "compat" in metrics.extraction_strength(run, dataset="forget", compat=True).variant
    assert "EOS dropped" in metrics.extraction_strength(run, dataset="forget").variant
    assert "EOS counted" in metrics.exact_memorization(run, dataset="forget", eos=True).variant


@pytest.mark.parametrize(
    ("reference", "tokens", "start", "run"),
    [
        ([1, 2, 3], [1, 2, 3], 3, 3),  # all
        ([1, 2, 3], [4, 5, 6], 0, 0),  # nothing
        ([1, 2, 3], [], 0, 0),
        ([1, 2, 3], [1, 2], 2, 2),  # ends early
        ([1, 2, 3], [1, 2, 3, 9], 3, 3),  # goes on
        ([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 1, 3),  # departs at once, comes back
        ([1, 2, 3, 4], [9, 1, 2, 3], 0, 3),  # shifted by one
        ([1, 1, 2, 1, 1, 1], [1, 1, 1], 2, 3),  # repeats
        ([7], [7], 1, 1),
        ([7], [8, 7], 0, 1),
    ],
)
def test_departure_and_common_run(reference: list[int], tokens: list[int], start: int, run: int) -> None:
    assert matching_start(reference, tokens) == start
    assert common_run(reference, tokens) == run


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), max_size=9))
def test_common_run_by_its_definition(first: list[int], second: list[int]) -> None:
    def runs(tokens: list[int]) -> set[tuple[int, ...]]:
        places = range(len(tokens) + 1)
        return {tuple(tokens[i:j]) for i in places for j in places[i:]}

    assert common_run(first, second) == max(map(len, runs(first) & runs(second)))
    assert common_run(first, second) == common_run(second, first)
    assert matching_start(first, second) <= common_run(first, second)


CONTINUATIONS = [
    continuation("a", [1, 2, 3, 4], [1, 2, 3, 4, 5]),  # all of it, and more
    continuation("b", [1, 2, 3, 4], [1, 2, 9, 4]),  # departs after 2
    continuation("c", [1, 2], [9, 1]),
    continuation("d", [1, 2, 3, 4], []),  # says nothing
]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("verbatim_exact", {}, [1, 0, 0, 0]),
        ("verbatim_exact", {"unit": "token"}, [1, 3 / 4, 0, 0]),
        ("longest_common_substring", {}, [4, 2, 1, 0]),
        ("longest_common_substring", {"normalised": True}, [1, 1 / 2, 1 / 2, 0]),
        ("first_departure", {}, [4, 2, 0, 0]),
        ("first_departure", {"normalised": True}, [1, 1 / 2, 0, 0]),
        # The common subsequences are 4, 3, 1 and 0 words: over 4, 4, 2, 4 true and 5, 4, 2, 0 said.
        ("verbatim_rouge", {}, [1, 3 / 4, 1 / 2, 0]),
        ("verbatim_rouge", {"measure": "fmeasure"}, [8 / 9, 3 / 4, 1 / 2, 0]),
    ],
)
def test_verbatim_metrics(kind: str, options: dict[str, Any], expected: list[float]) -> None:
    result = metrics.KINDS[kind](new_records(CONTINUATIONS), dataset="verbmem", **options)
    assert result.per_example is not None
    assert result.per_example.to_dict() == pytest.approx(dict(zip("abcd", expected, strict=True)))
    assert result.value == pytest.approx(sum(expected) / 4)
    assert (result.n, result.unscored) == (4, [])
    if kind == "first_departure":
        assert result.extra == {"never_departed": 1}


@pytest.mark.parametrize(
    "kind", ["verbatim_rouge", "verbatim_exact", "longest_common_substring", "first_departure"]
)
def test_verbatim_metrics_of_other_records(kind: str, tmp_path: Path) -> None:
    """No true continuation, or no generation: unscored. The same from disk; questions answered by option."""
    metric = metrics.KINDS[kind]
    rows = [continuation("a", [1, 2], [1, 2]), continuation("b", [], [1])]
    rows.append(continuation("c", [1, 2], [], scored=False))
    run = EvalRun(new_records(rows))
    result = metric(run, dataset="verbmem")
    assert (result.n, result.unscored) == (1, ["b", "c"])
    run.save(tmp_path)
    assert metric(EvalRun.load(tmp_path), dataset="verbmem").as_json() == result.as_json()

    answered = new_records([continuation("a", [1, 2], [1, 2], probe="generate_answer", dataset="forget")])
    assert metric(answered, dataset="forget", probe="generate_answer").value == result.value
    missing = metric(answered, dataset="forget")
    assert missing.note == "not measured: no continuations for 'forget'"
    with pytest.raises(RecipeError, match="probe='sample_answer'"):
        metric(answered, dataset="forget", probe="sample_answer")


def test_unknown_options_are_refused() -> None:
    run = new_records(CONTINUATIONS)
    with pytest.raises(RecipeError, match="unit='word'"):
        metrics.verbatim_exact(run, dataset="verbmem", unit="word")
    with pytest.raises(RecipeError, match="measure='f1'"):
        metrics.verbatim_rouge(run, dataset="verbmem", measure="f1")


def test_muse_does_not_stem() -> None:
    """VerbMem of "books" said as "book": a stemmed match, none without; F1 of 1 in 2 words each is 1/2."""
    row = continuation("a", [1], [1], text="two book")
    run = new_records([{**row, "reference_text": "two books"}])
    assert metrics.verbatim_rouge(run, dataset="verbmem", measure="fmeasure").value == 1
    muse = metrics.verbatim_rouge(run, dataset="verbmem", measure="fmeasure", stemmer=False)
    assert muse.value == 1 / 2
    assert muse.variant == "ROUGE-L fmeasure, not stemmed, tokenizer auto"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), max_size=5),
            st.lists(st.integers(0, 2), max_size=5),
            st.lists(st.booleans(), max_size=5),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**31 - 1),
)
def test_row_order_changes_nothing(
    examples: list[tuple[list[int], list[int], list[bool]]], seed: int
) -> None:
    rows = []
    for i, (reference, tokens, hits) in enumerate(examples):
        rows += [continuation(f"e{i}", reference, tokens), {**hit(f"e{i}", *hits), "dataset": "verbmem"}]
    frame = new_records(rows)
    shuffled = frame.sample(frac=1, random_state=seed)
    for kind in (
        "exact_memorization",
        "extraction_strength",
        "verbatim_rouge",
        "verbatim_exact",
        "longest_common_substring",
        "first_departure",
    ):
        first = metrics.KINDS[kind](frame, dataset="verbmem")
        assert first.as_json() == metrics.KINDS[kind](shuffled, dataset="verbmem").as_json()
        assert math.isnan(first.value) or 0 <= first.value <= 5


def test_beyond_the_retain_model() -> None:
    """Exact: 1, 0, 0, 0 here and 1, 1, 0, - there. a: 0, b: -1, c: 0; d has no text there: mean -1/3. ROUGE-L
    recall: a 1 - 1, b 3/4 - 1, c 1/2 - 0 = 1/2: mean 1/12."""
    control = new_records(
        [
            continuation("a", [1, 2, 3, 4], [1, 2, 3, 4]),
            continuation("b", [1, 2, 3, 4], [1, 2, 3, 4]),
            continuation("c", [1, 2], [7]),
            continuation("d", [1, 2, 3, 4], [], scored=False),
        ]
    )
    run = new_records(CONTINUATIONS)
    exact = metrics.verbatim_excess(run, dataset="verbmem", retain=control)
    assert exact.per_example is not None
    assert exact.per_example.dropna().to_dict() == {"a": 0, "b": -1, "c": 0}
    assert (exact.value, exact.n, exact.unscored) == (pytest.approx(-1 / 3), 3, ["d"])
    assert exact.extra == {"own": pytest.approx(1 / 3), "reference": pytest.approx(2 / 3)}
    assert exact.low is not None
    assert exact.high is not None
    assert -1 <= exact.low <= exact.value <= exact.high <= 0
    overlap = metrics.verbatim_excess(run, dataset="verbmem", retain=control, score="rouge")
    assert overlap.value == pytest.approx(1 / 12)
    assert metrics.verbatim_excess(run, dataset="verbmem", retain=run).value == 0
    opposite = metrics.verbatim_excess(control, dataset="verbmem", retain=run)
    assert opposite.value == pytest.approx(-exact.value)


def test_what_the_excess_needs() -> None:
    run = new_records(CONTINUATIONS)
    alone = metrics.verbatim_excess(run, dataset="verbmem")
    assert not alone.measured
    assert alone.note.endswith("name it with --reference, or as evaluation.reference")
    empty = metrics.verbatim_excess(run, dataset="verbmem", retain=new_records([]))
    assert empty.note.endswith("evaluation has no continuations for 'verbmem'")
    with pytest.raises(RecordsError, match="do not cover the same examples"):
        metrics.verbatim_excess(run, dataset="verbmem", retain=new_records(CONTINUATIONS[:2]))
    with pytest.raises(RecipeError, match="score='bleu'"):
        metrics.verbatim_excess(run, dataset="verbmem", retain=run, score="bleu")
    elsewhere = [{**row, "reference_text": "9 9"} for row in CONTINUATIONS[:1]] + CONTINUATIONS[1:]
    split = metrics.verbatim_excess(run, dataset="verbmem", retain=new_records(elsewhere))
    assert split.note == "1 of 4 texts were split elsewhere for the retain model"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_the_excess_is_the_difference_of_the_means(hits: list[tuple[bool, bool]]) -> None:
    def of(side: int) -> Any:
        return new_records(
            [continuation(f"e{i}", [1, 2], [1, 2] if hit[side] else [1]) for i, hit in enumerate(hits)]
        )

    excess = metrics.verbatim_excess(of(0), dataset="verbmem", retain=of(1))
    both = [metrics.verbatim_exact(of(side), dataset="verbmem").value for side in (0, 1)]
    assert excess.value == pytest.approx(both[0] - both[1])
    assert -1 <= excess.value <= 1
