"""Where examples come from: hub ids, local files and folders, the built-in benchmark; all become the same
columns.

What a row looks like afterwards is said in `data/columns.py`.
"""

from __future__ import annotations

import difflib
import errno
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnkit.data.columns import canonical, with_ids
from unlearnkit.data.csv_file import csv_options, refuse_needless_header
from unlearnkit.data.documents import is_documents, joined
from unlearnkit.data.identity import ROWS_AT_A_TIME
from unlearnkit.data.lists import refuse_lists, spread
from unlearnkit.data.pairs import SIDES
from unlearnkit.errors import DataError, UnreachableError, UserError
from unlearnkit.recipe import StreamSpec

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["canonical", "describe_source", "load_stream", "read_table"]

_BUILDERS = {
    ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text",
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)


def load_stream(
    source: StreamSpec | Sequence[StreamSpec], *, root: str | None = None, name: str = "data",
    on_disk: bool = False,
) -> Dataset:  # fmt: skip
    """Read one stream; several sources are put one after the other.

    Args:
        source: where the rows are; relative paths are tried as given, then under `root`.
        root: a local folder or hub id that holds the sources which name no path of their own; "fictional" is
            built in.
        name: the stream's name, for messages; one with dots is taken for a whole setting
            ("evaluation.data.forget").
        on_disk: documents may be more than fits into memory, and get no ids.

    Raises:
        DataError: missing file, empty set, unknown column, row without prompt or answer.
    """
    import datasets

    name = name if "." in name or name == "data" else f"data.{name}"
    parts = [source] if isinstance(source, StreamSpec) else list(source)
    if not parts:
        raise DataError(f"{name} lists no source; name a path or a hub id")
    tables = [_load_one(part, root, name, on_disk) for part in parts]
    if len(tables) == 1:
        return tables[0]
    shared = [c for c in tables[0].column_names if all(c in t.column_names for t in tables)]
    if not {"completion", "messages", "text"} & set(shared) and not {"prompt", *SIDES} <= set(shared):
        shapes = "; ".join(", ".join(c for c in t.column_names if c != "example_id") for t in tables)
        raise DataError(
            f"{name}: its sources have different columns ({shapes}); bring them into one shape with `columns`"
        )
    try:
        whole = datasets.concatenate_datasets([t.select_columns(shared) for t in tables])
    except ValueError as error:
        raise DataError(
            f"{name}: its sources hold different types ({error}); bring them into one shape"
        ) from error
    return whole if on_disk and is_documents(whole) else with_ids(whole)


def read_table(source: StreamSpec, *, root: str | None = None, name: str = "data") -> Dataset:
    """The rows of one source as they stand there, with columns of any name; `rows` and `limit` do not count.

    Raises:
        DataError: a missing or malformed file.
    """
    return _read(source, root, name)[0]


def _load_one(source: StreamSpec, root: str | None, name: str, on_disk: bool) -> Dataset:
    raw, origin = _read(source, root, name)
    chosen = range(len(raw))
    if source.rows is not None:
        chosen = chosen[_slice(source.rows, name)]
    most = None if source.limit is None else source.limit * (source.join or 1)
    if source.per_row is None:
        chosen = chosen[:most]
    if not chosen:
        raise DataError(f"{name}: {origin} has no rows; check the file, `rows` and `limit`")
    raw = raw if len(chosen) == len(raw) and chosen.step == 1 else raw.select(chosen)
    where, columns = f"{name} ({origin})", source.columns
    if source.per_row is None:
        refuse_lists(raw, columns, where)
    else:
        raw, columns = spread(raw, columns, source.per_row, where), None
        raw = raw if most is None else raw.take(min(most, len(raw)))
    table = canonical(raw, columns, where=where, on_disk=on_disk)
    return table if source.join is None else joined(table, source.join, where, ids=not on_disk)


def describe_source(source: StreamSpec | Sequence[StreamSpec], root: str | None) -> str:
    """One line that says where a stream's rows come from, for manifests and reports."""
    parts = [source] if isinstance(source, StreamSpec) else source
    texts = []
    for part in parts:
        text = ":".join(str(p) for p in (part.path or root, part.name) if p)
        texts.append(
            text
            + (f"[{part.rows}]" if part.rows else "")
            + (f" up to {part.per_row} a row" if part.per_row else "")
            + (f" by {part.join}" if part.join else "")
        )
    return " + ".join(texts)


def _slice(text: str, name: str) -> slice:
    try:
        pieces = [int(p) if p.strip() else None for p in text.split(":")]
        if not 2 <= len(pieces) <= 3 or pieces[2:] == [0]:
            raise ValueError
    except ValueError:
        raise DataError(f"{name}.rows is {text!r}; write a slice such as 0:100 or ::2") from None
    return slice(*pieces)


def _read(source: StreamSpec, root: str | None, name: str) -> tuple[Dataset, str]:
    """The raw table and a text that names where it came from."""
    import datasets

    place = source.path or root
    if place is None:
        raise DataError(f"{name} has no path; give {name}.path or data.root")
    path = None if place == "fictional" else _local(source, root, name)
    refuse_needless_header(source.header, path, name)
    if place == "fictional":
        from unlearnkit.data import fictional

        split = source.name or "full"
        return datasets.Dataset.from_list(fictional.rows(split)), f"fictional:{split}"
    if path is None:
        return _from_hub(place, source, name), f"{place}:{source.name or source.split}"
    try:
        return _from_disk(path, source, name), str(path)
    except DataError:
        raise
    except Exception as error:  # datasets raises many types for a malformed file
        if isinstance(cause := error.__cause__ or error, OSError) and cause.errno in _FULL:
            raise UserError(
                f"the disk is full: could not prepare {path}; free some space and try again"
            ) from error
        if "corresponds to no data" in str(error):
            raise DataError(f"{name}: {path} has no rows; put at least one into it") from error
        reason = str(error.__cause__ or error).strip().splitlines()
        raise DataError(
            f"{name}: {path} cannot be read as {path.suffix.lstrip('.') or 'a data folder'} "
            f"({reason[0] if reason else type(error).__name__}); mend the file"
        ) from error


def _local(source: StreamSpec, root: str | None, name: str) -> Path | None:
    """The local file or folder that is meant, or None for a hub id."""
    bases = [Path(source.path)] if source.path else []
    if root is not None:
        bases.append(Path(root, source.path) if source.path else Path(root))
    existing = [b.expanduser() for b in bases if b.expanduser().exists()]
    if not existing:
        if source.path and (Path(source.path).suffix in _BUILDERS or source.path.startswith((".", "/", "~"))):
            places = [b for b in dict.fromkeys(bases) if b is bases[0] or Path(str(root)).is_dir()]
            also = "".join(f", nor does {place}" for place in places[1:])
            raise DataError(
                f"{name}.path: {source.path} does not exist{also}; {nearby(places[-1].expanduser())}"
            )
        if root is not None and root.startswith((".", "/", "~")) and not source.path:
            raise DataError(f"data.root: the folder {root} does not exist; check the path")
        return None
    base = existing[0]
    if source.name is None:
        return base
    if base.is_file():
        raise DataError(
            f"{name}: {base} is one file, which holds no {source.name!r}; leave out `name`, or give "
            "the folder"
        )
    inside = base / source.name / source.split  # MUSE's layout: a folder a part, a file a split
    shards = sorted(inside.parent.glob(f"{glob.escape(inside.name)}-*-of-*.parquet"))
    for candidate in [
        *(inside.with_name(inside.name + suffix) for suffix in _BUILDERS),
        *(shards if len(shards) == 1 else ()),
        base / source.name,
        *(base / (source.name + suffix) for suffix in _BUILDERS),
    ]:
        if candidate.exists():
            return Path(candidate)
    raise DataError(f"{name}: {base} has no file for {source.name!r}; {nearby(base / source.name)}")


def nearby(path: Path) -> str:
    """What the folder holds instead, nearest names first."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:5]
    more = f" and {len(names) - len(close):,} more" if len(names) > len(close) else ""
    return f"the folder holds {', '.join(close)}{more}" if close else "the folder is empty"


def _from_disk(path: Path, source: StreamSpec, name: str) -> Dataset:
    import datasets

    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            only_text = _only_text(path)
            extra = {"sample_by": source.sample_by} if only_text else {}
            loaded = datasets.load_dataset(str(path), **extra)
            if only_text:
                return _without_blanks(_one_split(loaded, source, name, str(path)))
        return _one_split(loaded, source, name, str(path))
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise DataError(f"{name}: {path} has an unknown ending; use one of {', '.join(sorted(_BUILDERS))}")
    if path.stat().st_size == 0:
        raise DataError(f"{name}: {path} is empty; put at least one row into it")
    exact = glob.escape(str(path))  # `datasets` takes it for a pattern
    if builder == "text":
        return _without_blanks(
            datasets.load_dataset(builder, data_files=exact, split="train", sample_by=source.sample_by)
        )
    extra = csv_options(path, source.header, name) if builder == "csv" else {}
    return datasets.load_dataset(builder, data_files=exact, split="train", **extra)


def _without_blanks(table: Dataset) -> Dataset:
    """Blank lines separate texts; they are none."""
    texts = (text for batch in table.iter(ROWS_AT_A_TIME) for text in batch["text"])
    filled = np.flatnonzero(np.fromiter((bool(text.strip()) for text in texts), bool, len(table)))
    return table if len(filled) == len(table) else table.select(filled)


def _only_text(folder: Path) -> bool:
    endings = {p.suffix.lower() for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in _BUILDERS}
    return endings == {".txt"}


def _from_hub(place: str, source: StreamSpec, name: str) -> Dataset:
    import datasets

    try:
        loaded = datasets.load_dataset(place, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # offline, unknown id, unknown config: all are the user's to mend
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreachableError(
            f"{name}: {place!r} is neither a local path nor a hub data set that can be reached ({first}); "
            "check the name, or set data.root to a folder that holds the files"
        ) from error
    return _one_split(loaded, source, name, place)


def _one_split(loaded: Any, source: StreamSpec, name: str, origin: str) -> Dataset:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise DataError(
                f"{name}: {origin} has no split {source.split!r}; it has {', '.join(sorted(loaded))}"
            )
        return loaded[source.split]
    return loaded
