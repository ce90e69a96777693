"""Parts: what one stream gives to a batch.

Most streams give one row per example. A preference pair gives two, its chosen and its rejected answer; a
forget example may bring a refusal or an alternate answer along. Each of them is a part of its stream, named
`STREAM` or `STREAM.PART`, with a batch of its own whose rows are aligned with those of its sister parts.

A further answer is drawn from several candidates by (index, epoch, seed): the same for any number of
processes, any batch size, and after a resume. Only what is drawn during the run is tokenised, and scored by a
cached reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.blocks import Blocks, plan_blocks
from unlearnkit.data.cells import listed_rows
from unlearnkit.data.documents import is_documents
from unlearnkit.data.formats import Tokenized, refuse_equal_pairs, with_answer
from unlearnkit.data.pairs import SIDES, as_pairs
from unlearnkit.data.permutations import hashed
from unlearnkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from unlearnkit.data.answers import Answers

#: (canonical rows, name for messages) -> token rows.
Tokenize = Callable[[Iterable[Mapping[str, Any]], str], Tokenized]
Places = slice | NDArray[np.int64]
_ALL = slice(None)


def stream_of(part: str) -> str:
    """The stream that a part belongs to: "pairs" of "pairs.chosen"."""
    return part.partition(".")[0]


def streams_of(parts: Iterable[str]) -> tuple[str, ...]:
    """The streams of several parts, each once."""
    return tuple(dict.fromkeys(stream_of(part) for part in parts))


@dataclass(frozen=True)
class StreamRows:
    """The rows of one stream: what one of its items gives to each part.

    Args:
        parts: part -> its distinct rows.
        drawn: part -> int [epochs, rows of the stream]: which of its rows stands at (epoch, index); a part
            without a table has one row per row of the stream.
        blocks: several rows an item, of a stream with one part (see `data/blocks.py`).
    """

    parts: Mapping[str, Sequence[Any]]
    drawn: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    blocks: Blocks | None = None

    def __len__(self) -> int:
        if self.blocks is not None:
            return len(self.blocks)
        part, rows = next(iter(self.parts.items()))
        return self.drawn[part].shape[1] if part in self.drawn else len(rows)

    def at(self, index: int, epoch: int) -> dict[str, list[Any]]:
        """Part -> its rows at (index, epoch); after the last epoch that was planned they begin anew."""
        if self.blocks is not None:
            return {part: [rows[i] for i in self.blocks[index]] for part, rows in self.parts.items()}
        return {part: [rows[self._place(part, index, epoch)]] for part, rows in self.parts.items()}

    def _place(self, part: str, index: int, epoch: int) -> int:
        table = self.drawn.get(part)
        return index if table is None else int(table[epoch % len(table), index])

    def lengths(self, epoch: int, places: Places = _ALL) -> NDArray[np.int64]:
        """The longest part (tokens) of each item in `epoch`, or of those at `places`."""
        longest: NDArray[np.int64] = np.max(self._sizes(epoch, places), axis=0)
        return longest

    def tokens(self, epoch: int, places: Places = _ALL) -> NDArray[np.int64]:
        """The tokens of all parts of each item in `epoch`, or of those at `places`."""
        total: NDArray[np.int64] = np.sum(self._sizes(epoch, places), axis=0)
        return total

    def _sizes(self, epoch: int, places: Places) -> list[NDArray[np.int64]]:
        tables = {part: table[epoch % len(table)] for part, table in self.drawn.items()}
        return [
            sizes[tables[part][places]] if part in tables else sizes[places]
            for part, sizes in self._tokens.items()
        ]

    @cached_property
    def _tokens(self) -> dict[str, NDArray[np.int64]]:
        """Part -> the tokens of each of its rows, or of each block."""
        sizes = {part: row_lengths(rows) for part, rows in self.parts.items()}
        return sizes if self.blocks is None else {p: self.blocks.sums(one) for p, one in sizes.items()}


def row_lengths(rows: Sequence[Any]) -> NDArray[np.int64]:
    """The tokens of each row; rows that do not lie in memory know them."""
    known = getattr(rows, "lengths", None)
    if known is not None:
        return np.asarray(known)
    return np.fromiter((len(row["input_ids"]) for row in rows), np.int64, len(rows))


def draw(counts: Sequence[int], *, epochs: int, seed: int, name: str) -> NDArray[np.int64]:
    """int [epochs, rows]: which of a row's candidates is taken; none follows itself if there are others.

    Every row goes through orders of its own, so that all of its candidates come before one comes again.

    Args:
        counts: candidates of each row, at least 1.
        epochs: passes that are planned, at least 1.
        name: of the part; different parts draw differently.
    """
    table = np.empty((epochs, len(counts)), dtype=np.int64)
    first = hashed(len(counts), seed, "answer", name)
    for index, count in enumerate(counts):
        last = -1
        for start in range(0, epochs, count):
            order = np.argsort(hashed(count, int(first[index]), start // count), kind="stable")
            if order[0] == last and count > 1:
                order[[0, 1]] = order[[1, 0]]
            last = int(order[-1])
            table[start : start + count, index] = order[: epochs - start]
    return table


def tokenize_parts(
    parts: Sequence[str],
    streams: Mapping[str, Dataset],
    tokenize: Tokenize,
    answers: Mapping[str, Answers],
    *,
    epochs: int,
    seed: int,
    max_length: int,
    pack: bool = False,
) -> tuple[dict[str, Tokenized], dict[str, StreamRows]]:
    """Tokenise what an objective reads: (part -> its tokens, stream -> its rows).

    Args:
        parts: what the objective reads.
        streams: canonical rows of every stream.
        tokenize: from rows to tokens.
        answers: part -> where its answers come from, for parts that are drawn.
        epochs: passes over the data that are planned.
        seed: with index and epoch it decides every draw.
        max_length: of a row; for messages, and of a block.
        pack: put documents into blocks.

    Raises:
        DataError: rows without an answer, or pairs without a difference.
    """
    tokenized: dict[str, Tokenized] = {}
    tables: dict[str, NDArray[np.int64]] = {}
    for part in parts:
        stream, _, kind = part.partition(".")
        data = streams[stream]
        if not kind:
            refuse_pairs_alone(data, f"data.{part}")
            tokenized[part] = tokenize(data, part)
        elif kind in SIDES and part not in answers:
            pairs = as_pairs(data, f"data.{stream}")
            tokenized[part] = tokenize([with_answer(row, row[kind]) for row in pairs], part)
        else:
            rows, tables[part] = _drawn_rows(data, answers[part], part, epochs, seed)
            tokenized[part] = tokenize(rows, part)
    for stream in streams_of(parts):
        chosen, rejected = (tokenized.get(f"{stream}.{side}") for side in SIDES)
        if chosen is not None and rejected is not None:
            refuse_equal_pairs(chosen, rejected, stream, max_length)
    for part, table in tables.items():
        if (own := tokenized.get(stream_of(part))) is not None:
            _refuse_own_answers(tokenized[part], own, table, part, max_length)
    return tokenized, {
        stream: StreamRows(
            {part: tokenized[part].rows for part in parts if stream_of(part) == stream},
            {part: table for part, table in tables.items() if stream_of(part) == stream},
            plan_blocks(row_lengths(tokenized[stream].rows), max_length, seed)
            if pack and is_documents(streams[stream])
            else None,
        )
        for stream in streams_of(parts)
    }


def check_parts(parts: Sequence[str], streams: Mapping[str, Dataset], answers: Mapping[str, Answers]) -> None:
    """What can be known of the parts without a tokenizer.

    Raises:
        DataError: as `tokenize_parts`.
    """
    for part in parts:
        stream, _, kind = part.partition(".")
        if not kind:
            refuse_pairs_alone(streams[stream], f"data.{stream}")
        elif part in answers:
            answers[part].candidates(streams[stream], f"data.{stream}")
        else:
            as_pairs(streams[stream], f"data.{stream}")


def refuse_pairs_alone(data: Dataset, where: str) -> None:
    """Raise where one answer is read, and the rows hold two without saying which.

    Raises:
        DataError: names the columns.
    """
    names = getattr(data, "column_names", ())
    if "chosen" in names and not {"completion", "messages", "text"} & set(names):
        raise DataError(
            f"{where} holds preference pairs (chosen and rejected), but one answer a row is read from it; "
            "name that answer with `columns: {completion: rejected}` (or chosen) beside its path, or give "
            "the rows as data.pairs"
        )


def _refuse_own_answers(
    drawn: Tokenized, own: Tokenized, table: NDArray[np.int64], part: str, max_length: int
) -> None:
    """Raise where cutting made a drawn answer the row's own, so that there is nothing to prefer."""
    met = sorted({(int(place), index) for row in table for index, place in enumerate(row)})
    same = [i for place, i in met if drawn.rows[place]["input_ids"] == own.rows[i]["input_ids"]]
    if same:
        raise DataError(
            f"data.{stream_of(part)}: {len(set(same))} row(s) and an answer drawn for them ({part}) are the "
            f"same tokens ({listed_rows(sorted(set(same)))}); raise data.max_length={max_length} if it cuts "
            "off where they differ, or write another answer"
        )


def _drawn_rows(
    data: Dataset, answers: Answers, part: str, epochs: int, seed: int
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The distinct (row, answer) pairs of a run, and which of them stands at (epoch, index)."""
    candidates = answers.candidates(data, f"data.{stream_of(part)}")
    table = draw([len(own) for own in candidates], epochs=epochs, seed=seed, name=part)
    places: dict[tuple[int, int], int] = {}
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(data):
        for choice in dict.fromkeys(table[:, index].tolist()):
            places[index, choice] = len(rows)
            answered = with_answer(row, candidates[index][choice])
            rows.append({**answered, "example_id": f"{row['example_id']}/{choice}"})
    for epoch in range(epochs):
        table[epoch] = [places[index, int(choice)] for index, choice in enumerate(table[epoch])]
    return rows, table
