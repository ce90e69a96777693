"""Any table -> the same columns: an `example_id` and one of four shapes, every row checked.

The shapes have TRL's names: `prompt` + `completion`, `messages`, `prompt` + `chosen` + `rejected`, or `text`.
Each of `prompt`, `completion`, `chosen` and `rejected` may be text or a list of chat messages. TOFU's
`question` / `answer` become `prompt` / `completion`. The evaluation columns `paraphrased_answer`,
`perturbed_answer` and `paraphrased_question` stay, and so do `alternate_answer` and the risky `spans`.

Where `chosen` and `rejected` stand beside a completion or messages, they stay as they are, so that one table
serves both uses; `data/pairs.py` checks them where they are read as pairs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import filled, is_empty, is_well_formed, listed_rows
from unlearnkit.data.identity import ROWS_AT_A_TIME
from unlearnkit.data.pairs import SIDES, as_pairs
from unlearnkit.data.spans import SPANS
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

#: Columns that probes read besides the example itself.
EVALUATION_COLUMNS = ("paraphrased_answer", "perturbed_answer", "paraphrased_question")
#: Other names for the canonical columns, looked for when no column map is given.
ALIASES = {"question": "prompt", "answer": "completion"}
#: The column of answers to train on in place of a row's own.
ALTERNATES = "alternate_answer"
_SHAPES = (("prompt", "completion"), ("messages",), SIDES, ("text",))
_EXTRA = (*EVALUATION_COLUMNS, ALTERNATES, SPANS)
#: Characters of a column's name that a message shows.
_LONGEST = 40
_CANONICAL = ("prompt", "completion", "messages", "text", *SIDES, "example_id", *_EXTRA)


def canonical(
    raw: Dataset, columns: Mapping[str, str] | None = None, *, where: str = "the data set",
    on_disk: bool = False,
) -> Dataset:  # fmt: skip
    """Rename columns to the canonical ones, check every row, and add `example_id`.

    Args:
        raw: any `datasets.Dataset`.
        columns: canonical name -> the file's own name, such as {"prompt": "q", "completion": "a"}.
        on_disk: documents may be more than fits into memory: they get no ids here, and a file's own may
            repeat.

    Raises:
        DataError: a column that is not there, no usable shape, or rows without a prompt or an answer (named
        by number).
    """
    if not hasattr(raw, "column_names"):
        raise DataError(
            f"{where} is a {type(raw).__name__}; give a datasets.Dataset (Dataset.from_list(rows) makes one "
            "of a list of rows)"
        )
    columns = canonical_names(columns)
    table = renamed(raw, columns, where)
    shape = next((s for s in _SHAPES if all(c in table.column_names for c in s)), None)
    if shape is None:
        raise DataError(
            f"{where} has the columns {_listed(raw)}; it needs prompt and completion (or "
            "question and answer), messages, text, or prompt with chosen and rejected; name yours with "
            "`columns: {prompt: ..., completion: ...}` beside its path"
        )
    if shape == SIDES:
        return with_ids(_checked_pairs(table, where))
    both = all(side in table.column_names for side in SIDES) and shape != ("text",)
    extra = [c for c in (*_EXTRA, *(SIDES if both else ())) if c in table.column_names]
    own_id = ["example_id"] if "example_id" in table.column_names else []
    table = table.select_columns([*own_id, *shape, *extra])
    for column in shape:
        shown = columns.get(column, column if column in raw.column_names else _alias(column))
        table = _as_text(table, column)
        wrong, empty = _misfits(table, column)
        if wrong:
            raise DataError(
                f"{where}: {len(wrong)} row(s) whose {shown} is neither text nor a list of messages "
                f"({listed_rows(wrong)}); put text in quotes, and give each message a role and a content"
            )
        if empty:
            raise DataError(
                f"{where}: {len(empty)} row(s) have an empty {shown} ({listed_rows(empty)}); "
                "fill them in or remove them"
            )
    return table if on_disk and shape == ("text",) else with_ids(table)


def _misfits(table: Dataset, column: str) -> tuple[list[int], list[int]]:
    """Rows whose cell is neither text nor messages, and rows whose cell says nothing."""
    wrong, empty = [], []
    batches = table.select_columns([column]).iter(ROWS_AT_A_TIME)
    for number, value in enumerate(value for batch in batches for value in batch[column]):
        if column != "text" and not is_well_formed(value):
            wrong.append(number)
        elif is_empty(value):
            empty.append(number)
    return wrong, empty


def _checked_pairs(table: Dataset, where: str) -> Dataset:
    kept = [c for c in ("example_id", "prompt", *SIDES, *_EXTRA) if c in table.column_names]
    table = table.select_columns(kept)
    for column in ("prompt", *SIDES):
        table = _as_text(table, column) if column in kept else table
    return as_pairs(table, where)


def _alias(column: str) -> str:
    return next((alias for alias, name in ALIASES.items() if name == column), column)


def _listed(raw: Dataset) -> str:
    """The names of a table's columns; a row that stands where they belong is cut short and told apart."""
    names = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in raw.column_names]
    is_row = max(map(len, raw.column_names)) > _LONGEST
    return ", ".join(names) + (
        " (if that is a row, name the columns of the file with `header: [question, answer]`)" * is_row
    )


def canonical_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """A column map in which `question` and `answer` have their canonical names."""
    return {ALIASES.get(new, new): own for new, own in (columns or {}).items()}


def renamed(raw: Dataset, columns: Mapping[str, str] | None, where: str) -> Dataset:
    """A table with canonical names, its other columns untouched.

    Raises:
        DataError: `columns` names what is not there, or names it twice.
    """
    columns = canonical_names(columns)
    if unknown := [new for new in columns if new not in _CANONICAL]:
        raise DataError(
            f"{where}: `columns` gives {unknown[0]!r}, which is none of {', '.join(_CANONICAL)}; "
            "write one of them"
        )
    missing = [own for own in columns.values() if own not in raw.column_names]
    if missing:
        close = difflib.get_close_matches(missing[0], raw.column_names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; name one of these"
        raise DataError(
            f"{where} has no column {missing[0]!r}, which `columns` names; it has {_listed(raw)}{hint}"
        )
    if twice := [own for own in columns.values() if list(columns.values()).count(own) > 1]:
        raise DataError(f"{where}: `columns` uses the column {twice[0]!r} twice; name each column once")
    mapping = {own: new for new, own in columns.items()}
    taken = set(columns) | set(raw.column_names)
    mapping |= {
        a: c for a, c in ALIASES.items() if a in raw.column_names and c not in taken and a not in mapping
    }
    # A renamed column replaces one that already has the canonical name.
    replaced = [c for c in mapping.values() if c in raw.column_names and c not in mapping]
    moved = {own: new for own, new in mapping.items() if own != new}
    return raw.remove_columns(replaced).rename_columns(moved) if moved else raw


def _as_text(table: Dataset, column: str) -> Dataset:
    """Numbers and truth values of a JSON file become the text that was written."""
    from datasets import Value

    feature = table.features[column]
    if isinstance(feature, Value) and feature.dtype not in ("string", "large_string", "null"):
        return table.cast_column(column, Value("string"))
    return table


def content_id(row: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name an example by its prompt and answer (or text), wherever it stands.

    Both sides of a pair count where there is no other answer.
    """
    content = [filled(row.get(c)) for c in ("prompt", "completion", "messages", "text")]
    if all(value is None for value in content[1:]):
        content += [filled(row.get(side)) for side in SIDES]
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def with_ids(table: Dataset) -> Dataset:
    """Add `example_id`, keeping a file's own; a second copy of the same row gets the suffix -2, and so on."""
    own = list(table["example_id"]) if "example_id" in table.column_names else [None] * len(table)
    ids = [str(i) if i not in (None, "") else content_id(row) for i, row in zip(own, table, strict=True)]
    if len(set(ids)) == len(ids) and ids == own:
        return table
    taken = set(ids)
    seen: dict[str, int] = {}
    unique = []
    for example_id in ids:
        copies = seen.get(example_id, 0) + 1
        name = example_id
        while copies > 1 and (name := f"{example_id}-{copies}") in taken:
            copies += 1
        seen[example_id] = copies
        taken.add(name)
        unique.append(name)
    if "example_id" in table.column_names:
        table = table.remove_columns("example_id")
    return table.add_column("example_id", unique)
