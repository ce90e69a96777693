"""Reading a run directory, or a single evaluation, into memory: no model, no GPU, nothing written.

A part that was never made (no retain model, no attack, no evaluation before unlearning) is a gap that the
report names. A part that is there but cannot be read is an error: a report is never built from half a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecordsError
from unlearnkit.reporting.gaps import attack_gaps, cautions_about, gaps_in, other_notes
from unlearnkit.reporting.kept import nothing_to_keep
from unlearnkit.reporting.read import (
    RECORDS,
    SUMMARY,
    json_object,
    load_evaluation,
    recipe,
    steps,
    trajectory,
)
from unlearnkit.reporting.read_alphas import load_alphas
from unlearnkit.reporting.read_attacks import load_attacks
from unlearnkit.reporting.subject import FORGETTING, subject_of
from unlearnkit.reporting.views import ROLES, EvalView, RunView


def load_run(
    folder: str | Path, suite: str | None = None, beside: Mapping[str, str | Path] | None = None
) -> RunView:
    """Read a run directory, or one evaluation folder.

    Args:
        folder: runs/NAME, or a folder with summary.json and records.parquet.
        suite: which suite of the run its verdict is about; by default the recipe's, if it has forget quality
            or no other has, else the first with forget quality.
        beside: "target" and "retain" -> evaluation folders of these models, for an evaluation folder; a run
            directory has its own.

    Raises:
        RecordsError: the folder, or a part of it, is missing or cannot be read, or models do not go together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordsError(f"there is no folder {folder}; give a run directory or an evaluation folder")
    if (folder / RECORDS).exists():
        main = load_evaluation(folder)
        evaluations = _with_others(main, beside or {})
        suite_name = str(main.summary.get("suite", folder.name.partition("@")[0]))
        attacks, left_out = load_attacks(evaluations)
        alphas, unfinished = load_alphas(evaluations.get("unlearned"))
        return RunView(
            folder,
            main.label,
            suite_name,
            main,
            evaluations,
            gaps=(*gaps_in(evaluations), *attack_gaps(evaluations, attacks)),
            cautions=(*cautions_about(evaluations), *left_out, *unfinished),
            attacks=attacks,
            alphas=alphas,
        )
    if beside:
        raise RecordsError(
            f"{folder} is a run directory, which has its own {' and '.join(beside)} model; leave "
            f"--{next(iter(beside))} out, or give an evaluation folder"
        )
    return _load_directory(folder, suite)


def _with_others(main: EvalView, beside: Mapping[str, str | Path]) -> dict[str, EvalView]:
    """An evaluation and those of other models on the same suite, in the order of the tables."""
    found = {main.role: main}
    for role, path in beside.items():
        if role == main.role:
            raise RecordsError(
                f"{main.folder} is itself the evaluation of the {role} model; leave --{role} out"
            )
        other = load_evaluation(Path(path), role=role)
        if other.summary.get("suite") != main.summary.get("suite"):
            raise RecordsError(
                f"{path} was evaluated with the suite {other.summary.get('suite')}, {main.folder} with "
                f"{main.summary.get('suite')}; evaluate both models with the same suite"
            )
        found[role] = other
    return {role: found[role] for role in ROLES if role in found}


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
    loaded = {name: _load_suite(folder, name) for name in suites}
    manifest = json_object(folder / "manifest.json")
    settings = recipe(folder / "recipe.yaml")
    chosen = suite or _chosen({name: main for name, (main, _) in loaded.items()}, settings)
    main, evaluations = loaded.pop(chosen)
    log, unreadable = steps(folder / "log.jsonl")
    during, unreadable_too = trajectory(folder / "trajectory.jsonl")
    attacks, left_out = load_attacks(evaluations)
    alphas, unfinished = load_alphas(evaluations.get("unlearned"))
    others = {name: models for name, (_, models) in loaded.items()}
    gaps, cautions = list(gaps_in(evaluations)), [*cautions_about(evaluations), *left_out, *unfinished]
    gaps += attack_gaps(evaluations, attacks)
    for name, models in others.items():
        missing, notes = other_notes(name, models)
        gaps += missing
        cautions += notes
    if not log:
        gaps.append("training curves: log.jsonl has no steps")
    for count, file, what in (
        (unreadable, "log.jsonl", "training curves"),
        (unreadable_too, "trajectory.jsonl", "numbers over training"),
    ):
        if count:
            cautions.append(f"{count} line(s) of {file} cannot be read and are left out of the {what}")
    name = _run_name(folder, manifest)
    if main.role == "unlearned" and name != manifest.get("name") and _is_named_after(main, manifest):
        main = replace(main, label=name)
        evaluations = {**evaluations, "unlearned": main}
    run = RunView(
        folder,
        name,
        chosen,
        main,
        evaluations,
        manifest,
        settings,
        log,
        tuple(gaps),
        tuple(cautions),
        attacks,
        others,
        during,
        alphas,
    )
    if subject_of(evaluations) == FORGETTING and nothing_to_keep(run):
        # One reason in place of each retain metric's own.
        rest = [
            gap for gap in run.gaps if not gap.endswith("for 'retain'") and "'retain' is absent" not in gap
        ]
        run = replace(run, gaps=(*rest, "what the model kept: no retain set was given"))
    return run


def _load_suite(folder: Path, suite: str) -> tuple[EvalView, dict[str, EvalView]]:
    """The evaluation of the run's own model, and those of all models in the order of the tables."""
    main = load_evaluation(folder / "eval" / suite)
    found = {main.role: main}
    for role in ("target", "retain"):
        path = folder / "eval" / f"{suite}@{role}"
        if role not in found and path.is_dir():
            found[role] = load_evaluation(path, role=role)
    return main, {role: found[role] for role in ROLES if role in found}


def _chosen(mains: Mapping[str, EvalView], settings: Mapping[str, Any]) -> str:
    own = settings.get("evaluation")
    named = Path(str(own.get("suite") or "")).stem if isinstance(own, dict) else ""
    # sorted() keeps the order by name among equals.
    return sorted(mains, key=lambda name: ("forget_quality" not in mains[name].metrics, name != named))[0]


def _run_name(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The recipe's name where the folder has it too ("a/b" is written a-b), else the folder's.

    Runs of one recipe are told apart by their folders.
    """
    own, given = folder.resolve().name, str(manifest.get("name") or "")
    return given if given.replace("/", "-") == own else own


def _is_named_after(view: EvalView, manifest: Mapping[str, Any]) -> bool:
    """Whether the label of an evaluation is but the last part of the recipe's name."""
    return view.label == str(manifest.get("name") or "").rpartition("/")[2]
