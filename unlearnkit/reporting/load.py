"""Reading a run directory, or a single evaluation, into memory: no model, no GPU, nothing written.

A part that was never made (no retain model, no evaluation before unlearning) is a gap that the report
names. A part that is there but cannot be read is an error: a report is never built from half a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import RecordsError, UserError
from unlearnkit.files import read_json
from unlearnkit.reporting.gaps import cautions_about, gaps_in
from unlearnkit.reporting.kept import nothing_to_keep
from unlearnkit.reporting.views import ROLES, EvalView, Metric, RunView

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED_FORMAT = 1
SUMMARY = "summary.json"
RECORDS = "records.parquet"


def load_run(folder: str | Path, suite: str | None = None) -> RunView:
    """Read a run directory, or one evaluation folder.

    Args:
        folder: runs/NAME, or a folder with summary.json and records.parquet.
        suite: which suite of the run; by default the first with forget quality, else the first by name.

    Raises:
        RecordsError: the folder, or a part of it, is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordsError(f"there is no folder {folder}; give a run directory or an evaluation folder")
    if (folder / RECORDS).exists():
        main = load_evaluation(folder)
        evaluations = {main.role: main}
        suite_name = str(main.summary.get("suite", folder.name.partition("@")[0]))
        return RunView(
            folder,
            main.label,
            suite_name,
            main,
            evaluations,
            gaps=gaps_in(evaluations),
            cautions=cautions_about(evaluations),
        )
    return _load_directory(folder, suite)


def _load_directory(folder: Path, suite: str | None) -> RunView:
    suites = sorted(
        path.name for path in (folder / "eval").glob("*") if path.is_dir() and "@" not in path.name
    )
    if not suites:
        raise RecordsError(
            f"{folder} has no evaluation (eval/SUITE/{SUMMARY} is missing); run `unlearnkit eval` on it first"
        )
    if suite is not None and suite not in suites:
        raise RecordsError(f"{folder} has no suite '{suite}'; it has: {', '.join(suites)}")
    mains = {name: load_evaluation(folder / "eval" / name) for name in ([suite] if suite else suites)}
    chosen = next(
        (name for name, view in mains.items() if "forget_quality" in view.metrics), next(iter(mains))
    )
    main = mains[chosen]
    evaluations = {main.role: main}
    for role in ("target", "retain"):
        path = folder / "eval" / f"{chosen}@{role}"
        if role not in evaluations and path.is_dir():
            evaluations[role] = load_evaluation(path, role=role)
    manifest = _object(folder / "manifest.json")
    log, unreadable = _log(folder / "log.jsonl")
    gaps = list(gaps_in(evaluations))
    if not log:
        gaps.append("training curves: log.jsonl has no steps")
    recipe = _recipe(folder / "recipe.yaml")
    cautions = list(cautions_about(evaluations))
    if unreadable:
        cautions.append(
            f"{unreadable} line(s) of log.jsonl cannot be read and are left out of the training curves"
        )
    others = [name for name in suites if name != chosen]
    if others:
        cautions.append(f"this report shows the suite {chosen}; the run also holds {', '.join(others)}")
    ordered = {role: evaluations[role] for role in ROLES if role in evaluations}
    name = _run_name(folder, manifest)
    if main.role == "unlearned" and name != manifest.get("name") and _is_named_after(main, manifest):
        main = replace(main, label=name)
        ordered["unlearned"] = main
    run = RunView(
        folder,
        name,
        chosen,
        main,
        ordered,
        manifest,
        recipe,
        log,
        tuple(gaps),
        tuple(cautions),
    )
    if nothing_to_keep(run):
        # One reason in place of each retain metric's own.
        rest = [gap for gap in run.gaps if not gap.endswith("for 'retain'")]
        run = replace(run, gaps=(*rest, "what the model kept: no retain set was given"))
    return run


def _run_name(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The recipe's name where the folder has it too ("a/b" is written a-b), else the folder's.

    Runs of one recipe are told apart by their folders.
    """
    own, given = folder.resolve().name, str(manifest.get("name") or "")
    return given if given.replace("/", "-") == own else own


def _is_named_after(view: EvalView, manifest: Mapping[str, Any]) -> bool:
    """Whether the label of an evaluation is but the last part of the recipe's name."""
    return view.label == str(manifest.get("name") or "").rpartition("/")[2]


def load_evaluation(folder: Path, role: str | None = None) -> EvalView:
    """Read one evaluation folder.

    Args:
        folder: holds summary.json and records.parquet.
        role: what the model is in this report; by default what the summary says.

    Raises:
        RecordsError: a file is missing, half-written or of an unknown format.
    """
    summary = _object(folder / SUMMARY)
    if summary.get("format") != SUPPORTED_FORMAT:
        raise RecordsError(
            f"{folder / SUMMARY} has format {summary.get('format')!r}, this version reads "
            f"{SUPPORTED_FORMAT}; "
            "evaluate again with this version"
        )
    role = role or str(summary.get("role", "unlearned"))
    if role not in ROLES:
        raise RecordsError(f"{folder / SUMMARY} has the role {role!r}; it must be one of {', '.join(ROLES)}")
    raw = summary.get("metrics")
    if not isinstance(raw, dict):
        raise RecordsError(f"{folder / SUMMARY} has no metrics; evaluate the model again")
    metrics = {name: _metric(name, entry, folder) for name, entry in raw.items()}
    return EvalView(folder, role, str(summary.get("label") or role), summary, metrics, _records(folder))


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
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordsError(
            f"{folder / SUMMARY}: the metric {name} cannot be read ({error}); evaluate again"
        ) from None


def _records(folder: Path) -> pd.DataFrame:
    from unlearnkit.evaluation.records import EvalRun

    return EvalRun.load(folder).records


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except UserError as error:
        raise RecordsError(str(error)) from None
    if not isinstance(value, dict):
        raise RecordsError(
            f"{path} must hold a JSON object, found {type(value).__name__}; run the command again"
        )
    return value


def _recipe(path: Path) -> dict[str, Any]:
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


def _log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The steps in order, the last word on each (a resumed run repeats some), and the unreadable lines."""
    if not path.is_file():
        return [], 0
    steps: dict[float, dict[str, Any]] = {}
    unreadable = 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = float(row["step"])
        except (ValueError, KeyError, TypeError):
            unreadable += 1  # a killed process may leave half a line
            continue
        steps[step] = steps.get(step, {}) | row
    return [steps[step] for step in sorted(steps)], unreadable
