"""report.html: one file with its style, plots, data and script inside; it loads nothing from anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from unlearnkit.reporting import alphas_plot, curves, planes, plots, roc, trajectory_plot
from unlearnkit.reporting.answers import truth_ratio_samples
from unlearnkit.reporting.browser import LEAKED
from unlearnkit.reporting.colours import variables
from unlearnkit.reporting.tables import PARTS
from unlearnkit.reporting.templating import json_for_script, render
from unlearnkit.reporting.views import ROLES, EvalView, RunView

QUALITY_LEAD = (
    "Forgetting is good when the curves of the unlearned model and of the retain model agree; keeping "
    "is good when model utility is as high as before."
)
QUALITY_CAPTION = (
    "Up: harder to tell apart from a model that never saw the examples. Right: more is kept. Lines show 95 % "
    "intervals. The retain model has p = 1 by definition."
)
NO_UTILITY_LEAD = (
    "Model utility was not measured, so answer overlap on the retain set takes its place; forgetting is good "
    "when the curves of the unlearned model and of the retain model agree."
)
NOTHING_KEPT_LEAD = (
    "What was kept was not measured, so there is no plot of forgetting against keeping; forgetting is good "
    "when the curves of the unlearned model and of the retain model agree."
)
ROUGE_LEAD = (
    "Forget quality was not measured; this is weaker evidence: how much of the answers is repeated "
    "word for word."
)
ROUGE_CAPTION = "Down: repeats fewer of the forgotten answers. Right: repeats more of the answers to keep."


@dataclass(frozen=True)
class Plane:
    """The plot of forgetting against keeping; `lead` says what was measured, and what was not."""

    svg: str
    lead: str
    caption: str


def run_html(run: RunView, content: dict[str, Any]) -> str:
    """The report of one run; `content` is what `page.page` gathered."""
    plane = plane_plot([run])
    samples, note = truth_ratio_samples(run)
    labels = {role: view.title for role, view in run.evaluations.items()}
    quality = run.main.metrics.get("forget_quality")
    distance = (quality.extra.get("statistic") if quality else None) or math.nan
    truth = plots.truth_ratio_curves(samples, labels, distance) if samples else ""
    roles = [role for role in ROLES if role in run.evaluations]
    parts = {role: [run.evaluations[role].value(name) for name, _ in PARTS] for role in roles}
    trajectory = content["trajectory"]
    bars = plots.utility_bars([title for _, title in PARTS], parts, labels) if content["parts"] else ""
    return render(
        "run.html.j2",
        **content,
        css=static("style.css.j2"),
        js=static("table.js.j2"),
        plane=Markup(plane.svg),
        plane_lead=plane.lead,
        plane_caption=plane.caption,
        truth_plot=Markup(truth),
        truth_caption=_truth_caption(roles, note),
        parts_plot=Markup(bars),
        curves=Markup(plots.training_curves(run.log)),
        attack_plots={attack.name: Markup(curves.recovery_plot(attack)) for attack in content["attacks"]},
        returns=any(flag["code"] == "returns" for flag in content["flags"]),
        roc_plot=Markup(roc.roc_curves(content["roc"])),
        roc_low_plot=Markup(roc.low_rate_curves(content["roc"])),
        roc_wide=len({curve["metric"] for curve in content["roc"]}) > 1,
        sweep_plot=Markup(alphas_plot.alpha_plot(content["sweep"]) if content["sweep"] else ""),
        trajectory_svg=Markup(trajectory_plot.trajectory_plot(trajectory) if trajectory else ""),
        examples=_examples(run, content),
    )


def _examples(run: RunView, content: dict[str, Any]) -> Markup:
    """What the script of the table needs, as JSON."""
    return json_for_script(
        {
            "roles": [role.role for role in content["roles"]],
            "heads": {role.role: role.when for role in content["roles"]},
            "flags": {flag["code"]: flag["title"] for flag in content["flags"]},
            "leaked": LEAKED,
            "main": run.main.role,
            "compared": content["compared"],
            "rows": content["rows"],
        }
    )


def static(name: str) -> Markup:
    """A style sheet or a script of ours."""
    return Markup(render(name, light=variables(0), dark=variables(1)).rstrip())


def _truth_caption(roles: list[str], note: str) -> str:
    text = (
        "For every value of the truth ratio: the share of forget examples below it. Curves on the left "
        "belong to a "
        "model that knows the right answers."
    )
    if "unlearned" in roles and "retain" in roles:
        text += (
            " The thick bar is D, the widest gap between unlearned and retain; forget quality asks whether "
            "it is chance."
        )
    return f"{text} {note}".strip()


def plane_plot(runs: list[RunView]) -> Plane:
    """Forgetting against keeping for one or many runs, with the best measures that there are.

    Forget quality against model utility, else against ROUGE-L on the retain set; without forget quality of
    any run ROUGE-L on both sets. No SVG where that is missing too.
    """
    views, wide = _distinct_views(runs), len(runs) > 1
    for name, title, lead in (
        ("model_utility", "Model utility", QUALITY_LEAD),
        ("retain_rouge", "ROUGE-L on the retain set", NO_UTILITY_LEAD),
    ):
        points = [point for view, label in views if (point := _quality_point(view, label, name))]
        if any(point.role == "unlearned" for point in points):
            return Plane(planes.quality_plane(points, title, wide), lead, QUALITY_CAPTION)
    points = [
        planes.Point(
            label,
            view.role,
            view.value("retain_rouge"),
            view.value("forget_rouge"),
            *_interval(view, "retain_rouge"),
            *_interval(view, "forget_rouge"),
        )
        for view, label in views
    ]
    points = [point for point in points if not math.isnan(point.x) and not math.isnan(point.y)]
    if not points and any(not math.isnan(run.main.value("forget_quality")) for run in runs):
        return Plane("", NOTHING_KEPT_LEAD, "")
    return Plane(planes.rouge_plane(points, wide) if points else "", ROUGE_LEAD, ROUGE_CAPTION)


def _distinct_views(runs: list[RunView]) -> list[tuple[EvalView, str]]:
    """Each model once with its label: runs that start from one target model share its point."""
    found: dict[Any, tuple[EvalView, str]] = {}
    for run in runs:
        for role, view in run.evaluations.items():
            main = view is run.main and len(runs) > 1
            key = (
                (role, run.folder) if main else (role, view.fingerprint("model"), view.value("model_utility"))
            )
            found.setdefault(key, (view, run.name if main else view.title))
    return list(found.values())


def _quality_point(view: EvalView, label: str, kept: str) -> planes.Point | None:
    quality = view.metrics.get("forget_quality")
    if math.isnan(view.value(kept)):
        return None
    if quality and quality.measured:
        value = quality.extra.get("log10_p")
        y = float(value) if value is not None else math.log10(quality.value)
        ends = [quality.extra.get(f"log10_p_{end}") for end in ("low", "high")]
        low, high = (math.nan if end is None else float(end) for end in ends)
    elif view.role == "retain":
        y, low, high = 0.0, math.nan, math.nan
    else:
        return None
    return planes.Point(label, view.role, view.value(kept), y, *_interval(view, kept), low, high)


def _interval(view: EvalView, name: str) -> tuple[float, float]:
    metric = view.metrics.get(name)
    return (metric.low, metric.high) if metric else (math.nan, math.nan)
