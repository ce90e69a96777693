"""What stands in one cell of a table: text, a list of chat messages, or nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def is_well_formed(value: Any) -> bool:
    """Text, messages with a role and a content, or nothing at all."""
    if value is None or isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(m, dict) and m.get("role") for m in value)


def is_empty(value: Any) -> bool:
    """Whether nothing is said: no text, no messages, or a last message without content."""
    return not value or not answer_text(value).strip()


def answer_text(answer: Any) -> str:
    """What an answer says: the text itself, or the content of the last message."""
    return answer if isinstance(answer, str) else str(answer[-1].get("content") or "")


def levelled(text: str) -> str:
    """Text with case, width and spacing levelled, to tell whether two texts say the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def filled(value: Any) -> Any:
    """Messages without the keys that are null, which depend on the other rows of a table."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in message.items() if v is not None} for message in value]


def listed_rows(numbers: Sequence[int]) -> str:
    """The first five of some row numbers, for messages."""
    listed = ", ".join(str(i) for i in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
    return f"row {listed}, counted from 0"
