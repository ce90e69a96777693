"""Documents made of rows: the answers of consecutive rows joined to one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import answer_text
from unlearnkit.data.columns import with_ids
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SEPARATOR = " "
#: Rows that are joined at a time, so that memory does not grow with the table.
_BATCH = 1000


def is_documents(table: Any) -> bool:
    """Whether canonical rows are texts without a prompt."""
    names = getattr(table, "column_names", ())
    return "text" in names and "prompt" not in names


def joined(table: Dataset, every: int, where: str, *, ids: bool = True) -> Dataset:
    """The answers (or texts) of every `every` consecutive rows as one `text` row, with a space in between.

    The last document may hold fewer. Spans of risky words move along.

    Args:
        table: canonical rows.
        where: names the source, for messages.
        ids: name the documents.

    Raises:
        DataError: preference pairs, which hold two answers without saying which.
    """
    column = next((c for c in ("completion", "messages", "text") if c in table.column_names), None)
    if column is None:
        raise DataError(
            f"{where} is joined to documents, but its rows are preference pairs; name the answer to join "
            "with `columns: {completion: chosen}` (or rejected) beside its path, or leave out `join`"
        )
    kept = [c for c in (column, "spans") if c in table.column_names]

    def documents(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        texts = [answer_text(value) for value in rows[column]]
        starts = range(0, len(texts), every)
        out: dict[str, list[Any]] = {"text": [_SEPARATOR.join(texts[i : i + every]) for i in starts]}
        if "spans" in rows:
            pairs = list(zip(texts, rows["spans"], strict=True))
            out["spans"] = [_moved(pairs[i : i + every]) for i in starts]
        return out

    batch = every * max(1, _BATCH // every)
    made = table.select_columns(kept).map(
        documents, batched=True, batch_size=batch, remove_columns=[c for c in kept if c != "spans"]
    )
    return with_ids(made) if ids else made


def _moved(pairs: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The spans of several texts, counted in the text that they are joined to."""
    out, at = [], 0
    for text, spans in pairs:
        out += [{**span, "start": span["start"] + at, "end": span["end"] + at} for span in spans or ()]
        at += len(text) + len(_SEPARATOR)
    return out
