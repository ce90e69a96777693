"""What finds risky stretches in texts: names, patterns, a classifier of sentences, a function of the user's.

An annotator is called with texts and answers with the spans of each. `annotate` puts what several of them
find into the column `spans` of a table (see `data/spans.py`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from unlearnkit.data.formats import text_to_learn
from unlearnkit.data.spans import SPANS, Span, as_span, merged, spans_of
from unlearnkit.data.terms import checked_expression, term_pattern
from unlearnkit.errors import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

HIGH = "high"
#: Class -> the score above which a sentence belongs to it; the published ones.
THRESHOLDS = {"high": 0.99, "middle": 1e-4}
#: Rows that are annotated at a time.
_ROWS = 256


class Annotator(Protocol):
    """Finds spans."""

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text; they may overlap."""


@dataclass(frozen=True)
class Names:
    """Names as whole words, also before 's; with `parts` a name's first and last word alone too.

    Args:
        names: see `data/terms.py`; a name between slashes is a regular expression.
        risk: their class.
        ignore_case: find them in small or capital letters too.
    """

    names: Sequence[str]
    risk: str = HIGH
    parts: bool = True
    ignore_case: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return term_pattern(self.names, parts=self.parts, ignore_case=self.ignore_case)

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [_found(self._pattern, text, self.risk) for text in texts]


@dataclass(frozen=True)
class Patterns:
    """Whatever one of several regular expressions finds."""

    expressions: Sequence[str]
    risk: str = HIGH

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [checked_expression(one) for one in self.expressions]

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [[span for one in self._patterns for span in _found(one, text, self.risk)] for text in texts]


def _found(pattern: re.Pattern[str], text: str, risk: str) -> list[Span]:
    """Every match but the empty ones, which a look-around may find in the middle of a text."""
    return [Span(*match.span(), risk) for match in pattern.finditer(text) if match[0]]


@dataclass(frozen=True)
class SentenceClassifier:
    """Sentences by the score that a text classifier gives to one of its labels.

    Sentences are cut by an untrained Punkt tokenizer; what stands between two belongs to the second, and what
    follows the last to that one. A sentence belongs to the class with the highest threshold that its score
    exceeds, and to none if it exceeds none.

    Args:
        model: a folder or hub id of a sequence classification model.
        label: the label whose probability counts, such as "toxic".
        thresholds: class -> score; by default the published ones, high 0.99 and middle 1e-4.
        batch_size: sentences in one forward pass.
    """

    model: str
    label: str
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict(THRESHOLDS))
    batch_size: int = 32

    def __post_init__(self) -> None:
        wrong = [one for one, least in self.thresholds.items() if not one or not 0 <= least < 1]
        if wrong or not self.thresholds:
            raise RecipeError(
                f"the thresholds of a classifier are {dict(self.thresholds)}; give at least one class with a "
                "score of 0 or more and below 1, such as {high: 0.99}"
            )

    @cached_property
    def _classifier(self) -> Any:
        from transformers import pipeline

        try:
            found = pipeline("text-classification", model=self.model, top_k=None)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the classifier {self.model} cannot be loaded ({first}); give a folder or hub id of a "
                "sequence classification model"
            ) from error
        labels = [str(label) for label in found.model.config.id2label.values()]
        if self.label not in labels:
            raise ModelError(
                f"the classifier {self.model} has no label {self.label!r}; it has {', '.join(labels)}"
            )
        return found

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        pieces = [sentences(text) for text in texts]
        said = [text[a:b] for text, found in zip(texts, pieces, strict=True) for a, b in found]
        scores = iter(self._scores(said))
        return [
            [
                Span(start, end, risk)
                for start, end in found
                if (risk := self._class(next(scores))) is not None
            ]
            for found in pieces
        ]

    def _scores(self, said: Sequence[str]) -> list[float]:
        # Sentences of like length beside each other: little padding.
        order = sorted(range(len(said)), key=lambda i: len(said[i]))
        texts = [said[i].strip() or said[i] for i in order]
        found = self._classifier(texts, batch_size=self.batch_size, truncation=True) if texts else []
        scores = [0.0] * len(said)
        for i, answers in zip(order, found, strict=True):
            scores[i] = next(float(one["score"]) for one in answers if one["label"] == self.label)
        return scores

    def _class(self, score: float) -> str | None:
        above = [(least, risk) for risk, least in self.thresholds.items() if score > least]
        return max(above)[1] if above else None


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of a text, which they cover from end to end: [start, end) each."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer  # comes with rouge_score

    ends = [end for _, end in PunktSentenceTokenizer().span_tokenize(text)]
    if ends:
        ends[-1] = len(text)
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


@dataclass(frozen=True)
class Call:
    """A function of the user's, "package.module:function": text -> (start, end, risk) of each span.

    A pair (start, end) has the class `risk`; mappings with these keys do as well.
    """

    function: str
    risk: str = HIGH

    @cached_property
    def _found(self) -> Callable[[str], Iterable[Any]]:
        module, colon, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), name) if colon and module and name else None
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"the annotator {self.function!r} is not found ({error}); put its folder on PYTHONPATH and "
                "write package.module:function"
            ) from error
        if not callable(found):
            raise RecipeError(f"{self.function!r} is no function; write package.module:function")
        function: Callable[[str], Iterable[Any]] = found
        return function

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [[self._span(one, text) for one in self._found(text) or ()] for text in texts]

    def _span(self, value: Any, text: str) -> Span:
        if isinstance(value, list | tuple) and len(value) == 2:
            value = (*value, self.risk)
        return as_span(value, len(text), f"{text[:40]!r} of {self.function}")


def annotate(table: Dataset, annotators: Sequence[Annotator], *, where: str = "the data set") -> Dataset:
    """The table with what annotators find in its column `spans`, beside what stands there already.

    A document is searched, or an answer; a prompt is not learned, so nothing of it is risky.

    Args:
        table: canonical rows.
        where: names the table, for messages.

    Raises:
        DataError: two spans of different classes overlap, or the rows are preference pairs.
    """
    from datasets import List, Value

    if not can_annotate(table):
        raise DataError(
            f"{where} holds preference pairs, of which no answer is learned; annotate a set of documents, or "
            "of prompts and completions"
        )
    found: list[list[dict[str, Any]]] = []
    for start in range(0, len(table), _ROWS):
        rows = [table[i] for i in range(start, min(start + _ROWS, len(table)))]
        found += [[one._asdict() for one in spans] for spans in _annotated(rows, annotators)]
    feature = List({"start": Value("int64"), "end": Value("int64"), "risk": Value("string")})
    kept = table.remove_columns([SPANS] if SPANS in table.column_names else [])
    return kept.add_column(SPANS, found, feature=feature)


def can_annotate(table: Dataset) -> bool:
    """Whether rows have a text to learn; preference pairs have none."""
    return any(column in table.column_names for column in ("text", "completion", "messages"))


def _annotated(rows: Sequence[Mapping[str, Any]], annotators: Sequence[Annotator]) -> list[tuple[Span, ...]]:
    texts = [text_to_learn(row) for row in rows]
    own = [list(spans_of(row, text)) for row, text in zip(rows, texts, strict=True)]
    for annotator in annotators:
        for spans, found in zip(own, annotator(texts), strict=True):
            spans += found
    return [merged(spans, str(row["example_id"])) for spans, row in zip(own, rows, strict=True)]
