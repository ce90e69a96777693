"""Cells that hold several texts, of which each becomes a row of its own.

Augmentation stands in lists beside the row that it belongs to: paraphrases of a question, wrong answers to
it. The lists are columns of lists (JSON, parquet), or text in the notation of JSON or Python, as programs
write it into CSV files.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import is_empty, levelled, listed_rows
from unlearnkit.data.columns import ALIASES, canonical_names, renamed
from unlearnkit.data.identity import ROWS_AT_A_TIME
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_SIDES = ("prompt", "completion")


def refuse_lists(raw: Dataset, columns: Mapping[str, str] | None, where: str) -> None:
    """Raise where the question or the answer of every row is a list of texts, for an example has one.

    A list here and there is an answer that looks like one, and stays what it is.

    Args:
        raw: a table with columns of any name.
        columns: canonical name -> the table's own name.

    Raises:
        DataError: names the column and the setting that makes rows of it.
    """
    table = renamed(raw, columns, where)
    for side in _SIDES if set(_SIDES) <= set(table.column_names) else ():
        if _holds_only_lists(table, side):
            shown = _own_name(raw, columns, side)
            raise DataError(
                f"{where}: {shown} holds lists of texts, and an example has one text; write `per_row: 2` "
                "beside the path, so that each row gives up to 2 examples of its own (or, if the lists "
                "themselves are what is said, write the rows as messages)"
            )


def spread(raw: Dataset, columns: Mapping[str, str] | None, per_row: int, where: str) -> Dataset:
    """Up to `per_row` rows in place of each row, with `prompt`, `completion` and the row's own `example_id`.

    Two lists are zipped, a single text stands beside each text of the other list. Before they are counted,
    entries are left out that are empty, that repeat an earlier one of their row in other case, width or
    spacing, or that answer what the row's `answer` says, if that is not the column that is read.

    Args:
        raw: a table with columns of any name.
        columns: canonical name -> the table's own name.

    Raises:
        DataError: no list at all, a cell that is malformed, lists of different lengths (named by row), or
            nothing left.
    """
    table = renamed(raw, columns, where)
    if not set(_SIDES) <= set(table.column_names):
        raise DataError(
            f"{where}: per_row makes examples of lists of questions or answers, but the columns are "
            f"{', '.join(table.column_names)}; name a question and an answer with `columns`, or leave "
            "per_row out"
        )
    names = [_own_name(raw, columns, side) for side in _SIDES]
    cells = [_cells(list(table[side]), name, where) for side, name in zip(_SIDES, names, strict=True)]
    if not any(lists for _, lists in cells):
        raise DataError(
            f"{where}: per_row is {per_row}, but neither {names[0]} nor {names[1]} holds a list; name the "
            "column of lists with `columns`, or leave per_row out"
        )
    true = [name for name in ("answer", "completion") if name in raw.column_names and name != names[1]]
    answers = list(raw[true[0]]) if true else [None] * len(raw)
    truths = [levelled(text) if isinstance(text, str) else "" for text in answers]
    own = list(table["example_id"]) if "example_id" in table.column_names else None
    out, few = [], 0
    pairs = _zipped([values for values, _ in cells], names, where)
    for number, (entries, truth) in enumerate(zip(pairs, truths, strict=True)):
        kept = _kept(entries, truth)[:per_row]
        few += len(kept) < per_row
        name = {} if own is None else {"example_id": own[number]}
        out += [{"prompt": prompt, "completion": answer, **name} for prompt, answer in kept]
    if not out:
        raise DataError(
            f"{where}: the lists of {names[0]} and {names[1]} hold nothing but empty entries and the rows' "
            "own answers; check `columns`"
        )
    logger.info("%s: %d rows give %d, and %d of them fewer than %d", where, len(raw), len(out), few, per_row)
    return _table(out)


def _table(rows: list[dict[str, Any]]) -> Dataset:
    import datasets

    return datasets.Dataset.from_list(rows)


def _holds_only_lists(table: Dataset, column: str) -> bool:
    found = False
    for batch in table.select_columns([column]).iter(ROWS_AT_A_TIME):
        for cell in batch[column]:
            if cell in (None, ""):
                continue
            texts = _texts(cell)
            if texts is None:
                return False
            found = found or bool(texts)
    return found


def _cells(values: Sequence[Any], name: str, where: str) -> tuple[list[Any], bool]:
    """A column's cells with lists in place of what denotes them, and whether there are any.

    Raises:
        DataError: some cells are lists and others are not, or a single text is empty; named by row.
    """
    read = [_texts(value) for value in values]
    if not any(read):
        if empty := [number for number, value in enumerate(values) if _is_blank(value)]:
            raise DataError(
                f"{where}: {len(empty)} row(s) have an empty {name} ({listed_rows(empty)}); fill them in or "
                "remove them"
            )
        return list(values), False
    if wrong := [
        n for n, (texts, value) in enumerate(zip(read, values, strict=True)) if texts is None and value
    ]:
        raise DataError(
            f"{where}: {name} holds lists of texts, but not in {len(wrong)} row(s) ({listed_rows(wrong)}; "
            f"row {wrong[0]} begins with {str(values[wrong[0]])[:40]!r}); write a list in JSON's or Python's "
            'notation there, such as ["one", "two"]'
        )
    return [texts or [] for texts in read], True


def _is_blank(value: Any) -> bool:
    return is_empty(value) if isinstance(value, str | list) else value is None


def _texts(cell: Any) -> list[str] | None:
    """The texts of a cell that is a list, or text that denotes one; None for everything else."""
    if isinstance(cell, list):
        plain = all(one is None or isinstance(one, str | int | float) for one in cell)
        return ["" if one is None else str(one) for one in cell] if plain else None
    if not isinstance(cell, str) or not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]")):
        return None
    for notation in (json.loads, ast.literal_eval):
        with (
            contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", SyntaxWarning)  # a backslash that escapes nothing
            value = notation(cell.strip())
            if isinstance(value, list) and all(one is None or isinstance(one, str) for one in value):
                return [one or "" for one in value]
    return None


def _zipped(
    columns: Sequence[Sequence[Any]], names: Sequence[str], where: str
) -> list[list[tuple[Any, Any]]]:
    """Per row the pairs of question and answer.

    Raises:
        DataError: two lists of different lengths.
    """
    rows, uneven = [], []
    for number, (prompts, answers) in enumerate(zip(*columns, strict=True)):
        lists = [_is_list(side) for side in (prompts, answers)]
        if all(lists) and len(prompts) != len(answers):
            uneven.append((number, len(prompts), len(answers)))
        length = min(len(side) for side, is_one in zip((prompts, answers), lists, strict=True) if is_one)
        one, other = (
            side if is_one else [side] * length
            for side, is_one in zip((prompts, answers), lists, strict=True)
        )
        rows.append(list(zip(one, other, strict=False)))
    if uneven:
        number, few, many = uneven[0]
        raise DataError(
            f"{where}: {len(uneven)} row(s) have lists of different lengths (in row {number}, counted from "
            f"0, {names[0]} has {few} texts and {names[1]} {many}), so it cannot be known which belong "
            "together; mend them, or read one of the two columns"
        )
    return rows


def _is_list(value: Any) -> bool:
    """A list of texts; messages are one prompt."""
    return isinstance(value, list) and not any(isinstance(one, Mapping) for one in value)


def _kept(entries: Sequence[tuple[Any, Any]], truth: str) -> list[tuple[Any, Any]]:
    """The entries that say something of their own."""
    found: dict[tuple[str, str], tuple[Any, Any]] = {}
    for entry in entries:
        prompt, answer = (levelled(side if isinstance(side, str) else json.dumps(side)) for side in entry)
        if prompt and answer and (not truth or answer != truth):
            found.setdefault((prompt, answer), entry)
    return list(found.values())


def _own_name(raw: Dataset, columns: Mapping[str, str] | None, side: str) -> str:
    """What a table calls a canonical column."""
    named = canonical_names(columns)
    aliases = [alias for alias, name in ALIASES.items() if name == side and alias in raw.column_names]
    return named.get(side) or (side if side in raw.column_names else (aliases or [side])[0])
