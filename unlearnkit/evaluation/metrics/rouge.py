"""ROUGE-L of generated answers, equal to the `rouge_score` library, and usable for every script.

`rouge_score` keeps only the characters a-z and 0-9: a Chinese or Arabic answer has no tokens there and
scores 0 whatever the model says. Answers whose letters are mostly outside a-z are therefore split by
`unicode_tokens` instead; for all others the library's own tokenizer, with stemming, is used and the scores
are exactly its scores.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any, Literal

import pandas as pd

from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, mean_result, not_measured
from unlearnkit.evaluation.records import GENERATE_ANSWER, GENERATION, Records, select

MEASURES = ("recall", "precision", "fmeasure")
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


def unicode_tokens(text: str) -> list[str]:
    """Split text of any script: words where there are spaces, single characters where there are none (Han,
    Thai, ...).

    Letters, digits and the marks that belong to them are kept, after compatibility folding and case folding.
    """
    tokens: list[str] = []
    open_word = False
    for char in unicodedata.normalize("NFKC", text).casefold():
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


def needs_unicode(reference: str) -> bool:
    """Whether more than half of the letters are outside a-z (case aside): `rouge_score` would drop them."""
    letters = [char for char in reference.lower() if char.isalpha()]
    return 2 * sum(char.isascii() for char in letters) < len(letters)


class _UnicodeTokenizer:
    """What RougeScorer asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_tokens(text)


@functools.lru_cache(maxsize=2)
def _scorer(unicode: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=_UnicodeTokenizer() if unicode else None)


@functools.lru_cache(maxsize=1 << 14)
def _score(reference: str, generation: str, unicode: bool) -> Any:
    # Remembered, since model utility reads the same generations as the ROUGE of each set.
    return _scorer(unicode).score(reference, generation)["rougeL"]


def rouge_l(
    reference: str,
    generation: str,
    *,
    measure: Literal["recall", "precision", "fmeasure"] = "recall",
    tokenizer: Literal["auto", "rouge_score", "unicode"] = "auto",
) -> float:
    """ROUGE-L of one generation against one reference, in [0, 1]; NaN when the reference has no tokens at
    all.

    Recall is the length of the longest common subsequence of tokens over the reference's length (Lin, 2004).

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("measure", measure, MEASURES)
    check_choice("tokenizer", tokenizer, ("auto", "rouge_score", "unicode"))
    unicode = tokenizer == "unicode" or (tokenizer == "auto" and needs_unicode(reference))
    if not unicode_tokens(reference):
        return float("nan")
    return float(getattr(_score(reference, generation, unicode), measure))


def rouge(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    measure: Literal["recall", "precision", "fmeasure"] = "recall",
    tokenizer: Literal["auto", "rouge_score", "unicode"] = "auto",
    seed: int = 0,
) -> MetricResult:
    """Mean ROUGE-L of the generations against the true answers, in [0, 1] (arXiv 2401.06121, 2.2.2: recall).

    Args:
        measure: recall (TOFU), precision or fmeasure.
        tokenizer: `rouge_score` the library's own, `unicode` ours, `auto` ours only for answers in other
            scripts.
        seed: draws the bootstrap interval.

    Raises:
        RecipeError: an option has an unknown value.
    """
    variant = f"ROUGE-L {measure}, stemmed, tokenizer {tokenizer}"
    records = select(run, GENERATE_ANSWER, dataset, GENERATION)
    if records.empty:
        return not_measured("rouge", f"no generations for {dataset!r}", variant=variant)
    scores = pd.Series(
        [
            rouge_l(reference, text, measure=measure, tokenizer=tokenizer)
            if isinstance(text, str) and isinstance(reference, str)
            else float("nan")
            for reference, text in zip(records["reference_text"], records["text"], strict=True)
        ],
        index=records["example_id"].astype(str),
        dtype="float64",
    )
    folded = sum(needs_unicode(text) for text in records["reference_text"] if isinstance(text, str))
    note = ""
    if folded and tokenizer == "auto":
        note = f"{folded} answers are not in Latin script and were compared with the unicode tokenizer"
    return mean_result("rouge", scores, variant=variant, note=note, seed=seed)
