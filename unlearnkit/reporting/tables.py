"""The tables of a report as plain data, so that the HTML and the Markdown show the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.membership import TPRS
from unlearnkit.reporting.numbers import MISSING, count, memory, number, p_value, seconds
from unlearnkit.reporting.subject import called
from unlearnkit.reporting.views import ROLES, EvalView, Metric, RunView

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
    "memorization": "Memorisation: repeated word for word",
    "mentions": "Names and patterns: are they said",
    "understanding": "Understanding: what stands beside the names and patterns",
    "leakage": "Leakage: what sampled answers still say",
    "membership": "Membership: can it be told that it was trained on these examples",
    "indication": "Indications without a retain model (weaker evidence)",
    "utility": "Keeping: utility",
    "retain": "Keeping: retain set",
    "capability": "Keeping: general capability",
    "fluency": "Fluency: does it still write sensibly",
    "other": "Other",
}
"""A metric's group and the heading it stands under, in the order of the tables."""
WEAKER = "weaker evidence"


@dataclass(frozen=True)
class Cell:
    """One model's number: as text, in full, with its interval and n."""

    text: str
    value: float | None = None
    interval: str = ""
    n: int = 0
    note: str = ""
    low: float | None = None
    high: float | None = None
    hint: str = ""
    """A remark that is shown when one points at the number."""

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
    weaker: bool = False


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
    return Cell(
        text, metric.value, interval, metric.n, unscored, *_ends(metric.low, metric.high), metric.note
    )


def _ends(low: float, high: float) -> tuple[float | None, float | None]:
    return (None, None) if math.isnan(low) or math.isnan(high) else (low, high)


def metric_rows(evaluations: Mapping[str, EvalView]) -> list[Row]:
    """Every metric of any of the models: forget quality as p, log10 p and D, an attack's AUC with its TPRs.

    Args:
        evaluations: role -> evaluation, of one suite.
    """
    roles = [role for role in ROLES if role in evaluations]
    names = dict.fromkeys(name for role in reversed(roles) for name in evaluations[role].metrics)
    rows = []
    for name in names:
        found = {role: evaluations[role].metrics.get(name) for role in roles}
        first = next(metric for metric in found.values() if metric)
        # The retain model's own numbers need no retain model behind them.
        judged = next((found[role] for role in ("unlearned", "target") if found.get(role)), None)
        weaker = judged is not None and judged.weaker
        group = GROUPS.get(first.group, first.group)
        rows.append(
            Row(
                name,
                first.title,
                group,
                {role: cell(metric) for role, metric in found.items()},
                first.variant,
                weaker,
            )
        )
        for suffix, key, title in TPRS:
            cells = {role: extra_cell(metric, key) for role, metric in found.items()}
            if any(item.value is not None for item in cells.values()):
                rows.append(
                    Row(
                        f"{name}:{suffix}",
                        f"{first.title.removesuffix(' (AUC)')}: {title}",
                        group,
                        cells,
                        "",
                        weaker,
                    )
                )
        if name == "forget_quality":
            for key, title in (("log10_p", "Forget quality (log10 p)"), ("statistic", "KS distance D")):
                cells = {role: extra_cell(metric, key) for role, metric in found.items()}
                if any(item.value is not None for item in cells.values()):
                    rows.append(Row(key, title, group, cells, ""))
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
    return Cell(number(float(value), digits), float(value), interval, metric.n, low=low, high=high)


def titles(run: RunView) -> dict[str, str]:
    """What each metric is called, by name, over all suites of the run."""
    views = [view for models in run.others.values() for view in models.values()]
    return {
        name: metric.title
        for view in (*views, *run.evaluations.values())
        for name, metric in view.metrics.items()
    }


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
                f"Evaluating {_the(called(run.evaluations.values(), run.evaluations[role]))}",
                f"{seconds(cost.get('seconds'))}, {count(cost.get('scored_pairs'))} answers scored, "
                f"{count(cost.get('generated'))} generated",
            )
        )
    return [(name, value) for name, value in rows if value != MISSING]


def _the(model: str) -> str:
    return model if model.startswith("this ") else f"the {model}"


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
