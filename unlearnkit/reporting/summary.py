"""summary.json: a report for machines. Its fields are described in docs/summary.md, their types in
docs/summary.schema.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnkit.reporting.attacks import Attack, Stage, strongest
from unlearnkit.reporting.recoveries import Recovery, returns
from unlearnkit.reporting.serving import serving
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.verdict import Verdict
from unlearnkit.reporting.views import ROLES, EvalView, RunView

SUMMARY_FORMAT = 2
"""2: metrics also for attacked models and further suites, how much came back, selection, trajectory."""


def summary(run: RunView, verdict: Verdict, attacks: Sequence[Attack]) -> dict[str, Any]:
    """The report of one run for machines; null = not measured."""
    served = serving(run)
    own = None if served is None else served.alpha
    return {
        "format": SUMMARY_FORMAT,
        "name": run.name,
        "suite": run.suite,
        "suite_version": run.main.summary.get("suite_version"),
        "split": run.main.summary.get("split"),
        "verdict": {
            "code": verdict.code,
            "tone": verdict.tone,
            "headline": verdict.headline,
            "text": verdict.text,
        },
        "models": {
            role: {
                "label": view.label,
                "fingerprint": view.summary.get("fingerprint"),
                "serving": view.summary.get("serving"),
            }
            for role, view in run.evaluations.items()
        },
        "metrics": _metrics(run.evaluations),
        "alphas": [
            {"alpha": one.alpha, "served": one.alpha == own, "metrics": _entries(one.summary)}
            for one in run.alphas
        ],
        "attacks": _attacks(run, attacks),
        "other_suites": {
            suite: {
                "suite_version": next(iter(models.values())).summary.get("suite_version"),
                "metrics": _metrics(models),
            }
            for suite, models in run.others.items()
        },
        "selection": run.selection or None,
        "trajectory": run.trajectory,
        "seconds": run.manifest.get("seconds"),
        "not_measured": list(run.gaps),
        "cautions": list(run.cautions),
    }


def _metrics(evaluations: Mapping[str, EvalView]) -> dict[str, dict[str, Any]]:
    """Metric -> role -> what the evaluation's own summary says of it; null where it was not evaluated."""
    roles = [role for role in ROLES if role in evaluations]
    names = dict.fromkeys(name for role in roles for name in evaluations[role].metrics)
    return {
        name: {role: _whole(evaluations[role].summary["metrics"].get(name)) for role in roles}
        for name in names
    }


def _entries(summary: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Metric -> what a summary says of it."""
    return {name: _whole(entry) for name, entry in summary["metrics"].items()}


def _whole(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """A metric without its ROC curve, which would make up most of the file; the records have it."""
    if entry is None or "roc" not in (entry.get("extra") or {}):
        return entry
    return {**entry, "extra": {key: value for key, value in entry["extra"].items() if key != "roc"}}


def _attacks(run: RunView, attacks: Sequence[Attack]) -> dict[str, Any]:
    found = strongest(list(attacks))
    return {
        "strongest": None
        if found is None
        else {
            "attack": found[0].name,
            "variant": found[1].variant,
            "measure": found[2].measure,
            "share": found[2].back.value,
            "control": found[2].control.value,
            "excess": found[2].excess.value,
            "returns": returns(found[2]),
        },
        "by_name": {
            attack.name: [_stage(run, attack, stage) for stage in attack.stages] for attack in attacks
        },
    }


def _stage(run: RunView, attack: Attack, stage: Stage) -> dict[str, Any]:
    view = next(one for one in run.attacks if (one.name, one.variant) == (attack.name, stage.variant))
    return {
        "variant": stage.variant,
        "level": stage.level,
        "options": view.options,
        "facts": view.facts,
        "examples_left_out": stage.left_out,
        "recovered": {recovery.measure: _recovery(recovery) for recovery in stage.recoveries},
        "metrics": _metrics(view.evaluations),
    }


def _recovery(recovery: Recovery) -> dict[str, Any]:
    return {
        name: _number(getattr(recovery, name))
        for name in ("back", "control", "excess", "unlearned", "attacked", "control_attacked", "target")
    }


def _number(cell: Cell) -> dict[str, Any]:
    return {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "n": cell.n,
        "note": cell.note,
    }
