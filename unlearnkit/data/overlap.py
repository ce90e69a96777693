"""What must go and what must stay must not contradict each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
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


def refuse_contradictions(
    streams: Mapping[str, Dataset],
    forgotten: Collection[str] = ("forget",),
    wrong_answers: Collection[str] = (),
) -> None:
    """Raise if one stream pushes away what another keeps: forgotten examples, and rejected answers of pairs.

    Args:
        streams: canonical rows of everything that is read.
        forgotten: the streams of what is to be forgotten.
        wrong_answers: streams that may ask what a forgotten one asks, as long as they answer otherwise.

    Raises:
        DataError: names the rows and the setting that allows it.
    """
    kept = {name: data for name, data in streams.items() if name not in (*forgotten, "pairs")}
    for name, data in kept.items():
        for gone in [one for one in forgotten if one in streams]:
            if name in wrong_answers:
                refuse_true_answers(streams[gone], data, forget_name=gone, wrong_name=name)
            else:
                refuse_overlap(streams[gone], data, retain_name=name, forget_name=gone)
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


def refuse_overlap(
    forget: Dataset, retain: Dataset, *, retain_name: str = "retain", forget_name: str = "forget"
) -> None:
    """Raise if a row is to be forgotten and kept at once.

    Raises:
        DataError: names the first rows of both sides and the setting that allows it.
    """
    pairs = overlapping_rows(forget, retain)
    if pairs:
        raise DataError(
            f"{len(pairs)} example(s) are in the {forget_name} set and in the {retain_name} set "
            f"({_listed(pairs, forget_name, retain_name)}); remove them from one side, or set "
            "data.allow_overlap: true"
        )


def refuse_true_answers(
    forget: Dataset, wrong: Dataset, *, forget_name: str = "forget", wrong_name: str = "perturbed"
) -> None:
    """Raise if what stands for wrong answers gives a question the very answer that is to be forgotten.

    Raises:
        DataError: names the first rows of both sides and the setting that allows it.
    """
    if "text" in forget.column_names or "text" in wrong.column_names:
        refuse_overlap(forget, wrong, retain_name=wrong_name, forget_name=forget_name)
        return
    answered: dict[tuple[str, str], int] = {}
    for number, row in enumerate(wrong):
        answered.setdefault(_pair(row), number)
    if pairs := [(f, answered[key]) for f, row in enumerate(forget) if (key := _pair(row)) in answered]:
        raise DataError(
            f"{len(pairs)} example(s) of the {wrong_name} set, which holds wrong answers, answer what the "
            f"{forget_name} set answers ({_listed(pairs, forget_name, wrong_name)}); remove them, or set "
            "data.allow_overlap: true"
        )


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the model is asked and what it is to answer, both levelled."""
    answer = prompt_and_answer(row)[1] if {"messages", "completion"} & row.keys() else row["chosen"]
    return _key(row), levelled(answer_text(answer))


def _listed(pairs: Sequence[tuple[int, int]], one: str, other: str) -> str:
    """The first pairs of rows, for messages."""
    listed = ", ".join(f"{one} row {i} = {other} row {j}" for i, j in pairs[:5])
    more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return f"{listed}{more}, counted from 0"


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
        kept.setdefault(_pair(row), number)
    rejected = [(_key(row), levelled(answer_text(row["rejected"]))) for row in as_pairs(pairs, "data.pairs")]
    if both := [(number, kept[key]) for number, key in enumerate(rejected) if key in kept]:
        raise DataError(
            f"{len(both)} pair(s) reject the answer that the {retain_name} set gives to the same prompt "
            f"({_listed(both, 'pairs', retain_name)}); remove them from one side, or set "
            "data.allow_overlap: true"
        )
