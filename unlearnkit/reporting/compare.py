"""Several runs in one report: a table, one plot, the verdicts, and the settings that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from unlearnkit import __version__
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.glossary import glossary
from unlearnkit.reporting.html import QUALITY_LEAD, plane_plot, static
from unlearnkit.reporting.limits import limits
from unlearnkit.reporting.numbers import MISSING, number, p_value, seconds
from unlearnkit.reporting.page import shown_metrics
from unlearnkit.reporting.seeds import seed_groups
from unlearnkit.reporting.serving import terms
from unlearnkit.reporting.side_tables import side_tables
from unlearnkit.reporting.summary import SUMMARY_FORMAT, summary
from unlearnkit.reporting.tables import Cell, cell, extra_cell
from unlearnkit.reporting.templating import render
from unlearnkit.reporting.verdict import verdict_of
from unlearnkit.reporting.views import RunView

COLUMNS = (
    ("Forget quality (p)", "forget_quality"),
    ("Model utility", "model_utility"),
    ("Forget ROUGE-L", "forget_rouge"),
    ("Forget probability", "forget_probability"),
    ("Retain ROUGE-L", "retain_rouge"),
)
MOST_OTHERS = 6
"""So many metrics of a suite stand in the table where none of COLUMNS was measured."""
LEAD = "Every run as one point, with the target and the retain models they share."


def comparison(runs: list[RunView]) -> dict[str, Any]:
    """The content of a comparison, without plots."""
    attacks = [attacks_of(run) for run in runs]
    verdicts: list[dict[str, Any]] = [
        {"name": name, "verdict": verdict_of(run, found)}
        for name, run, found in zip(_names(runs), runs, attacks, strict=True)
    ]
    columns = main_columns(runs)
    rows = []
    for entry, run in zip(verdicts, runs, strict=True):
        cells = []
        for _, metric in columns:
            cells.append(cell(run.main.metrics.get(metric)))
            if metric == "forget_quality":
                cells.append(extra_cell(run.main.metrics.get(metric), "statistic"))
        time = (run.manifest.get("seconds") or {}).get("train")
        cells.append(Cell(seconds(time), time))
        rows.append({"name": entry["name"], "label": run.main.label, "cells": cells})
    heads = [one for title, name in columns for one in (title, *_SECOND.get(name, ()))]
    return {
        "version": __version__,
        "title": f"{len(runs)} runs compared",
        "subtitle": ", ".join(entry["name"] for entry in verdicts),
        "heads": [*heads, "Training"],
        "rows": rows,
        "seed_rows": _seed_rows(runs, columns),
        "side_tables": side_tables(runs, _names(runs), attacks, [metric for _, metric in columns]),
        "attacks": attacks,
        "verdicts": verdicts,
        "cautions": _cautions(runs),
        "differences": differences([run.recipe for run in runs]),
        "gaps": [f"{name}: {gap}" for name, run in zip(_names(runs), runs, strict=True) for gap in run.gaps],
        "limits": limits(runs),
        "glossary": glossary(
            (metric for run in runs for metric in shown_metrics(run)),
            dict.fromkeys(attack.name for found in attacks for attack in found),
            {term for run in runs for term in terms(run)},
        ),
    }


_SECOND = {"forget_quality": ("Distance D",)}


def main_columns(runs: list[RunView]) -> list[tuple[str, str]]:
    """The metrics of the table, suite by suite: COLUMNS as far as its runs have them, else its first."""
    found: dict[str, str] = {}
    for suite in dict.fromkeys(run.suite for run in runs):
        own = [metric for run in runs if run.suite == suite for metric in run.main.metrics.values()]
        columns = {name: title for title, name in COLUMNS if any(metric.name == name for metric in own)}
        titles: dict[str, str] = {}
        for metric in own:
            if metric.measured:
                titles.setdefault(metric.name, metric.title)
        if titles and not titles.keys() & columns.keys():
            columns = dict(list(titles.items())[:MOST_OTHERS])
        for name, title in columns.items():
            found.setdefault(name, title)
    return [(title, name) for name, title in found.items()]


def _seed_rows(runs: list[RunView], columns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Mean and range over the seeds of one recipe, in the columns of the table; p-values are not averaged."""
    rows = []
    for group in seed_groups(runs, _names(runs), [metric for _, metric in columns]):
        n = len(group.runs)
        cells = []
        for _, metric in columns:
            mean, low, high = group.spread.get(metric, (math.nan, math.nan, math.nan))
            if math.isnan(mean):
                cells.append(Cell(MISSING))
            elif metric == "forget_quality":
                cells.append(Cell(f"{p_value(low)} to {p_value(high)}", None, "range, not averaged", n))
            else:
                cells.append(Cell(number(mean), mean, f"{number(low)} to {number(high)}", n))
            cells += [Cell(MISSING)] * len(_SECOND.get(metric, ()))
        rows.append({"name": f"Mean of {n} seeds", "label": ", ".join(group.runs), "cells": cells})
    return rows


def compare_html(runs: list[RunView], content: dict[str, Any]) -> str:
    """The comparison as one self-contained page."""
    plane = plane_plot(runs)
    return render(
        "compare.html.j2",
        **content,
        css=static("style.css.j2"),
        plane=Markup(plane.svg),
        plane_lead=LEAD if plane.lead == QUALITY_LEAD else f"{LEAD} {plane.lead}",
        plane_caption=plane.caption,
    )


def compare_summary(runs: list[RunView], content: dict[str, Any]) -> dict[str, Any]:
    """The comparison for machines: the summary of every run."""
    entries = [
        summary(run, entry["verdict"], attacks) | {"name": entry["name"]}
        for run, entry, attacks in zip(runs, content["verdicts"], content["attacks"], strict=True)
    ]
    return {"format": SUMMARY_FORMAT, "cautions": content["cautions"], "runs": entries}


def differences(recipes: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted settings that are not the same in all recipes, in the order of the first one that has them."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    table = [(key, [recipe.get(key, MISSING) for recipe in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item if isinstance(item, str) else json.dumps(item, default=str)
    return found


def _names(runs: list[RunView]) -> list[str]:
    """The runs' names, with their folder where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.folder})"
        for name, run in zip(names, runs, strict=True)
    ]


def _cautions(runs: list[RunView]) -> list[str]:
    # What holds for every run is said once.
    of_all = [caution for caution in runs[0].cautions if all(caution in run.cautions for run in runs)]
    cautions = of_all + [
        f"{name}: {caution}"
        for name, run in zip(_names(runs), runs, strict=True)
        for caution in run.cautions
        if caution not in of_all
    ]
    return cautions + comparability(runs)


def comparability(runs: list[RunView]) -> list[str]:
    """Why the numbers of these runs do not compare, if they do not."""
    cautions = []
    for part, what in (("data", "data"), ("template", "prompt template")):
        if len({json.dumps(run.main.fingerprint(part), sort_keys=True) for run in runs}) > 1:
            cautions.append(
                f"the runs were not evaluated with the same {what}, so their numbers do not compare"
            )
    targets = {json.dumps(run.target.fingerprint("model")) for run in runs if run.target}
    if len(targets) > 1:
        cautions.append("the runs do not start from the same target model")
    if any(run.attacks for run in runs) and len({_attack_settings(run) for run in runs}) > 1:
        cautions.append("the runs were not attacked with the same attacks and options")
    if len({run.suite for run in runs}) > 1:
        cautions.append("the runs were evaluated with different suites")
    return cautions


def _attack_settings(run: RunView) -> str:
    return json.dumps([(stage.name, stage.variant, stage.options) for stage in run.attacks], sort_keys=True)
