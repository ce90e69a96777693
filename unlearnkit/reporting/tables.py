"""The tables of a report as plain data, so that the HTML and the Markdown show the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.kept import kept_ability
from unlearnkit.reporting.numbers import MISSING, count, memory, number, p_value, seconds
from unlearnkit.reporting.views import ROLES, Metric, RunView

PARTS = tuple(
    (f"{dataset}_{part}", f"{title} {what}")
    for dataset, title, probability, its_title in (
        ("retain", "Retain set", "probability", "probability"),
        ("real_authors", "Real authors", "probability_normalised", "normalised probability"),
        ("world_facts", "World facts", "probability_normalised", "normalised probability"),
    )
    for part, what in ((probability, its_title), ("rouge", "ROUGE-L"), ("truth_ratio", "truth ratio score"))
)
"""The nine parts of model utility: metric name and title."""
GROUPS = {
    "forget": "Forgetting",
    "utility": "Keeping: utility",
    "retain": "Keeping: retain set",
    "other": "Other",
}


@dataclass(frozen=True)
class Cell:
    """One model's number: as text, in full, with its interval and n."""

    text: str
    value: float | None = None
    interval: str = ""
    n: int = 0
    note: str = ""

    @property
    def detail(self) -> str:
        """Interval, n and what was left out, on one line."""
        parts = [
            self.interval,
            f"n = {count(self.n)}" if self.n else "",
            self.note if self.value is not None else "",
        ]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Row:
    """One metric over the models."""

    name: str
    title: str
    group: str
    cells: dict[str, Cell]
    variant: str


@dataclass(frozen=True)
class Card:
    """One key number."""

    title: str
    value: str
    raw: float | None
    detail: str
    hint: str


def cell(metric: Metric | None) -> Cell:
    """How one metric of one model is shown."""
    if metric is None:
        return Cell(MISSING, note="not evaluated")
    if not metric.measured:
        return Cell(MISSING, note=metric.note or "not measured")
    write = p_value if metric.name == "forget_quality" else number
    interval = (
        ""
        if math.isnan(metric.low) or math.isnan(metric.high)
        else f"{write(metric.low)} to {write(metric.high)}"
    )
    text = p_value(metric.value, metric.extra.get("log10_p")) if write is p_value else number(metric.value)
    unscored = f"{len(metric.unscored)} not scored" if metric.unscored else ""
    return Cell(text, metric.value, interval, metric.n, unscored)


def metric_rows(run: RunView) -> list[Row]:
    """Every metric of any of the models, forget quality split into p, log10 p and D."""
    names = dict.fromkeys(name for role in reversed(_roles(run)) for name in run.evaluations[role].metrics)
    rows = []
    for name in names:
        found = {role: run.evaluations[role].metrics.get(name) for role in _roles(run)}
        first = next(metric for metric in found.values() if metric)
        rows.append(
            Row(
                name,
                first.title,
                GROUPS.get(first.group, first.group),
                {role: cell(metric) for role, metric in found.items()},
                first.variant,
            )
        )
        if name == "forget_quality":
            for key, title in (("log10_p", "Forget quality (log10 p)"), ("statistic", "KS distance D")):
                cells = {role: extra_cell(metric, key) for role, metric in found.items()}
                if any(item.value is not None for item in cells.values()):
                    rows.append(Row(key, title, GROUPS.get(first.group, first.group), cells, ""))
    order = list(GROUPS.values())
    return sorted(rows, key=lambda row: order.index(row.group) if row.group in order else len(order))


def extra_cell(metric: Metric | None, key: str) -> Cell:
    """A number from a metric's `extra` ("statistic", "log10_p") with its interval."""
    value = metric.extra.get(key) if metric else None
    if metric is None or not isinstance(value, int | float):
        return Cell(MISSING)
    digits = 2 if key == "log10_p" else 3
    low, high = metric.extra.get(f"{key}_low"), metric.extra.get(f"{key}_high")
    interval = "" if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"
    return Cell(number(float(value), digits), float(value), interval, metric.n)


def part_rows(run: RunView) -> list[Row]:
    """The nine parts of model utility; empty where a suite has none of the two sets beside retain."""
    rows = []
    for name, title in PARTS:
        found = {role: run.evaluations[role].metrics.get(name) for role in _roles(run)}
        rows.append(
            Row(
                name,
                title,
                "utility",
                {role: cell(metric) for role, metric in found.items()},
                next((metric.variant for metric in found.values() if metric), ""),
            )
        )
    measured = {
        row.name.rpartition("_")[0] for row in rows if any(c.value is not None for c in row.cells.values())
    }
    return rows if any(not name.startswith("retain") for name in measured) else []


def cards(run: RunView) -> list[Card]:
    """The key numbers under the verdict."""
    view = run.unlearned or run.main
    quality = view.metrics.get("forget_quality")
    shown = []
    if quality and quality.measured:
        d, log10 = quality.extra.get("statistic"), quality.extra.get("log10_p")
        shown.append(
            Card(
                "Forget quality",
                f"p = {cell(quality).text}",
                quality.value,
                f"D = {number(d)}, log10 p = {number(log10, 2)}, n = {count(quality.n)}",
                "above 0.05: no difference from a model that never saw the examples was found",
            )
        )
    else:
        shown.append(
            Card("Forget quality", "n/a", None, "not measured", "needs a retain model and wrong answers")
        )
    kept = kept_ability(run)
    utility = view.metrics.get("model_utility")
    if utility and utility.measured:
        detail = (
            f"{number(kept.before)} {'before' if kept.base == 'target' else 'retain model'}"
            if kept and kept.what == "utility"
            else ""
        )
        shown.append(
            _card(utility, "Model utility", detail, "what is left of the other abilities; higher is better")
        )
    names = [
        ("forget_rouge", "Forget ROUGE-L", "overlap with the forgotten answers; lower repeats less"),
        ("forget_probability", "Forget probability", "likelihood of the forgotten answers, per token"),
    ]
    if not (utility and utility.measured):
        names.insert(
            0, ("retain_rouge", "Retain ROUGE-L", "overlap with the answers to keep; higher is better")
        )
    for name, title, hint in names:
        metric = view.metrics.get(name)
        if metric and metric.measured:
            before = [
                f"{number(other.value(name))} {word}"
                for other, word in ((run.target, "before"), (run.retain, "retain model"))
                if other and other is not view
            ]
            shown.append(_card(metric, title, ", ".join(before), hint))
    return shown


def _card(metric: Metric, title: str, detail: str, hint: str) -> Card:
    n = f"n = {count(metric.n)}" if metric.n else ""
    return Card(
        title, number(metric.value), metric.value, ", ".join(part for part in (detail, n) if part), hint
    )


def cost_rows(run: RunView) -> list[tuple[str, str]]:
    """What the run cost."""
    manifest = run.manifest
    time = manifest.get("seconds") or {}
    rows = [
        ("Training", seconds(time.get("train"))),
        ("Evaluation", seconds(time.get("evaluate"))),
        ("Peak memory", memory(manifest.get("peak_memory_bytes"))),
        ("Tokens seen in training", count(manifest.get("tokens_seen"))),
        ("Device", str(manifest.get("device") or MISSING)),
        ("Processes", str(manifest.get("processes") or MISSING)),
        ("Reference", str(manifest.get("reference") or MISSING)),
    ]
    for role in _roles(run):
        cost = run.evaluations[role].summary.get("cost") or {}
        rows.append(
            (
                f"Evaluating the {role} model",
                f"{seconds(cost.get('seconds'))}, {count(cost.get('scored_pairs'))} answers scored, "
                f"{count(cost.get('generated'))} generated",
            )
        )
    return [(name, value) for name, value in rows if value != MISSING]


def fingerprint_rows(run: RunView) -> list[tuple[str, str]]:
    """Which weights and which data the numbers belong to."""
    rows = []
    for role in _roles(run):
        for part, value in (run.evaluations[role].summary.get("fingerprint") or {}).items():
            rows.append((f"{role} evaluation: {part}", str(value)))
        reference = run.evaluations[role].summary.get("reference")
        if reference:
            rows.append(
                (
                    f"{role} evaluation: compared with",
                    f"{reference.get('label')} {reference.get('fingerprint')}",
                )
            )
    for name, entry in (run.manifest.get("data") or {}).items():
        rows.append((f"training data: {name}", str(entry.get("fingerprint") or MISSING)))
    for key, title in (("model", "model before training"), ("unlearned_model", "model after training")):
        value = (run.manifest.get(key) or {}).get("fingerprint")
        if value:
            rows.append((title, str(value)))
    git = run.manifest.get("git")
    if git:
        rows.append(("code", f"{git.get('commit')}{' (with local changes)' if git.get('dirty') else ''}"))
    return rows


def version_rows(run: RunView) -> list[tuple[str, str]]:
    """Versions of the libraries, of training where there is one, else of the evaluation."""
    versions: dict[str, Any] = run.manifest.get("versions") or run.main.summary.get("versions") or {}
    return [(str(name), str(value)) for name, value in versions.items()]


def _roles(run: RunView) -> list[str]:
    return [role for role in ROLES if role in run.evaluations]
