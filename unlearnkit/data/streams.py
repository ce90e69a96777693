"""Where examples come from: hub ids, local files and folders, the built-in benchmark; all become the same columns.

A stream's rows have an `example_id` and one of three shapes (TRL's names): `prompt` + `completion`, `messages`, or `text`.
Both `prompt` and `completion` may be strings or lists of chat messages. TOFU's `question` / `answer` become
`prompt` / `completion`. The evaluation columns `paraphrased_answer`, `perturbed_answer` and `paraphrased_question` stay.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import DataError, UnreachableError
from unlearnkit.recipe import StreamSpec

if TYPE_CHECKING:
    from datasets import Dataset

#: Columns that probes read besides the example itself.
EVALUATION_COLUMNS = ("paraphrased_answer", "perturbed_answer", "paraphrased_question")
#: Other names for the canonical columns, looked for when no column map is given.
ALIASES = {"question": "prompt", "answer": "completion"}
_SHAPES = (("prompt", "completion"), ("messages",), ("text",))
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_stream(
    source: StreamSpec | Sequence[StreamSpec], *, root: str | None = None, name: str = "data"
) -> Dataset:
    """Read one stream; several sources are put one after the other.

    Args:
        source: where the rows are; relative paths are tried as given, then under `root`.
        root: a local folder or hub id that holds the sources which name no path of their own; "fictional" is built in.
        name: the stream's name, for messages.

    Raises:
        DataError: missing file, empty set, unknown column, row without prompt or answer.
    """
    import datasets

    parts = [source] if isinstance(source, StreamSpec) else list(source)
    if not parts:
        raise DataError(f"data.{name} lists no source; name a path or a hub id")
    tables = [_load_one(part, root, name) for part in parts]
    if len(tables) == 1:
        return tables[0]
    shared = [c for c in tables[0].column_names if all(c in t.column_names for t in tables)]
    joined = datasets.concatenate_datasets([t.select_columns(shared) for t in tables])
    return _with_ids(joined, keep=False)


def _load_one(source: StreamSpec, root: str | None, name: str) -> Dataset:
    raw, origin = _read(source, root, name)
    if source.rows is not None:
        raw = raw.select(range(len(raw))[_slice(source.rows, name)])
    if source.limit is not None:
        raw = raw.select(range(min(source.limit, len(raw))))
    if len(raw) == 0:
        raise DataError(f"data.{name}: {origin} has no rows; check the file, `rows` and `limit`")
    return canonical(raw, source.columns, where=f"data.{name} ({origin})")


def describe_source(source: StreamSpec | Sequence[StreamSpec], root: str | None) -> str:
    """One line that says where a stream's rows come from, for manifests and reports."""
    parts = [source] if isinstance(source, StreamSpec) else source
    texts = []
    for part in parts:
        text = ":".join(str(p) for p in (part.path or root, part.name) if p)
        texts.append(text + (f"[{part.rows}]" if part.rows else ""))
    return " + ".join(texts)


def _slice(text: str, name: str) -> slice:
    try:
        pieces = [int(p) if p.strip() else None for p in text.split(":")]
        if not 2 <= len(pieces) <= 3:
            raise ValueError
    except ValueError:
        raise DataError(f"data.{name}.rows is {text!r}; write a slice such as 0:100 or ::2") from None
    return slice(*pieces)


def _read(source: StreamSpec, root: str | None, name: str) -> tuple[Dataset, str]:
    """The raw table and a text that names where it came from."""
    import datasets

    place = source.path or root
    if place is None:
        raise DataError(f"data.{name} has no path; give data.{name}.path or data.root")
    if place == "fictional":
        from unlearnkit.data import fictional

        split = source.name or "full"
        return datasets.Dataset.from_list(fictional.rows(split)), f"fictional:{split}"
    path = _local(source, root, name)
    if path is None:
        return _from_hub(place, source, name), f"{place}:{source.name or source.split}"
    try:
        return _from_disk(path, source, name), str(path)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - datasets raises many types for a malformed file
        reason = str(error.__cause__ or error).strip().splitlines()
        raise DataError(
            f"data.{name}: {path} cannot be read as {path.suffix.lstrip('.') or 'a data folder'} "
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
            raise DataError(f"data.{name}.path: {source.path} does not exist; {_nearby(Path(source.path))}")
        if root is not None and root.startswith((".", "/", "~")) and not source.path:
            raise DataError(f"data.root: the folder {root} does not exist; check the path")
        return None
    base = existing[0]
    if source.name is None or base.is_file():
        return base
    for candidate in [base / source.name, *(base / (source.name + suffix) for suffix in _BUILDERS)]:
        if candidate.exists():
            return candidate
    raise DataError(f"data.{name}: {base} has no file for {source.name!r}; {_nearby(base / source.name)}")


def _nearby(path: Path) -> str:
    """What the folder holds instead, nearest names first."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:5]
    return f"the folder holds {', '.join(close)}" if close else "the folder is empty"


def _from_disk(path: Path, source: StreamSpec, name: str) -> Dataset:
    import datasets

    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            extra = {"sample_by": source.sample_by} if _only_text(path) else {}
            loaded = datasets.load_dataset(str(path), **extra)
        return _one_split(loaded, source, name, str(path))
    builder = _BUILDERS.get(path.suffix)
    if builder is None:
        raise DataError(f"data.{name}: {path} has an unknown ending; use one of {', '.join(sorted(_BUILDERS))}")
    if path.stat().st_size == 0:
        raise DataError(f"data.{name}: {path} is empty; put at least one row into it")
    extra = {"sample_by": source.sample_by} if builder == "text" else {}
    if path.suffix == ".tsv":
        extra = {"sep": "\t"}
    return datasets.load_dataset(builder, data_files=str(path), split="train", **extra)


def _only_text(folder: Path) -> bool:
    endings = {p.suffix for p in folder.rglob("*") if p.is_file() and p.suffix in _BUILDERS}
    return endings == {".txt"}


def _from_hub(place: str, source: StreamSpec, name: str) -> Dataset:
    import datasets

    try:
        loaded = datasets.load_dataset(place, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # noqa: BLE001 - offline, unknown id, unknown config: all are the user's to mend
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreachableError(
            f"data.{name}: {place!r} is neither a local path nor a hub data set that can be reached ({first}); "
            "check the name, or set data.root to a folder that holds the files"
        ) from error
    return _one_split(loaded, source, name, place)


def _one_split(loaded: Any, source: StreamSpec, name: str, origin: str) -> Dataset:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise DataError(
                f"data.{name}: {origin} has no split {source.split!r}; it has {', '.join(sorted(loaded))}"
            )
        return loaded[source.split]
    return loaded


def canonical(raw: Dataset, columns: Mapping[str, str] | None = None, *, where: str = "the data set") -> Dataset:
    """Rename columns to the canonical ones, check every row, and add `example_id`.

    Args:
        raw: any `datasets.Dataset`.
        columns: canonical name -> the file's own name, such as {"prompt": "q", "completion": "a"}.

    Raises:
        DataError: a column that is not there, no usable shape, or rows without a prompt or an answer (named by number).
    """
    table = _renamed(raw, columns or {}, where)
    shape = next((s for s in _SHAPES if all(c in table.column_names for c in s)), None)
    if shape is None:
        raise DataError(
            f"{where} has the columns {', '.join(raw.column_names)}; it needs prompt and completion (or question and "
            "answer), messages, or text: name yours with `columns: {prompt: ..., completion: ...}`"
        )
    extra = [c for c in EVALUATION_COLUMNS if c in table.column_names]
    own_id = ["example_id"] if "example_id" in table.column_names else []
    table = table.select_columns([*own_id, *shape, *extra])
    for column in shape:
        empty = [i for i, value in enumerate(table[column]) if _is_empty(value)]
        if empty:
            listed = ", ".join(str(i) for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise DataError(
                f"{where}: {len(empty)} row(s) have an empty {_own_name(column, columns)} (row {listed}, counted from 0); "
                "fill them in or remove them"
            )
    return _with_ids(table, keep=bool(own_id))


def _renamed(raw: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    missing = [own for own in columns.values() if own not in raw.column_names]
    if missing:
        close = difflib.get_close_matches(missing[0], raw.column_names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(
            f"{where} has no column {missing[0]!r}, which `columns` names; it has {', '.join(raw.column_names)}{hint}"
        )
    mapping = {own: new for new, own in columns.items() if own != new}
    taken = set(columns) | set(raw.column_names)
    mapping |= {a: c for a, c in ALIASES.items() if a in raw.column_names and c not in taken and a not in mapping}
    # A renamed column replaces one that already has the canonical name.
    return raw.remove_columns([c for c in mapping.values() if c in raw.column_names]).rename_columns(mapping)


def _own_name(column: str, columns: Mapping[str, str] | None) -> str:
    return (columns or {}).get(column, {"prompt": "question/prompt", "completion": "answer/completion"}.get(column, column))


def _is_empty(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    return len(value) == 0 or not str(value[-1].get("content") or "").strip()


def content_id(row: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name an example by its prompt and answer (or text), wherever it stands."""
    content = [row.get(c) for c in ("prompt", "completion", "messages", "text")]
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _with_ids(table: Dataset, *, keep: bool) -> Dataset:
    """Add `example_id`; a second copy of the same row gets the suffix -2, and so on."""
    ids = [str(i) for i in table["example_id"]] if keep else [content_id(row) for row in table]
    if keep and len(set(ids)) == len(ids):
        return table
    seen: dict[str, int] = {}
    unique = []
    for example_id in ids:
        seen[example_id] = seen.get(example_id, 0) + 1
        unique.append(example_id if seen[example_id] == 1 else f"{example_id}-{seen[example_id]}")
    if "example_id" in table.column_names:
        table = table.remove_columns("example_id")
    return table.add_column("example_id", unique)
