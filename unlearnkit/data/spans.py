"""Risky stretches of a text: characters with a risk class, and the tokens that they cover.

The column `spans` holds, per row, a list of {start, end, risk} (or nothing). Characters are counted in the
row's text, or in its answer, from 0; `end` is the first character behind the span. The class is any word;
`high` and `middle` are those that methods know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from unlearnkit.data.cells import answer_text
from unlearnkit.errors import DataError

#: The column that holds them.
SPANS = "spans"


class Span(NamedTuple):
    """The characters [start, end) of a text and the class of their risk."""

    start: int
    end: int
    risk: str


def spans_of(row: Mapping[str, Any], text: str) -> tuple[Span, ...]:
    """The spans of a canonical row, in order; those of one class that overlap become one.

    Args:
        row: may have the column `spans`.
        text: what they lie in: the row's text, or its answer's.

    Raises:
        DataError: a span that is malformed, empty or outside the text, or overlaps one of another class.
    """
    value, name = row.get(SPANS), str(row.get("example_id", "?"))
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(
            f"example {name}: `{SPANS}` is {value!r}; write a list of {{start, end, risk}}, or leave it empty"
        )
    return merged((as_span(one, len(text), name) for one in value), name)


def merged(spans: Iterable[Span], name: str) -> tuple[Span, ...]:
    """Spans in order, where those of one class that overlap became one.

    Args:
        name: the example's, for messages.

    Raises:
        DataError: spans of two classes overlap.
    """
    out: list[Span] = []
    for span in sorted(spans):
        last = out[-1] if out else None
        if last is None or span.start >= last.end:
            out.append(span)
        elif span.risk == last.risk:
            out[-1] = Span(last.start, max(last.end, span.end), last.risk)
        else:
            raise DataError(
                f"example {name}: its spans {shown(last)} and {shown(span)} overlap and differ in risk; "
                "shorten one of them, or give both the same risk"
            )
    return tuple(out)


def shown(span: Span) -> str:
    """A span in a message: "12:17 high"."""
    return f"{span.start}:{span.end} {span.risk}"


def as_span(value: Any, length: int, name: str) -> Span:
    """A span as a mapping or as (start, end, risk), checked.

    Args:
        length: of the text that it lies in.
        name: the example's, for messages.

    Raises:
        DataError: it is malformed, empty or outside the text.
    """
    listed = isinstance(value, list | tuple) and len(value) == len(Span._fields)
    given = dict(zip(Span._fields, value, strict=True)) if listed else value
    given = given if isinstance(given, Mapping) else {}
    start, end, risk = (given.get(key) for key in Span._fields)
    if not _is_place(start) or not _is_place(end) or not isinstance(risk, str) or not risk.strip():
        raise DataError(
            f"example {name}: {value!r} is no span; each needs a start and an end, which are whole numbers, "
            "and a risk, which is a word such as high"
        )
    if not 0 <= start < end <= length:
        raise DataError(
            f"example {name}: the span {start}:{end} ({risk}) holds no stretch of its text of {length} "
            "characters; count characters from 0 in the text, or in the answer alone, with end behind the "
            "last one"
        )
    return Span(start, end, risk)


def _is_place(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def token_risks(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """The risk class of each token, "" for none.

    A token is risky if it overlaps a span, if only in part, or is white space that ends where a span begins
    (some tokenizers make the space before a word a token of its own). Of two spans the one that covers more
    of the token counts, and of two that cover the same the first.

    Args:
        offsets: the characters [start, end) of each token.
        spans: in order and without overlap, as `spans_of` gives them.
    """
    ends = [span.end for span in spans]
    return [_risk(text, start, end, spans, bisect_right(ends, start)) for start, end in offsets]


def _risk(text: str, start: int, end: int, spans: Sequence[Span], first: int) -> str:
    """The class of the token [start, end); `first` is the first span that ends behind its beginning."""
    best, most = "", -1
    for span in spans[first:]:
        if span.start >= end:
            break
        covered = min(end, span.end) - max(start, span.start)
        if covered > most:
            best, most = span.risk, covered
    touches = first < len(spans) and spans[first].start == end
    # Some tokenizers leave white space out of their ranges, so that a lone space has an empty one behind it.
    space = text[start:end] or text[max(0, start - 1) : start]
    return spans[first].risk if not best and touches and space.isspace() else best


def placed(
    row: Mapping[str, Any], answer: Any, texts: tuple[str, str], specials: Sequence[str]
) -> tuple[Span, ...]:
    """The spans of an answer as spans of the whole text, prompt included.

    Args:
        specials: special tokens, which may stand behind the answer.

    Raises:
        DataError: the template writes the answer otherwise than it stands in the row, or it is not clear
            where.
    """
    said = answer_text(answer)
    spans = spans_of(row, said)
    # Chat templates strip what they are given.
    kept = next((text for text in (said, said.strip()) if text in texts[1]), None)
    if spans and kept is None:
        raise DataError(
            f"example {row['example_id']}: the chat template writes its answer otherwise than it stands in "
            "the row, so its spans have no place; use data.template.kind: plain, or a template that keeps "
            "answers as they are"
        )
    begin = _begin(texts[1], kept, specials) if kept else None
    if spans and begin is None:
        raise DataError(
            f"example {row['example_id']}: the chat template writes the words of its answer more than once, "
            "so its spans have no place; use data.template.kind: plain, or a template that ends with the "
            "answer"
        )
    start = len(texts[0]) + (begin or 0) - said.find(kept or "")
    return tuple(Span(max(0, span.start + start), span.end + start, span.risk) for span in spans)


def _begin(text: str, answer: str, specials: Sequence[str]) -> int | None:
    """Where the answer begins: at the end but for special tokens, or where it stands only once; else None."""
    # A template may write words of its own before the answer, such as a tag.
    end = text.rstrip()
    while found := next((one for one in specials if one and end.endswith(one)), None):
        if end.endswith(answer.rstrip()):
            break
        end = end[: -len(found)].rstrip()
    if end.endswith(answer.rstrip()):
        return len(end) - len(answer.rstrip())
    return text.find(answer) if text.find(answer) == text.rfind(answer) else None
