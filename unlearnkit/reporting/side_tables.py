"""The tables of a comparison that put runs side by side: key metrics, what came back, membership."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearnkit.reporting.attack_words import order_of, under
from unlearnkit.reporting.attacks import Attack
from unlearnkit.reporting.membership import aucs
from unlearnkit.reporting.numbers import MISSING
from unlearnkit.reporting.recoveries import MEASURES
from unlearnkit.reporting.served_table import LEAD, TITLE, served_rows
from unlearnkit.reporting.tables import WEAKER, Cell, cell
from unlearnkit.reporting.views import RunView

KEY_METRICS = (
    "forget_quality",
    "model_utility",
    "forget_rouge",
    "forget_probability",
    "forget_truth_ratio",
    "retain_rouge",
    "retain_probability",
)


def side_tables(
    runs: Sequence[RunView],
    names: Sequence[str],
    attacks: Sequence[Sequence[Attack]],
    columns: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Tables with a column for each run; those without any number are left out.

    Args:
        runs: the runs.
        names: what each is called.
        attacks: what came back in each.
        columns: metrics of the runs' own suites, shown with those of KEY_METRICS.
    """
    tables = (
        (TITLE, LEAD, served_rows(runs)),
        (
            "Key metrics side by side",
            "Each with its 95 % interval over examples. Where the intervals of two runs overlap much, the "
            "difference may be chance.",
            _key_metrics(runs, columns),
        ),
        (
            "How much comes back under attack",
            "Shares of what was forgotten, with the same share for a model that never saw the examples "
            "(control). Beyond the control: how much more the attacked model then shows than that model; 100 "
            "points are all that the target model knew beyond it.",
            _attacks(attacks),
        ),
        (
            "Membership attacks (AUC)",
            "0.5: an attacker can only guess whether an example was trained on; 1: always right.",
            _membership(runs),
        ),
        (
            "General capability",
            "Scores of the further suites, after unlearning.",
            _capability(runs),
        ),
    )
    return [
        {"title": title, "lead": lead, "heads": list(names), "rows": rows}
        for title, lead, rows in tables
        if rows
    ]


def _row(title: str, cells: list[Cell]) -> list[dict[str, Any]]:
    """The row, in a list; empty where no run has a number."""
    return [{"title": title, "cells": cells}] if any(one.value is not None for one in cells) else []


def _key_metrics(runs: Sequence[RunView], columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys((*KEY_METRICS, *columns)):
        found = [run.main.metrics.get(name) for run in runs]
        title = next((metric.title for metric in found if metric), name)
        rows += _row(title, [cell(metric) for metric in found])
    return rows


def _attacks(attacks: Sequence[Sequence[Attack]]) -> list[dict[str, Any]]:
    stages = {
        (attack.name, stage.variant): stage.level
        for found in attacks
        for attack in found
        for stage in attack.stages
    }
    rows = []
    for (name, variant), level in sorted(
        stages.items(), key=lambda item: (order_of(item[0][0]), item[1] is None, item[1] or 0.0)
    ):
        of_runs = [
            next(
                (
                    stage
                    for attack in found
                    for stage in attack.stages
                    if (attack.name, stage.variant) == (name, variant)
                ),
                None,
            )
            for found in attacks
        ]
        for number_of, (_, measure) in enumerate(MEASURES):
            shown = [None if stage is None else stage.recoveries[number_of] for stage in of_runs]
            where = under(name, variant, level)
            opening = f"{where[:1].upper()}{where[1:]}, {measure}"
            for kind, ending in (("back", ""), ("control", " (control)"), ("excess", ": beyond the control")):
                cells = [_missing() if one is None else getattr(one, kind) for one in shown]
                rows += _row(f"{opening}{ending}", cells)
    return rows


def _missing() -> Cell:
    return Cell(MISSING, note="this attack was not run")


def _membership(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    found = [aucs(run.main) for run in runs]
    rows = []
    for name in dict.fromkeys(name for one in found for name in one):
        metrics = [one.get(name) for one in found]
        first = next(metric for metric in metrics if metric)
        weaker = f" ({WEAKER})" if any(metric.weaker for metric in metrics if metric) else ""
        rows += _row(first.title + weaker, [cell(metric) for metric in metrics])
    return rows


def _capability(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    found = [
        {
            (suite, name): metric
            for suite, models in run.others.items()
            if run.main.role in models
            for name, metric in models[run.main.role].metrics.items()
            if metric.group == "capability"
        }
        for run in runs
    ]
    rows = []
    for key in dict.fromkeys(key for one in found for key in one):
        metrics = [one.get(key) for one in found]
        rows += _row(next(metric.title for metric in metrics if metric), [cell(metric) for metric in metrics])
    return rows
