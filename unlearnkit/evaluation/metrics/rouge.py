"""ROUGE-L of generated answers, equal to the `rouge_score` library, and usable for every script.

`rouge_score` keeps only the characters a-z and 0-9: a Chinese or Arabic answer has no tokens there and
scores 0 whatever the model says. Answers whose letters are mostly outside a-z are therefore split by
`unicode_tokens` instead; for all others the library's own tokenizer, with stemming, is used and the scores
are exactly its scores. The tokenizer is the library's, the common subsequence is ours: the library fills a
table in Python, which made ROUGE the dearest of all metrics.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, mean_result, not_measured
from unlearnkit.evaluation.records import GENERATE_ANSWER, GENERATION, Records, select

Measure: TypeAlias = Literal["recall", "precision", "fmeasure"]
RougeTokenizer: TypeAlias = Literal["auto", "rouge_score", "unicode", "compat"]
MEASURES = ("recall", "precision", "fmeasure")
TOKENIZERS = ("auto", "rouge_score", "unicode", "compat")
# Scripts written without spaces between words: one token per character.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")


class Rouge(NamedTuple):
    """ROUGE of one text against its reference, each in [0, 1]."""

    precision: float
    recall: float
    fmeasure: float


def unicode_tokens(text: str) -> list[str]:
    """Split text of any script: words where there are spaces, single characters where there are none (Han,
    Thai, ...).

    Letters, digits and the marks that belong to them are kept, after compatibility folding and case folding.
    """
    if text.isascii():  # the same words, found faster
        return _ASCII_WORD.findall(text.lower())
    tokens: list[str] = []
    open_word = False
    for char in _folded(text):
        kind = unicodedata.category(char)[0]
        if kind not in "LNM":
            open_word = False
        elif kind == "M" and tokens:
            tokens[-1] += char
        elif any(low <= ord(char) <= high for low, high in _UNSPACED):
            tokens.append(char)
            open_word = False
        elif open_word:
            tokens[-1] += char
        else:
            tokens.append(char)
            open_word = True
    return tokens


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _has_tokens(text: str) -> bool:
    return any(unicodedata.category(char)[0] in "LNM" for char in _folded(text))


def needs_unicode(reference: str) -> bool:
    """Whether more than half of the letters are outside a-z (case aside): `rouge_score` would drop them."""
    if reference.isascii():
        return False
    letters = [char for char in reference.lower() if char.isalpha()]
    return 2 * sum(char.isascii() for char in letters) < len(letters)


class _Stemmer:
    """The Porter stemmer that `rouge_score` uses; each word is stemmed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # comes with rouge_score

        self.stem = functools.lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


@functools.cache
def _stemmer() -> _Stemmer:
    return _Stemmer()


@functools.lru_cache(maxsize=1 << 12)
def _tokens(text: str, unicode: bool, stemmer: bool) -> tuple[str, ...]:
    # Remembered, since a reference meets many texts: samples, attacks, other models.
    if unicode:
        return tuple(unicode_tokens(text))
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(text, _stemmer() if stemmer else None))


def lcs_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common subsequence of two sequences of hashable items.

    Bit-parallel (Hyyrö 2004): bit i of `row` is 0 where the table's row steps up at item i of `first`, so one
    addition of whole integers stands for a row of the table.
    """
    places: dict[Any, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    mask = (1 << len(first)) - 1
    row = mask
    for item in second:
        if step := row & places.get(item, 0):
            row = (row + step | row - step) & mask
    return len(first) - row.bit_count()


@functools.lru_cache(maxsize=1 << 14)
def _score(reference: str, generation: str, unicode: bool, stemmer: bool) -> Rouge:
    # Remembered, since model utility reads the same generations as the ROUGE of each set.
    target, output = _tokens(reference, unicode, stemmer), _tokens(generation, unicode, stemmer)
    if not target or not output:
        return Rouge(0.0, 0.0, 0.0)
    common = lcs_length(target, output)
    precision, recall = common / len(output), common / len(target)
    total = precision + recall
    return Rouge(precision, recall, 2 * precision * recall / total if total > 0 else 0.0)


def rouge_l(
    reference: str,
    generation: str,
    *,
    measure: Measure = "recall",
    tokenizer: RougeTokenizer = "auto",
    stemmer: bool = True,
) -> float:
    """ROUGE-L of one generation against one reference, in [0, 1]; NaN when the reference has no tokens at
    all.

    Recall is the length of the longest common subsequence of tokens over the reference's length (Lin, 2004).

    Args:
        reference: the true text.
        generation: what the model said.
        measure: recall, precision, or their harmonic mean fmeasure.
        tokenizer: see `rouge`.
        stemmer: compare the stems of English words (Porter), as TOFU does and MUSE does not.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("measure", measure, MEASURES)
    check_choice("tokenizer", tokenizer, TOKENIZERS)
    unicode = tokenizer == "unicode" or (tokenizer == "auto" and needs_unicode(reference))
    if not _has_tokens(reference):
        return float("nan")
    score = _score(reference, generation, unicode, stemmer and not unicode)
    return {"recall": score.recall, "precision": score.precision, "fmeasure": score.fmeasure}[measure]


def rouge_scores(
    records: pd.DataFrame, *, measure: Measure, tokenizer: RougeTokenizer, stemmer: bool
) -> pd.Series[float]:
    """ROUGE-L of each record's `text` against its `reference_text` (index: example id); NaN where either is
    missing."""
    scores = [
        rouge_l(reference, text, measure=measure, tokenizer=tokenizer, stemmer=stemmer)
        if isinstance(text, str) and isinstance(reference, str)
        else float("nan")
        for reference, text in zip(records["reference_text"], records["text"], strict=True)
    ]
    return pd.Series(scores, index=records["example_id"].astype(str), dtype="float64")


def rouge_variant(*, measure: str, tokenizer: str, stemmer: bool) -> str:
    """The definition behind a ROUGE, in words.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("measure", measure, MEASURES)
    check_choice("tokenizer", tokenizer, TOKENIZERS)
    splitter = "rouge_score" if tokenizer == "compat" else tokenizer
    return f"ROUGE-L {measure}, {'stemmed' if stemmer else 'not stemmed'}, tokenizer {splitter}"


def rouge_note(records: pd.DataFrame, tokenizer: str) -> str:
    """Says how many references were compared with the unicode tokenizer, where that was chosen for them."""
    folded = sum(needs_unicode(text) for text in records["reference_text"] if isinstance(text, str))
    if folded and tokenizer == "auto":
        return f"{folded} answers are not in Latin script and were compared with the unicode tokenizer"
    return ""


def rouge(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    measure: Measure = "recall",
    tokenizer: RougeTokenizer = "auto",
    stemmer: bool = True,
    seed: int = 0,
) -> MetricResult:
    """Mean ROUGE-L of the generations against the true answers, in [0, 1] (arXiv 2401.06121, 2.2.2: recall).

    With `measure="fmeasure"`, `stemmer=False` and MUSE's questions, this is its KnowMem (arXiv 2407.06460).

    Args:
        measure: recall (TOFU), precision or fmeasure (MUSE).
        tokenizer: `rouge_score` the library's own, which keeps a-z and 0-9 only (`compat` is another name for
            it); `unicode` ours; `auto` ours only for answers in other scripts.
        stemmer: compare the stems of English words (TOFU); the unicode tokenizer never stems.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    variant = rouge_variant(measure=measure, tokenizer=tokenizer, stemmer=stemmer)
    records = select(run, GENERATE_ANSWER, dataset, GENERATION)
    if records.empty:
        return not_measured("rouge", f"no generations for {dataset!r}", variant=variant)
    scores = rouge_scores(records, measure=measure, tokenizer=tokenizer, stemmer=stemmer)
    return mean_result("rouge", scores, variant=variant, note=rouge_note(records, tokenizer), seed=seed)
