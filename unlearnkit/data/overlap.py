"""What must go and what must stay must not contradict each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import answer_text, levelled
from unlearnkit.data.formats import prompt_and_answer
from unlearnkit.data.pairs import as_pairs
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
    return levelled(text)


def refuse_contradictions(streams: Mapping[str, Dataset]) -> None:
    """Raise if one stream pushes away what another keeps: forget examples, and rejected answers of pairs.

    Args:
        streams: canonical rows of everything that is read.

    Raises:
        DataError: names the rows and the setting that allows it.
    """
    kept = {name: data for name, data in streams.items() if name not in ("forget", "pairs")}
    for name, data in kept.items():
        if "forget" in streams:
            refuse_overlap(streams["forget"], data, retain_name=name)
        if "pairs" in streams:
            refuse_kept_rejections(streams["pairs"], data, retain_name=name)


def overlapping_rows(forget: Dataset, retain: Dataset) -> list[tuple[int, int]]:
    """Pairs (forget row, retain row) that ask for the same thing, counted from 0."""
    asked: dict[bytes, list[int]] = {}
    for number, row in enumerate(forget):
        asked.setdefault(_digest(row), []).append(number)
    first: dict[int, int] = {}
    for number, row in enumerate(retain):
        for same in asked.pop(_digest(row), ()):
            first[same] = number
    return sorted(first.items())


def _digest(row: Mapping[str, Any]) -> bytes:
    """Stands for `_key`, so that texts need not stay in memory."""
    return hashlib.blake2b(_key(row).encode(), digest_size=16).digest()


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


def refuse_kept_rejections(pairs: Dataset, retain: Dataset, *, retain_name: str = "retain") -> None:
    """Raise if a pair rejects what the retain set answers to the same prompt.

    Pairs may ask what the forget set asks: rejecting a forgotten answer is what they are for.

    Args:
        pairs: has prompt, chosen and rejected.
        retain: canonical rows of any shape; texts answer nothing.

    Raises:
        DataError: names the first rows of both sides and the setting that allows it.
    """
    if "text" in retain.column_names:
        return
    kept: dict[tuple[str, str], int] = {}
    for number, row in enumerate(retain):
        answer = prompt_and_answer(row)[1] if {"messages", "completion"} & row.keys() else row["chosen"]
        kept.setdefault((_key(row), levelled(answer_text(answer))), number)
    rejected = [(_key(row), levelled(answer_text(row["rejected"]))) for row in as_pairs(pairs, "data.pairs")]
    if both := [(number, kept[key]) for number, key in enumerate(rejected) if key in kept]:
        listed = ", ".join(f"pairs row {p} = {retain_name} row {r}" for p, r in both[:5])
        more = f" and {len(both) - 5} more" if len(both) > 5 else ""
        raise DataError(
            f"{len(both)} pair(s) reject the answer that the {retain_name} set gives to the same prompt "
            f"({listed}{more}, counted from 0); remove them from one side, or set data.allow_overlap: true"
        )
