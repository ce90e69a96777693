"""The box under the verdict: what was asked, done, measured and not measured, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unlearnkit.evaluation.records import LIST_TERMS
from unlearnkit.reporting.attack_words import TITLES, order_of
from unlearnkit.reporting.distilled import distilled_from, near_sentences
from unlearnkit.reporting.evidence import selection_sentences
from unlearnkit.reporting.kept import retain_term, trains_to_forget
from unlearnkit.reporting.numbers import count, seconds
from unlearnkit.reporting.serving import served_lines, serving
from unlearnkit.reporting.subject import called
from unlearnkit.reporting.tables import PARTS
from unlearnkit.reporting.views import ROLES, EvalView, RunView

NAMES = {
    "forget": "forget set",
    "retain": "retain set",
    "real_authors": "real authors",
    "world_facts": "world facts",
    "holdout": "holdout set",
    "verbmem": "texts for verbatim memory",
    "knowmem_forget": "questions about the forget texts",
    "knowmem_retain": "questions about the retain texts",
    "control": "unseen texts",
}


def dataset_name(name: str) -> str:
    """A data set's name for people."""
    return NAMES.get(name, name.replace("_", " "))


def story(run: RunView) -> list[tuple[str, list[str]]]:
    """The headings with their sentences; what is served is told where it is more than one model."""
    served = served_lines(run)
    return [
        ("What was asked", _asked(run)),
        ("What was done", _done(run)),
        *([("What is served", served)] if served else []),
        ("What was measured", _measured(run)),
        ("What was not measured", _sentences(run.gaps) or ["Every metric of the suite was measured."]),
    ]


def _asked(run: RunView) -> list[str]:
    lines = []
    model = run.manifest.get("model") or {}
    if path := model.get("path"):
        # Where a network beside the model was trained, the manifest has the size of that.
        known = model.get("parameters") and serving(run) is None
        size = f" ({count(model['parameters'])} parameters)" if known else ""
        lines.append(f"Model: {path}{size}.")
    for name, entry in (run.manifest.get("data") or {}).items():
        verb = {"forget": "To forget", "retain": "To keep", "train": "To learn"}.get(
            name, f"Also used, {dataset_name(name)}"
        )
        lines.append(f"{verb}: {_amount(entry)}{_source(entry)}.")
    return lines or ["Only an evaluation was given; the request behind it is not recorded here."]


def _amount(entry: dict[str, Any]) -> str:
    amount = f"{count(entry.get('examples', float('nan')))} examples"
    if entry.get("target_tokens"):
        amount += f", {count(entry['target_tokens'])} answer tokens"
    return amount


def _source(entry: dict[str, Any]) -> str:
    return f", from {entry['source']}" if entry.get("source") else ""


def _done(run: RunView) -> list[str]:
    if not run.is_run:
        return ["Nothing but an evaluation."]
    manifest, lines = run.manifest, []
    method = str(manifest.get("method") or run.recipe.get("method") or "an unnamed method")
    last = run.log[-1] if run.log else {}
    of = "forget set" if trains_to_forget(run) else "training data"
    steps = f", {count(last['step'])} steps" if "step" in last else ""
    epochs = f", {last['epoch']:g} passes over the {of}" if "epoch" in last else ""
    name = distilled_from(run)
    lines.append(f"{f'Distilled from {name}' if name else f'Trained with {method}'}{steps}{epochs}.")
    lines.extend([*_beside(run), *near_sentences(run)])
    lines.extend(_keeping(run))
    lines.extend(selection_sentences(run))
    if manifest.get("seed") is not None:
        lines.append(
            f"One run, seed {manifest['seed']}; how much another seed would differ was not measured."
        )
    time = (manifest.get("seconds") or {}).get("train")
    if time is not None:
        where = f" on {manifest['device']}" if manifest.get("device") else ""
        lines.append(f"It took {seconds(time)}{where}.")
    return lines


def _keeping(run: RunView) -> list[str]:
    term = retain_term(run)
    if term is None:
        return []
    kind = None if (served := serving(run)) is None else served.kind
    if term.name == "none":
        held = (
            "kept the assistant ignorant of the rest"
            if kind == "uld"
            else "held the rest of the model in place"
        )
        return [f"Without any retain term: nothing {held}."]
    aim = (
        "keep the assistant ignorant of the rest" if kind == "uld" else "hold the rest of the model in place"
    )
    return [f"With the retain term {term.name}, weight {term.weight:g}, to {aim}."]


def _beside(run: RunView) -> list[str]:
    """What was trained, where it is not the model that was to forget."""
    served, model = serving(run), run.manifest.get("model") or {}
    if served is None:
        return []
    size = f" ({count(model['trainable'])} parameters)" if model.get("trainable") else ""
    return [f"What was trained stands beside the {served.first}{size}; the {served.first} was not changed."]


def _measured(run: RunView) -> list[str]:
    split = run.main.summary.get("split")
    version = run.main.summary.get("suite_version")
    lines = [
        f"Suite {run.suite}{f' version {version}' if version else ''}{f', split {split}' if split else ''}."
    ]
    records = run.main.records
    asked, listed = records[records["probe"] != LIST_TERMS], records[records["probe"] == LIST_TERMS]
    sets = asked.groupby("dataset", sort=False)["example_id"].nunique()
    lines.append(
        "Examples asked: "
        + ", ".join(f"{dataset_name(str(name))} {count(n)}" for name, n in sets.items())
        + "."
    )
    if len(listed):
        lines.append(f"Terms looked for: {count(len(listed))}.")
    views = run.evaluations.values()
    models = [_model(views, run.evaluations[role]) for role in ROLES if role in run.evaluations]
    lines.append(f"On: {', '.join(models)}.")
    lines.extend(_attacked(run))
    if run.others:
        lines.append(f"Further suites: {', '.join(run.others)}.")
    if run.trajectory:
        lines.append(
            f"During training: {count(len(run.trajectory))} evaluations, the first of the target model."
        )
    return lines + [f"Note: {caution}." for caution in run.cautions]


def _attacked(run: RunView) -> list[str]:
    """The attacks by name, with their stages and the models that they were run on."""
    lines = []
    for name in sorted({stage.name for stage in run.attacks}, key=order_of):
        stages = [stage for stage in run.attacks if stage.name == name]
        roles = {role for stage in stages for role in stage.evaluations}
        variants = ", ".join(stage.variant for stage in stages if stage.variant)
        models = " and ".join(f"{role} model" for role in ROLES if role in roles)
        lines.append(
            f"Attack: {TITLES.get(name, name).lower()}{f' ({variants})' if variants else ''}, on the "
            f"{models}."
        )
    return lines


def _model(views: Iterable[EvalView], view: EvalView) -> str:
    return called(views, view) + (f" ({view.label})" if view.label != view.role else "")


def _sentences(items: tuple[str, ...]) -> list[str]:
    for name, title in PARTS:
        items = tuple(item.replace(name, title[:1].lower() + title[1:]) for item in items)
    return [item[:1].upper() + item[1:].rstrip(".") + "." for item in items]
