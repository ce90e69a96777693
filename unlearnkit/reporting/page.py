"""Everything that the report of one run says, gathered once; `html` and `markdown` only set it on a page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnkit import __version__
from unlearnkit.reporting import browser, tables
from unlearnkit.reporting.alphas import sweep_of
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.cards import cards, evidence_cards
from unlearnkit.reporting.evidence import selection_of
from unlearnkit.reporting.gaps import cautions_about
from unlearnkit.reporting.glossary import glossary
from unlearnkit.reporting.limits import NO_ATTACK, limits
from unlearnkit.reporting.membership import roc_curves
from unlearnkit.reporting.serving import terms
from unlearnkit.reporting.story import story
from unlearnkit.reporting.subject import FORGETTING, heads, subject_of
from unlearnkit.reporting.trajectory import trajectory_of
from unlearnkit.reporting.verdict import verdict_of
from unlearnkit.reporting.views import ROLES, EvalView, Metric, RunView


@dataclass(frozen=True)
class Role:
    """A column of the tables."""

    role: str
    title: str
    when: str
    label: str


def page(run: RunView) -> dict[str, Any]:
    """The content of one run's report, without plots."""
    attacks, about_forgetting = attacks_of(run), subject_of(run.evaluations) == FORGETTING
    sweep = sweep_of(run)
    parts = tables.part_rows(run)
    examples = browser.example_rows(run)
    forget = [row for row in examples if row["set"] == "forget set"]
    return {
        "version": __version__,
        "title": run.name,
        "subtitle": subtitle(run),
        "verdict": verdict_of(run, attacks),
        "cards": cards(run) + evidence_cards(run, attacks),
        "story": story(run),
        "limits": limits([run]),
        "roles": _roles(run.evaluations),
        "metric_groups": _grouped(run.evaluations),
        "attacks": attacks,
        "attack_missing": "" if attacks or run.unlearned is None or not about_forgetting else NO_ATTACK,
        "about_forgetting": about_forgetting,
        "roc": roc_curves(run.evaluations),
        "trajectory": trajectory_of(run),
        "sweep": sweep,
        "others": [_other(suite, models) for suite, models in run.others.items()],
        "selection": selection_of(run),
        "parts": parts,
        "rows": examples,
        "sets": list(dict.fromkeys(row["set"] for row in examples)),
        "flags": browser.flag_counts(examples, about_forgetting=about_forgetting),
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
        "glossary": glossary(shown_metrics(run), [attack.name for attack in attacks], terms(run)),
    }


def _roles(evaluations: Mapping[str, EvalView]) -> list[Role]:
    return [
        Role(role, *heads(evaluations, role), evaluations[role].label)
        for role in ROLES
        if role in evaluations
    ]


def _grouped(evaluations: Mapping[str, EvalView]) -> list[tuple[str, list[tables.Row]]]:
    rows = tables.metric_rows(evaluations)
    return [(group, list(found)) for group, found in itertools.groupby(rows, key=lambda row: row.group)]


def _other(suite: str, models: Mapping[str, EvalView]) -> dict[str, Any]:
    """A further suite of the run: its tables, with the settings that it was run with."""
    first = next(iter(models.values()))
    version = first.summary.get("suite_version")
    return {
        "suite": suite,
        "title": f"Suite {suite}" + (f" version {version}" if version else ""),
        "roles": _roles(models),
        "metric_groups": _grouped(models),
        "notes": list(cautions_about(dict(models))),
    }


def shown_metrics(run: RunView) -> list[Metric]:
    """Every metric that the report has a row for."""
    views = [view for models in run.others.values() for view in models.values()]
    return [metric for view in (*run.evaluations.values(), *views) for metric in view.metrics.values()]


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
