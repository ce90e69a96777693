"""The forget and retain sets must not contradict each other."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def _key(row: Mapping[str, Any]) -> str:
    """What the model is asked (prompt, all turns but the last, text); case, width and spacing levelled."""
    asked = row.get("prompt") or (row["messages"][:-1] if row.get("messages") else row.get("text"))
    if isinstance(asked, list) and len(asked) == 1:
        asked = asked[0]["content"]  # the same question, written as a chat of one message
    text = (
        asked
        if isinstance(asked, str)
        else json.dumps([(m["role"], m["content"]) for m in asked or ()], ensure_ascii=False)
    )
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def overlapping_rows(forget: Dataset, retain: Dataset) -> list[tuple[int, int]]:
    """Pairs (forget row, retain row) that ask for the same thing, counted from 0."""
    where = {_key(row): i for i, row in reversed(list(enumerate(retain)))}
    return [(i, where[key]) for i, row in enumerate(forget) if (key := _key(row)) in where]


def refuse_overlap(forget: Dataset, retain: Dataset, *, retain_name: str = "retain") -> None:
    """Raise if a row is to be forgotten and kept at once.

    Raises:
        DataError: names the first rows of both sides and the setting that allows it.
    """
    pairs = overlapping_rows(forget, retain)
    if pairs:
        listed = ", ".join(f"forget row {f} = {retain_name} row {r}" for f, r in pairs[:5])
        more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
        raise DataError(
            f"{len(pairs)} example(s) are in the forget set and in the {retain_name} set ({listed}{more}, "
            "counted from 0); remove them from one side, or set data.allow_overlap: true"
        )
