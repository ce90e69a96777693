"""The files of a run, each read whole or refused in one sentence that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import RecordsError, UserError
from unlearnkit.files import read_json
from unlearnkit.reporting.views import ROLES, EvalView, Metric

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED_FORMAT = 1
SUMMARY = "summary.json"
RECORDS = "records.parquet"
COMPARISON = "comparison.json"


def load_evaluation(folder: Path, role: str | None = None) -> EvalView:
    """Read one evaluation folder.

    Args:
        folder: holds summary.json and records.parquet.
        role: what the model is in this report; by default what the summary says.

    Raises:
        RecordsError: a file is missing, half-written or of an unknown format.
    """
    summary, metrics = load_metrics(folder)
    role = role or str(summary.get("role", "unlearned"))
    if role not in ROLES:
        raise RecordsError(f"{folder / SUMMARY} has the role {role!r}; it must be one of {', '.join(ROLES)}")
    return EvalView(folder, role, str(summary.get("label") or role), summary, metrics, _records(folder))


def load_metrics(folder: Path) -> tuple[dict[str, Any], dict[str, Metric]]:
    """The summary of an evaluation, and its metrics; its records are not read.

    Raises:
        RecordsError: the summary is missing, half-written or of an unknown format.
    """
    summary = json_object(folder / SUMMARY)
    if summary.get("format") != SUPPORTED_FORMAT:
        raise RecordsError(
            f"{folder / SUMMARY} has format {summary.get('format')!r}, this version reads "
            f"{SUPPORTED_FORMAT}; "
            "evaluate again with this version"
        )
    raw = summary.get("metrics")
    if not isinstance(raw, dict):
        raise RecordsError(f"{folder / SUMMARY} has no metrics; evaluate the model again")
    return summary, {name: _metric(name, entry, folder) for name, entry in raw.items()}


def _metric(name: str, entry: Any, folder: Path) -> Metric:
    def number(key: str) -> float:
        value = entry.get(key)
        return math.nan if value is None else float(value)

    try:
        return Metric(
            name,
            str(entry.get("title") or name.replace("_", " ").capitalize()),
            number("value"),
            number("low"),
            number("high"),
            int(entry.get("n") or 0),
            tuple(str(i) for i in entry.get("unscored") or ()),
            str(entry.get("variant") or ""),
            str(entry.get("note") or ""),
            str(entry.get("group") or "other"),
            dict(entry.get("extra") or {}),
            bool(entry.get("weaker")),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordsError(
            f"{folder / SUMMARY}: the metric {name} cannot be read ({error}); evaluate again"
        ) from None


def _records(folder: Path) -> pd.DataFrame:
    from unlearnkit.evaluation.records import EvalRun

    return EvalRun.load(folder).records


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RecordsError: the file is missing, half-written or holds something else.
    """
    try:
        value = read_json(path)
    except UserError as error:
        raise RecordsError(str(error)) from None
    if not isinstance(value, dict):
        raise RecordsError(
            f"{path} must hold a JSON object, found {type(value).__name__}; run the command again"
        )
    return value


def recipe(path: Path) -> dict[str, Any]:
    """The resolved recipe of a run.

    Raises:
        RecordsError: the file is missing or is no YAML mapping.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordsError(f"{path} is missing; a run directory holds its resolved recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordsError(
            f"{path} is not readable as YAML ({str(error).splitlines()[0]}); restore it"
        ) from None
    if not isinstance(value, dict):
        raise RecordsError(f"{path} must hold a mapping, found {type(value).__name__}; restore it")
    return value


def steps(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The steps of a log in order, the last word on each (a resumed run repeats some), and unreadable lines.

    An absent file has no steps.
    """
    return _lines(path, lambda row: row)


def trajectory(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The evaluations during training in order, each {"step", "epoch", "metrics"}, and unreadable lines."""
    return _lines(path, _checked)


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        str(name): {key: _number(entry.get(key)) for key in ("value", "low", "high")}
        | {"n": int(entry.get("n") or 0)}
        for name, entry in row["metrics"].items()
    }
    return {"step": row["step"], "epoch": _number(row.get("epoch")), "metrics": metrics}


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(float(value)) else float(value)


def _lines(path: Path, check: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    if not path.is_file():
        return [], 0
    found: dict[float, dict[str, Any]] = {}
    unreadable = 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            row = check(json.loads(line))
            step = float(row["step"])
        except (AttributeError, ValueError, KeyError, TypeError):
            unreadable += 1  # a killed process may leave half a line
            continue
        found[step] = found.get(step, {}) | row
    return [found[step] for step in sorted(found)], unreadable
