"""How CSV and TSV files are read: every cell is text, and the columns have names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearnkit.errors import DataError

#: Characters of a cell that a message shows.
_SHOWN = 40


def csv_options(path: Path, header: Sequence[str] | None, where: str) -> dict[str, Any]:
    """What `datasets` is told about a file: an answer "1984" is no number, and "None" is not missing.

    Args:
        header: the names of the columns of a file without a header line, whose first line is then a row.
        where: the setting that names the file, for messages.

    Raises:
        DataError: a `header` that cannot be that of the file.
    """
    import datasets
    import pandas as pd

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if header is None:
        names = [str(c) for c in pd.read_csv(path, sep=separator, nrows=0, index_col=False).columns]
        given: dict[str, Any] = {}
    else:
        text: Any = str
        top = pd.read_csv(path, sep=separator, nrows=1, header=None, dtype=text, keep_default_na=False)
        _refuse_header(header, [str(cell) for cell in top.iloc[0]], path, where)
        names, given = list(header), {"names": list(header), "header": None}
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {"sep": separator, "features": features, "keep_default_na": False, **given}


def refuse_needless_header(header: Sequence[str] | None, path: Path | None, name: str) -> None:
    """Raise where names are given to the columns of something else than a CSV file.

    Args:
        path: None for what is no local file or folder.

    Raises:
        DataError: says so.
    """
    is_csv = path is not None and path.is_file() and path.suffix.lower() in (".csv", ".tsv")
    if header is not None and not is_csv:
        raise DataError(
            f"{name}.header names the columns of a CSV or TSV file without a header line, and "
            f"{path or 'this source'} is none; leave header out, and say with `columns` which column is which"
        )


def _refuse_header(header: Sequence[str], first: Sequence[str], path: Path, name: str) -> None:
    shown = ", ".join(repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…") for cell in first)
    if len(header) != len(first):
        raise DataError(
            f"{name}.header names {len(header)} column(s), and the first line of {path} has {len(first)} "
            f"({shown}); name each of them once, in their order"
        )
    if wrong := [one for one in header if not one.strip() or list(header).count(one) > 1]:
        raise DataError(
            f"{name}.header has {wrong[0]!r} as the name of a column; give each column a name of its own"
        )
    if [cell.strip() for cell in first] == [one.strip() for one in header]:
        raise DataError(
            f"{name}.header repeats the first line of {path} ({shown}), which would become a row; leave "
            "header out, because the file names its columns itself"
        )
