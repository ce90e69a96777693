"""What a model has already said, kept by content.

One folder per (model weights, probe, settings); in it, parquet files that hold results by the hash of the
tokens that went in. Whatever asks again (another suite, the same command after a kill) computes only what is
missing, and nothing stale can be found, because everything that decides a number is in its name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlearnkit.files import atomic_path, fingerprint
from unlearnkit.training.reference import cache_folder

#: Raised when the way of computing changes, so that old results are never mixed with new ones.
_STORE_FORMAT = 2
_FLUSH_EVERY = 512  # results
_FLUSH_SECONDS = 10.0


class ResultStore:
    """Results of one probe of one model, by the name of what was asked.

    Args:
        key: everything else that decides a result (model fingerprint, probe, settings).
        enabled: False keeps results in memory only.
    """

    def __init__(self, *key: Any, enabled: bool = True) -> None:
        self.folder: Path | None = (
            cache_folder() / "answers" / fingerprint(_STORE_FORMAT, *key) if enabled else None
        )
        self._known: dict[str, dict[str, Any]] = {}
        self._new: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        for path in sorted(self.folder.glob("*.parquet")) if self.folder else []:
            self._known.update(_read(path))

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._known[name]

    def add(self, results: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Take results in; every few seconds they go to the disk, so that a kill loses little."""
        for name, result in results:
            self._known[name] = result
            self._new.append({"name": name, **result})
        if len(self._new) >= _FLUSH_EVERY or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def remember(self, results: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Take in what another process has found and written."""
        self._known.update(results)

    def flush(self) -> None:
        """Write what is new as one more file."""
        self._flushed = time.monotonic()
        if self.folder is None or not self._new:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(self._new)
        with atomic_path(self.folder / f"{uuid.uuid4().hex}.parquet") as temporary:
            pq.write_table(_narrow(table), temporary, compression="zstd")
        self._new = []


class Stores:
    """Stores by their keys, each opened once: examinations that share them know what the others found.

    Args:
        enabled: False keeps results in memory only.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._opened: dict[str, ResultStore] = {}

    def __call__(self, *key: Any) -> ResultStore:
        return self._opened.setdefault(fingerprint(*key), ResultStore(*key, enabled=self.enabled))


class JointStore:
    """Stores that are filled together: a result is a list with one for each of them.

    What a store knows already stays as it is.
    """

    def __init__(self, stores: Sequence[ResultStore]) -> None:
        self.stores = stores

    def __contains__(self, name: str) -> bool:
        return all(name in store for store in self.stores)

    def add(self, results: Iterable[tuple[str, list[dict[str, Any]]]]) -> None:
        """As `ResultStore.add`."""
        for store, new in self._shares(results):
            store.add(new)

    def remember(self, results: Iterable[tuple[str, list[dict[str, Any]]]]) -> None:
        """As `ResultStore.remember`."""
        for store, new in self._shares(results):
            store.remember(new)

    def flush(self) -> None:
        """As `ResultStore.flush`."""
        for store in self.stores:
            store.flush()

    def _shares(
        self, results: Iterable[tuple[str, list[dict[str, Any]]]]
    ) -> list[tuple[ResultStore, list[tuple[str, dict[str, Any]]]]]:
        together = list(results)
        return [
            (store, [(name, found[place]) for name, found in together if name not in store])
            for place, store in enumerate(self.stores)
        ]


def _narrow(table: Any) -> Any:
    """float64 lists -> float32: the values are float32 already, and a reread must give the same ones."""
    import pyarrow as pa

    types = dict.fromkeys(("logps", "means", "variances"), pa.list_(pa.float32()))
    types["hits"] = pa.list_(pa.bool_())
    types["tokens"] = pa.list_(pa.int32())
    types["text"] = pa.string()
    fields = [pa.field(f.name, types.get(f.name, f.type)) for f in table.schema]
    return table.cast(pa.schema(fields))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A file's results; one that cannot be read counts as missing, for it can be computed anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read().to_pylist()
        return {row.pop("name"): row for row in rows}
    except (pa.ArrowException, OSError, KeyError):
        return {}
