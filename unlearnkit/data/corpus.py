"""Documents as tokens on disk: written once, read piece by piece, so that memory does not grow with them.

A folder holds the tokens of all documents, one behind the other, in the order of the source; it is named by
the texts and the tokenizer. Inside it one folder per cut says which stretches are examples, and which of
their tokens selectors chose; another `max_length` or selector cuts anew without tokenising again.
"""

from __future__ import annotations

import atexit
import os
import shutil
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.columns import content_id
from unlearnkit.data.encoding import Tokens, encode_document, pieces
from unlearnkit.data.identity import ROWS_AT_A_TIME, content, selector_identity, tokenizer_identity
from unlearnkit.data.token_rows import IGNORE, Chosen, Tokenized, TokenRow
from unlearnkit.errors import UserError
from unlearnkit.files import atomic_folder, fingerprint, one_at_a_time, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from unlearnkit.data.formats import Tokenizer

#: Raised when what lies in the folders, or the way of cutting, changes, so that nothing old is read.
_FORMAT = 1
_FACTS = "complete.json"
_TOKEN, _OFFSET = np.dtype("<i4"), np.dtype("<i4")
#: Seconds after which a folder that nobody finished is taken for abandoned: without locks it may be at work.
_ABANDONED = 24 * 3600.0
_DROPPED, _UNLEARNED = 0, 2  # 1: learned


@dataclass(frozen=True)
class Documents:
    """The tokens of whole documents in a folder."""

    folder: Path

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each document begins among the tokens, and the end of the last."""
        return _mapped(self.folder / "starts.npy")

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """All tokens."""
        return np.memmap(self.folder / "tokens.bin", _TOKEN, mode="r")

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """Names of the texts, as numbers of 12 hexadecimal digits."""
        return _mapped(self.folder / "ids.npy")

    @cached_property
    def _offsets(self) -> NDArray[np.int32] | None:
        path = self.folder / "offsets.bin"
        return np.memmap(path, _OFFSET, mode="r").reshape(-1, 2) if path.exists() else None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Tokens:
        where = slice(int(self.starts[number]), int(self.starts[number + 1]))
        places = None if self._offsets is None else [(a, b) for a, b in self._offsets[where].tolist()]
        return Tokens(self.tokens[where].tolist(), places)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a memory map would be copied


class Corpus(Sequence[TokenRow]):
    """The examples of a cut, read from the disk when they are asked for.

    Args:
        documents: the tokens.
        folder: of the cut.
        table: the source, for the names of its own that documents have.
        max_length: tokens at most in one example.
    """

    def __init__(self, documents: Documents, folder: Path, table: Dataset, max_length: int) -> None:
        self.documents, self.folder, self.max_length = documents, folder, max_length
        self._own = table.select_columns(["example_id"]) if "example_id" in table.column_names else None

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each example."""
        return _mapped(self.folder / "lengths.npy")

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        return _mapped(self.folder / "begins.npy")

    @cached_property
    def _marks(self) -> NDArray[np.uint8] | None:
        path = self.folder / "marks.bin"
        return np.memmap(path, np.uint8, mode="r") if path.exists() else None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("documents", "folder", "max_length", "_own")
        return {key: self.__dict__[key] for key in kept}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        begin = int(self._begins[index])
        where = slice(begin, begin + int(self.lengths[index]))
        ids = self.documents.tokens[where].tolist()
        row = TokenRow(example_id=self._name(begin), input_ids=ids, labels=[IGNORE, *ids[1:]])
        if self._marks is not None:
            marks = self._marks[where].tolist()
            row["labels"] = [i if mark else IGNORE for i, mark in zip(ids, marks, strict=True)]
            row["unlearn"] = [int(mark == _UNLEARNED) for mark in marks]
            row["candidates"] = len(ids) - 1
        return row

    def _name(self, begin: int) -> str:
        starts = self.documents.starts
        number = int(np.searchsorted(starts, begin, side="right")) - 1
        first, last = int(starts[number]), int(starts[number + 1])
        name = self._own[number]["example_id"] if self._own is not None else None
        name = f"{int(self.documents.ids[number]):012x}" if name in (None, "") else str(name)
        cut = len(pieces(min(last - first, 2 * self.max_length), self.max_length)) > 1
        return f"{name}/{(begin - first) // self.max_length}" if cut else name


class StoredTokens(Tokenized):
    """`Tokenized` whose rows are a Corpus; nothing is counted by reading them."""

    rows: Corpus

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.rows.lengths.sum(dtype=np.int64))

    @property
    def num_target_tokens(self) -> int:
        """Tokens that count in a loss."""
        if self.chosen is not None:
            return self.chosen.learned + self.chosen.unlearned
        return self.num_tokens - len(self.rows)

    @property
    def fingerprint(self) -> str:
        """Names the exact tokens and labels."""
        return fingerprint(self.rows.documents.folder.name, self.rows.folder.name)


def stored(table: Dataset, maker: Tokenizer, folder: Path) -> StoredTokens:
    """The examples of a table of documents, tokenised and cut unless that has been done before.

    Args:
        table: canonical `text` rows.
        maker: says how documents become examples.
        folder: where corpora are kept.

    Raises:
        DataError: as `Tokenizer.finish`.
        UserError: the disk is full.
    """
    texts, who = content(table, ["text"]), tokenizer_identity(maker.tokenizer)
    name = fingerprint(_FORMAT, texts, who, maker.reads_text)
    _made(folder / name, lambda place: _write_tokens(place, table, maker))
    documents = Documents(folder / name)
    cut = _cut_folder(documents.folder, table, maker)
    facts = _made(cut, lambda place: _write_cut(place, documents, table, maker))
    maker.longest, maker.chosen = facts["longest"], _chosen(facts["chosen"])
    rows = Corpus(documents, cut, table, maker.max_length)
    maker.finish(len(rows))
    return StoredTokens(rows, chosen=maker.chosen if maker.selectors else None)


def _cut_folder(within: Path, table: Dataset, maker: Tokenizer) -> Path:
    """Named by what decides a cut besides the tokens: selectors may read names and spans."""
    from unlearnkit import __version__

    if not maker.selectors:
        return within / f"cut-{fingerprint(_FORMAT, maker.max_length)}"
    chosen = [selector_identity(one) for one in maker.selectors]
    if None in chosen:
        return _passing(within)
    return within / f"cut-{fingerprint(_FORMAT, __version__, maker.max_length, chosen, content(table))}"


def _passing(within: Path) -> Path:
    """A folder that nobody else uses, and that is removed when this process ends."""
    folder, owner = within / f"cut-{uuid.uuid4().hex}", os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child ends earlier
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)

    atexit.register(remove)
    return folder


def _made(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What is known of a folder, which is written first unless it lies there whole; one process writes."""
    with one_at_a_time(folder.parent / f".{folder.name}.lock"):
        facts = _facts(folder)
        if facts is None:
            if folder.exists() and _facts(folder) is None:  # not what another has finished meanwhile
                shutil.rmtree(folder, ignore_errors=True)
            for left in folder.parent.glob(f".{folder.name}.*.part"):  # of a writer that was killed
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
            try:
                with atomic_folder(folder) as place:
                    facts = write(place)
                    files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
                    write_json(place / _FACTS, {**facts, "files": files})
            except (OSError, UserError):
                facts = _facts(folder)  # where there are no locks, another process may have been faster
                if facts is None:
                    raise
        return facts


def _facts(folder: Path) -> dict[str, Any] | None:
    """What was noted when a folder was written; None if a file of it is missing or has another size."""
    try:
        facts: dict[str, Any] = read_json(folder / _FACTS)
        sizes = {name: (folder / name).stat().st_size for name in facts["files"]}
    except (UserError, OSError, KeyError, TypeError):
        return None
    return facts if sizes == facts["files"] else None


def _rows(table: Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in table.select_columns(list(columns)).iter(ROWS_AT_A_TIME):
        for values in zip(*(batch[name] for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _write_tokens(place: Path, table: Dataset, maker: Tokenizer) -> dict[str, Any]:
    starts, ids = array("q", [0]), array("Q")
    with (place / "tokens.bin").open("wb") as tokens, (place / "offsets.bin").open("wb") as offsets:
        for row in _rows(table, ["text"]):
            found = encode_document(maker.tokenizer, row["text"], offsets=maker.reads_text)
            tokens.write(np.asarray(found.ids, _TOKEN).tobytes())
            if found.offsets is not None:
                offsets.write(np.asarray(found.offsets, _OFFSET).tobytes())
            starts.append(starts[-1] + len(found))
            ids.append(int(content_id(row), 16))
    if not maker.reads_text:
        (place / "offsets.bin").unlink()
    np.save(place / "starts.npy", np.frombuffer(starts, np.int64))
    np.save(place / "ids.npy", np.frombuffer(ids, np.uint64))
    return {"documents": len(ids), "tokens": starts[-1]}


def _write_cut(place: Path, documents: Documents, table: Dataset, maker: Tokenizer) -> dict[str, Any]:
    begins, lengths = array("q"), array("i")
    for start, end in zip(documents.starts[:-1].tolist(), documents.starts[1:].tolist(), strict=True):
        for first, last in pieces(end - start, maker.max_length):
            begins.append(start + first)
            lengths.append(last - first)
    np.save(place / "begins.npy", np.frombuffer(begins, np.int64))
    np.save(place / "lengths.npy", np.frombuffer(lengths, np.int32))
    if maker.selectors:
        with (place / "marks.bin").open("wb") as file:
            for number, row in enumerate(_rows(table, table.column_names)):
                file.write(_marks_of(row, number, documents, maker))
    longest = max(lengths, default=0)
    return {"longest": longest, "chosen": {**vars(maker.chosen), "risks": dict(maker.chosen.risks)}}


def _marks_of(row: Mapping[str, Any], number: int, documents: Documents, maker: Tokenizer) -> bytes:
    """One byte per token of a document: what selectors make of it."""
    tokens = documents[number]
    name = row.get("example_id")
    named = {**row, "example_id": content_id(row) if name in (None, "") else str(name)}
    marks = np.full(len(tokens), _DROPPED, np.uint8)
    cuts = pieces(len(tokens), maker.max_length)
    for (start, end), example in zip(cuts, maker.document(named, tokens), strict=True):
        marks[start:end] = np.asarray(example["labels"]) != IGNORE
        marks[start:end][np.asarray(example["unlearn"], bool)] = _UNLEARNED
    return marks.tobytes()


def _chosen(values: Mapping[str, Any]) -> Chosen:
    return Chosen(**{**values, "risks": Counter(values["risks"])})


def _mapped(path: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped
