"""Everything that the report of one run says, gathered once; `html` and `markdown` only set it on a page."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from unlearnkit import __version__
from unlearnkit.reporting import answers, tables
from unlearnkit.reporting.glossary import glossary
from unlearnkit.reporting.story import limits, story
from unlearnkit.reporting.verdict import Verdict, verdict_of
from unlearnkit.reporting.views import ROLES, RunView

SUMMARY_FORMAT = 1
TITLES = {"target": "Target (before)", "unlearned": "Unlearned (after)", "retain": "Retain"}
WHEN = {"target": "Before unlearning", "unlearned": "After unlearning", "retain": "Retain model"}


@dataclass(frozen=True)
class Role:
    """A column of the tables."""

    role: str
    title: str
    when: str
    label: str


def page(run: RunView) -> dict[str, Any]:
    """The content of one run's report, without plots."""
    rows = tables.metric_rows(run)
    parts = tables.part_rows(run)
    examples = answers.answer_rows(run)
    forget = [row for row in examples if row["set"] == "forget set"]
    return {
        "version": __version__,
        "title": run.name,
        "subtitle": subtitle(run),
        "verdict": verdict_of(run),
        "cards": tables.cards(run),
        "story": story(run),
        "limits": limits([run]),
        "roles": [
            Role(role, TITLES[role], WHEN[role], run.evaluations[role].label)
            for role in ROLES
            if role in run.evaluations
        ],
        "metric_groups": [
            (group, list(found)) for group, found in itertools.groupby(rows, key=lambda row: row.group)
        ],
        "parts": parts,
        "rows": examples,
        "sets": list(dict.fromkeys(row["set"] for row in examples)),
        "compared": "target" in run.evaluations and "unlearned" in run.evaluations,
        "forget_count": len(forget),
        "closest": sorted(
            (row for row in forget if _rouge(row, run) is not None),
            key=lambda row: (-(_rouge(row, run) or 0.0), row["id"]),
        )[:10],
        "recipe": recipe_text(run),
        "costs": tables.cost_rows(run),
        "versions": tables.version_rows(run),
        "fingerprints": tables.fingerprint_rows(run),
        "glossary": glossary(run.main.metrics),
    }


def _rouge(row: dict[str, Any], run: RunView) -> float | None:
    answer = row["answers"].get(run.main.role)
    return answer["rouge"] if answer else None


def subtitle(run: RunView) -> str:
    """One line under the title."""
    parts = [str(run.manifest["method"])] if run.manifest.get("method") else []
    if run.manifest.get("recipe"):
        parts.append(f"recipe {run.manifest['recipe']}")
    split = run.main.summary.get("split")
    parts.append(f"suite {run.suite}{f', {split}' if split else ''}")
    if run.manifest.get("started"):
        parts.append(f"started {run.manifest['started']}")
    return " · ".join(parts)


def recipe_text(run: RunView) -> str:
    """The resolved recipe as YAML, in its own order; empty for a single evaluation."""
    import yaml

    return (
        yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100).rstrip()
        if run.recipe
        else ""
    )


def summary(run: RunView, verdict: Verdict) -> dict[str, Any]:
    """The report for machines: verdict and every metric of the models side by side; null = not measured."""
    names = dict.fromkeys(
        name for role in ROLES if role in run.evaluations for name in run.evaluations[role].metrics
    )
    return {
        "format": SUMMARY_FORMAT,
        "name": run.name,
        "suite": run.suite,
        "split": run.main.summary.get("split"),
        "verdict": {"code": verdict.code, "tone": verdict.tone, "text": verdict.text},
        "models": {
            role: {"label": view.label, "fingerprint": view.summary.get("fingerprint")}
            for role, view in run.evaluations.items()
        },
        "metrics": {
            name: {role: (view.summary["metrics"].get(name)) for role, view in run.evaluations.items()}
            for name in names
        },
        "seconds": run.manifest.get("seconds"),
        "not_measured": list(run.gaps),
        "cautions": list(run.cautions),
    }
