"""Preference pairs: a prompt, a chosen and a rejected answer, as in TRL, every row checked.

The sides are text or messages. `prompt` may be missing where the sides are whole conversations: then the
messages that both begin with are the prompt (TRL's implicit prompt). The same holds where the prompt is text
and the sides are conversations that begin with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from unlearnkit.data.cells import answer_text, filled, is_empty, is_well_formed, listed_rows
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]

#: The two sides of a pair.
SIDES = ("chosen", "rejected")


def as_pairs(table: Dataset, where: str) -> Dataset:
    """Rows with `prompt`, `chosen` and `rejected`, where each side is one answer to the prompt.

    Other columns stay, but `completion`, `messages` and `text`, which are other uses of a row, do not. Doing
    it twice changes nothing.

    Args:
        table: has `chosen` and `rejected`, and `prompt` unless these are conversations.
        where: names the rows in messages ("data.pairs").

    Raises:
        DataError: missing columns, or rows that are no pair (named by number).
    """
    if missing := [side for side in SIDES if side not in table.column_names]:
        raise DataError(
            f"{where} has no column {missing[0]}; pairs need prompt, chosen and rejected, so name yours with "
            "`columns: {prompt: ..., chosen: ..., rejected: ...}` beside its path"
        )
    rows: list[Row] = [{"prompt": row.get("prompt"), **{side: row[side] for side in SIDES}} for row in table]
    for side in SIDES:
        _refuse_broken([row[side] for row in rows], side, where)
    _refuse(
        rows, lambda row: _says(row["chosen"]) == _says(row["rejected"]), where,
        "have the same text as chosen and as rejected", "there is nothing to prefer, so remove them",
    )  # fmt: skip
    if any(_begins_with_prompt(row) for row in rows):
        rows = [_split(row) for row in rows]
    _refuse_without_prompt(rows, where)
    columns = ("prompt", *SIDES)
    others = [c for c in table.column_names if c not in (*columns, "completion", "messages", "text")]
    for column in columns:
        table = table.remove_columns([column] if column in table.column_names else [])
        table = table.add_column(column, [row[column] for row in rows])
    return table.select_columns([*columns, *others])


def _begins_with_prompt(row: Row) -> bool:
    """Whether the sides are whole conversations, whose prompt is not given as messages."""
    whole = all(isinstance(row[side], list) and row[side][0]["role"] != "assistant" for side in SIDES)
    return whole and not isinstance(row["prompt"], list)


def _split(row: Row) -> dict[str, Any]:
    """The messages that both sides begin with are the prompt; the last one is the answer, whatever it
    says."""
    chosen, rejected = (filled(row[side]) for side in SIDES)
    most = min(len(chosen), len(rejected)) - 1
    common = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _refuse(values: Iterable[Any], wrong: Callable[[Any], bool], where: str, what: str, remedy: str) -> None:
    if numbers := [i for i, value in enumerate(values) if wrong(value)]:
        raise DataError(f"{where}: {len(numbers)} row(s) {what} ({listed_rows(numbers)}); {remedy}")


def _refuse_broken(values: list[Any], column: str, where: str) -> None:
    """Sides that are malformed, empty, or not the assistant's."""
    _refuse(
        values, lambda value: not is_well_formed(value), where,
        f"have a {column} that is neither text nor a list of messages",
        "put text in quotes, and give each message a role and a content",
    )  # fmt: skip
    _refuse(values, is_empty, where, f"have an empty {column}", "fill them in or remove them")
    _refuse(
        values, lambda value: isinstance(value, list) and value[-1]["role"] != "assistant", where,
        f"have a {column} that does not end with the assistant's message",
        "let both sides end with the assistant's answer",
    )  # fmt: skip


def _refuse_without_prompt(rows: list[Row], where: str) -> None:
    """Prompts that are missing, and sides with more than one answer to them."""
    prompts = [row["prompt"] for row in rows]
    if all(prompt is None for prompt in prompts):
        raise DataError(
            f"{where} has no prompt: chosen and rejected are answers alone; name the column of the prompts "
            "with `columns: {prompt: ...}`"
        )
    for side in SIDES:
        _refuse(
            [row[side] for row in rows], lambda value: isinstance(value, list) and len(value) > 1, where,
            f"have a {side} of several messages after the prompt",
            "let chosen and rejected differ in the last message alone, or put the earlier ones into prompt",
        )  # fmt: skip
    _refuse(
        prompts, lambda value: not is_well_formed(value), where,
        "have a prompt that is neither text nor a list of messages",
        "put text in quotes, and give each message a role and a content",
    )  # fmt: skip
    _refuse(prompts, is_empty, where, "have an empty prompt", "fill them in or remove them")


def _says(side: Any) -> str:
    """The answer with its spacing levelled."""
    return " ".join(answer_text(side).split())
