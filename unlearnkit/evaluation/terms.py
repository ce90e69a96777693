"""Names and patterns that a suite looks for: a data set of terms, its records, and the tokens they cover."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from unlearnkit.data.columns import content_id
from unlearnkit.data.spans import Span, token_risks
from unlearnkit.data.terms import is_expression, parts_of, read_terms, term_pattern
from unlearnkit.errors import DataError
from unlearnkit.evaluation.records import LIST_TERMS, TERM

if TYPE_CHECKING:
    from unlearnkit.data.encoding import Offsets
    from unlearnkit.evaluation.asks import ProbeSpec
    from unlearnkit.recipe import StreamSpec

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def load_terms(sources: Sequence[StreamSpec], *, root: str | None, name: str) -> list[dict[str, Any]]:
    """The rows of a data set of terms: a column `text`, or a text file with a term a line.

    A text file is looked for like the terms of an annotator, beside the shipped recipes too; lines that begin
    with # are left out.

    Raises:
        DataError, RecipeError: no such file, no term, or one that cannot be used.
    """
    from unlearnkit.data.streams import load_stream

    found: list[str] = []
    for source in sources:
        if PurePath(source.path or "").suffix.lower() == ".txt":
            if source.rows or source.limit or source.columns or source.name:
                raise DataError(
                    f"{name}: {source.path} is a list of terms, which is read whole; leave out rows, limit, "
                    "columns and name"
                )
            found += read_terms(str(source.path), root)
            continue
        rows = load_stream(source, root=root, name=name)
        if "text" not in rows.column_names:
            raise DataError(
                f"{name} is a list of terms, but has the columns {', '.join(rows.column_names)}; give a text "
                "file with a term a line, or rows with a column `text`"
            )
        found += rows["text"]
    term_pattern(found, parts=False)  # what cannot be used is refused before a model is loaded
    return [
        {"example_id": content_id({"text": term}), "text": term}
        for term in dict.fromkeys(map(str.strip, found))
    ]


def term_records(probes: ProbeSpec, rows: Rows) -> Iterator[dict[str, Any]]:
    """A record for each term; with `parts` also for the first and the last word of each name."""
    for ask in probes.of(LIST_TERMS):
        terms = [str(row["text"]) for row in rows.get(ask.dataset, ())]
        if ask.parts:
            terms += [part for term in terms if not is_expression(term) for part in parts_of(term)]
        for term in dict.fromkeys(terms):
            name = content_id({"text": term})
            yield {
                "probe": LIST_TERMS, "dataset": ask.dataset, "example_id": name, "field": TERM, "text": term,
            }  # fmt: skip


def all_terms(probes: ProbeSpec, rows: Rows) -> re.Pattern[str] | None:
    """What finds every term of the suite; None where it has none."""
    terms = [record["text"] for record in term_records(probes, rows)]
    return term_pattern(terms, parts=False) if terms else None


def risky_tokens(text: str, start: int, offsets: Offsets, terms: re.Pattern[str]) -> tuple[bool, ...]:
    """Which tokens belong to a mention of a term.

    Args:
        text: the whole text.
        start: where the search begins; what stands before is seen by the pattern.
        offsets: of the tokens, in the whole text.
    """
    spans = [Span(*match.span(), "term") for match in terms.finditer(text, start) if match.group()]
    return tuple(bool(risk) for risk in token_risks(text, offsets, spans))
