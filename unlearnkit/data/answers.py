"""Other answers than a row's own: refusals from a list, or alternate answers from a column.

A method that trains on such an answer says where it comes from; which one a row gets at which epoch is drawn
in `data/parts.py`. TOFU's `idontknow.jsonl` holds plain lines, so the first character of a line decides
whether it is read as JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unlearnkit.data.cells import answer_text, levelled, listed_rows
from unlearnkit.data.columns import ALTERNATES
from unlearnkit.data.formats import prompt_and_answer
from unlearnkit.data.streams import nearby
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

#: The refusals that ship with the package, one a line.
SHIPPED = Path(__file__).with_name("refusals.txt")


class Answers(Protocol):
    """Where the answers of one part of a stream come from."""

    @property
    def source(self) -> str:
        """Where they come from, in words, for manifests and reports."""

    def candidates(self, data: Dataset, where: str) -> list[list[Any]]:
        """Per row of `data` the answers (text, or chat messages) from which one is drawn.

        Args:
            data: canonical rows.
            where: the setting that names them, for messages ("data.forget").

        Raises:
            DataError: rows that have none.
        """


@dataclass(frozen=True)
class Refusals:
    """The same refusals for every row."""

    texts: tuple[str, ...]
    source: str = field(default="the refusals that ship with UnlearnKit", compare=False, repr=False)

    @classmethod
    def load(cls, path: str | None = None) -> Refusals:
        """Read a list; blank lines, and lines that differ in spacing or case alone, are dropped.

        Args:
            path: one refusal a line, as text or as JSON with a column `text`; None: the list that ships.

        Raises:
            DataError: no such file, no refusal in it, or lines that cannot be read.
        """
        file = SHIPPED if path is None else Path(path).expanduser()
        if not file.is_file():
            found = "is a folder, not a file" if file.is_dir() else "does not exist"
            raise DataError(f"training.refusals: {path} {found}; {nearby(file)}")
        distinct: dict[str, str] = {}
        for text in filter(None, _lines(file)):
            distinct.setdefault(levelled(text), text)
        texts = tuple(distinct.values())
        if not texts:
            raise DataError(
                f"training.refusals: {path} holds no refusal; write one a line, or leave training.refusals "
                "out to use the list that ships"
            )
        if len(texts) == 1:
            _warn_of_one(str(path))
        return cls(texts) if path is None else cls(texts, f"refusals: {path}")

    def candidates(self, data: Dataset, where: str) -> list[list[Any]]:
        """Every refusal for every row, but for those that are the row's own answer."""
        said = [levelled(text) for text in self.texts]
        out: list[list[Any]] = [
            [text for text, level in zip(self.texts, said, strict=True) if level != own]
            for own in map(_own, data)
        ]
        if without := [i for i, refusals in enumerate(out) if not refusals]:
            raise DataError(
                f"{where}: {len(without)} row(s) have the only refusal as their own answer "
                f"({listed_rows(without)}); give further refusals in training.refusals, or remove the rows"
            )
        return out


@lru_cache
def _warn_of_one(path: str) -> None:
    """Once, though a list is read by the checks before a training as well."""
    logger.warning(
        "training.refusals: %s holds one refusal only, so the model learns that sentence by heart and its "
        "utility collapses to it; give several, or leave training.refusals out to use the list that ships",
        path,
    )


def _lines(file: Path) -> list[str]:
    """The refusals of a file, as they stand in it, without the space around them."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() not in (".json", ".jsonl"):
            return [line.strip() for line in text.splitlines()]
        if text.lstrip().startswith("["):
            return [_text_of(row, file, number) for number, row in enumerate(json.loads(text))]
        return [
            _text_of(json.loads(line) if line.lstrip().startswith(("{", '"')) else line, file, number)
            for number, line in enumerate(text.splitlines())
        ]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"training.refusals: {file} cannot be read ({error}); write one refusal a line, in UTF-8"
        ) from error


def _text_of(row: Any, file: Path, number: int) -> str:
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise DataError(
            f"training.refusals: {file} has no text in row {number}, counted from 0; give every row a "
            "column `text`"
        )
    return text.strip()


@dataclass(frozen=True)
class AnswerColumn:
    """A column that holds one answer per row, or a list of them; an answer is text or a list of messages."""

    column: str

    @property
    def source(self) -> str:
        """The column's name."""
        return f"column {self.column} of the same rows"

    def candidates(self, data: Dataset, where: str) -> list[list[Any]]:
        """The row's own answers in that column, blank ones left out."""
        if self.column not in data.column_names:
            raise DataError(
                f"{where} has no column {self.column}; add one, name yours with `columns: {{{self.column}: "
                f"...}}`{self._or_generate()}"
            )
        out = [
            [answer for answer in _as_list(value) if answer_text(answer).strip()]
            for value in data[self.column]
        ]
        if empty := [i for i, answers in enumerate(out) if not answers]:
            raise DataError(
                f"{where}: {len(empty)} row(s) have no {self.column} ({listed_rows(empty)}); fill them "
                f"in or remove the rows{self._or_generate()}"
            )
        said = [{levelled(answer_text(answer)) for answer in answers} for answers in out]
        if same := [i for i, row in enumerate(data) if _own(row) in said[i]]:
            raise DataError(
                f"{where}: {len(same)} row(s) have their own answer as {self.column} ({listed_rows(same)}); "
                "nothing could be told apart, so write another answer there or remove it"
            )
        return out

    def _or_generate(self) -> str:
        generated = self.column == ALTERNATES
        return ", or let the target model write them with `data.alternates: {}`" if generated else ""


def _as_list(value: Any) -> list[Any]:
    """A cell's answers: text or messages are one answer, a list of either are several."""
    if value is None:
        return []
    if isinstance(value, str) or (value and isinstance(value[0], Mapping)):
        return [value]
    return [answer for answer in value if answer]


def _own(row: Mapping[str, Any]) -> str | None:
    """A row's own answer, levelled; None where it has none."""
    if row.get("completion") is None and not row.get("messages"):
        return None
    return levelled(answer_text(prompt_and_answer(row)[1]))
