"""ROUGE-L in every script, and repetition."""

from __future__ import annotations

import math

import pytest
from helpers_metrics import generation
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics.fluency import repeated_share
from unlearnkit.evaluation.metrics.rouge import lcs_length, rouge_l, unicode_tokens
from unlearnkit.evaluation.records import new_records


def test_recall_precision_and_f() -> None:
    """Common subsequence "the cat sat" = 3 tokens; reference 4, generation 6: 3/4, 1/2, 3/5."""
    reference, text = "The cat sat down.", "yes, the black cat sat there"
    assert rouge_l(reference, text) == pytest.approx(3 / 4)
    assert rouge_l(reference, text, measure="precision") == pytest.approx(1 / 2)
    assert rouge_l(reference, text, measure="fmeasure") == pytest.approx(3 / 5)
    assert rouge_l("writing books", "written book") == pytest.approx(1 / 2)  # "books" and "book" share a stem
    with pytest.raises(RecipeError, match="measure='recal'"):
        rouge_l("a", "a", measure="recal")


@settings(max_examples=200, deadline=None)
@given(
    st.text("abcdefgh ,.é1", min_size=1, max_size=30).filter(lambda text: any(c in "abcdefgh" for c in text)),
    st.text("abcdefgh ,.é1", max_size=30),
)
def test_latin_text_scores_exactly_as_rouge_score(reference: str, text: str) -> None:
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].recall
    assert rouge_l(reference, text, tokenizer="rouge_score") == expected
    if reference.count("é") <= sum(c in "abcdefgh" for c in reference):
        assert rouge_l(reference, text) == expected


class _UnicodeTokenizer:
    """Gives `rouge_score` our tokens."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_tokens(text)


_WORDS = st.sampled_from(
    [
        "Writing",
        "written",
        "books",
        "book",
        "the",
        "cats",
        "cat",
        "don't",
        "1995",
        "e-mail",
        "né",
        "北京",
        "fly",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_WORDS, max_size=14), st.lists(_WORDS, max_size=14), st.booleans())
def test_every_measure_is_the_librarys_to_the_last_bit(
    reference: list[str], said: list[str], stemmer: bool
) -> None:
    pair = " ".join(reference), " ".join(said)
    own = RougeScorer(["rougeL"], use_stemmer=stemmer).score(*pair)["rougeL"]
    ours = RougeScorer(["rougeL"], tokenizer=_UnicodeTokenizer()).score(*pair)["rougeL"]
    for measure in ("recall", "precision", "fmeasure"):
        for tokenizer, score in (("rouge_score", own), ("compat", own), ("unicode", ours)):
            value = rouge_l(*pair, measure=measure, tokenizer=tokenizer, stemmer=stemmer)
            assert value == getattr(score, measure) or (not reference and math.isnan(value))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=70), st.lists(st.integers(0, 3), max_size=70))
def test_common_subsequence_by_the_table(first: list[int], second: list[int]) -> None:
    """Up to 70 items, so that the row of bits is longer than a machine word."""
    above = [0] * (len(second) + 1)
    for item in first:
        row = [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if item == other else max(above[j + 1], row[j]))
        above = row
    assert lcs_length(first, second) == above[-1] == lcs_length(second, first)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("他出生在台北", "他生在台北", 5 / 6),
        ("ولدت في دمشق", "ولدت في حلب", 2 / 3),
        ("Она родилась в Москве в 1995", "она родилась в 1990", 3 / 6),
        ("उनका जन्म दिल्ली में हुआ", "जन्म दिल्ली", 2 / 5),
        ("เขียน", "เขียน", 1.0),
        ("他用GPT写作品", "GPT", 1 / 6),
    ],
)
def test_other_scripts_are_not_silently_zero(reference: str, text: str, expected: float) -> None:
    assert rouge_l(reference, text) == pytest.approx(expected)
    assert rouge_l(reference, "") == 0
    assert rouge_l(reference, reference) == 1


def test_unicode_tokens() -> None:
    assert unicode_tokens("Ｈello, 世界 42!") == ["hello", "世", "界", "42"]
    assert unicode_tokens("हिन्दी") == ["हिन्दी"]
    assert unicode_tokens(" ... ") == []
    assert unicode_tokens("Snake_case's 2nd\tE-mail") == ["snake", "case", "s", "2nd", "e", "mail"]
    # Text in ASCII takes a shorter way; one more letter sends it the long one.
    every = "".join(map(chr, range(128)))
    assert unicode_tokens(every + " é") == [*unicode_tokens(every), "é"]


def test_rouge_of_records() -> None:
    rows = [generation("a", "one two", "two"), generation("b", "one two", ""), generation("c", "!", "one")]
    result = metrics.rouge(new_records([*rows, generation("d", "one", None)]), dataset="forget")
    assert (result.value, result.n, result.unscored) == (0.25, 2, ["c", "d"])
    chinese = metrics.rouge(new_records([generation("a", "台北", "台北")]), dataset="forget")
    assert chinese.value == 1
    assert "unicode tokenizer" in chinese.note


@pytest.mark.parametrize("text", ["他出生在台北", "ولدت في دمشق", "Она родилась в Москве"])
def test_compat_is_rouge_score_and_sees_only_latin(text: str) -> None:
    run = new_records([generation("a", text, text)])
    assert metrics.rouge(run, dataset="forget").value == 1
    compat = metrics.rouge(run, dataset="forget", tokenizer="compat")
    assert compat.value == 0
    assert compat.as_json() == metrics.rouge(run, dataset="forget", tokenizer="rouge_score").as_json()


def test_knowmem_of_muse_is_not_stemmed() -> None:
    """ "He writes" for "writing": stems agree in 1 of 2 and 1 words, F1 2/3; the words themselves do not."""
    run = new_records([generation("a", "writing", "He writes")])
    assert metrics.rouge(run, dataset="forget", measure="fmeasure").value == pytest.approx(2 / 3)
    muse = metrics.rouge(run, dataset="forget", measure="fmeasure", stemmer=False)
    assert muse.value == 0
    assert "not stemmed" in muse.variant


def test_repetition() -> None:
    """ "a" ten times: 7 four-grams, 1 distinct, 1 - 1/7. A sentence without repeats: 0. Two words: 0."""
    assert repeated_share("a " * 10) == pytest.approx(6 / 7)
    assert repeated_share("one two three four five") == 0
    assert repeated_share("one two") == 0
    run = new_records(
        [generation("a", "x", "a " * 10), generation("b", "x", "fine"), generation("c", "x", None)]
    )
    result = metrics.repetition(run, dataset="forget")
    assert result.value == pytest.approx(3 / 7)
    assert result.unscored == ["c"]
    # 9 bigrams "a a", all alike.
    assert metrics.distinct_n(run, dataset="forget").value == pytest.approx(1 / 9)
    assert math.isnan(metrics.distinct_n(run, dataset="retain").value)
