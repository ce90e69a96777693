"""What a report must admit: what was not measured, and what the reader has to keep in mind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from unlearnkit.reporting.subject import FORGETTING, MENTIONS, called, subject_of
from unlearnkit.reporting.views import ROLES, AttackView, EvalView, Metric

FEW = re.compile(
    r"(?P<rates>TPR at .*? FPR) rests on fewer than one example, since there are only (?P<n>one|\d+) "
    r"non-members?: it is .*"
)
SEPARATED = "members and non-members do not overlap"
"""Remarks of `metrics.membership` that stand in a metric's note."""


def why_missing(metric: Metric) -> str:
    """The reason why a metric has no value, without its "not measured:" and without a full stop."""
    return metric.note.removeprefix("not measured:").removeprefix("n/a:").strip().rstrip(".")


def gaps_in(evaluations: dict[str, EvalView]) -> tuple[str, ...]:
    """What could not be measured, and why: phrases without a full stop."""
    gaps: list[str] = []
    if "unlearned" in evaluations and subject_of(evaluations) == MENTIONS:
        if "retain" not in evaluations:
            gaps.append("a reference (such as a model trained plainly on the same data): none was evaluated")
    elif "unlearned" in evaluations:
        if "target" not in evaluations and subject_of(evaluations) == FORGETTING:
            gaps.append("the model before unlearning: it was not evaluated, so there is no before and after")
        if "retain" not in evaluations:
            gaps.append(
                "a retain model (one that never saw the forget set): none was evaluated with this run"
            )
    return (*gaps, *_unmeasured(evaluations))


def _unmeasured(evaluations: dict[str, EvalView]) -> Iterable[str]:
    """Each reason once, after the metrics that share it."""
    roles = ("unlearned",) if "unlearned" in evaluations else ROLES
    by_reason: dict[str, dict[str, None]] = {}
    for role in roles:
        for metric in evaluations[role].metrics.values() if role in evaluations else ():
            if not metric.measured:
                reason = why_missing(metric) or "no reason was recorded"
                by_reason.setdefault(reason, {})[metric.title] = None
    for reason, titles in by_reason.items():
        *most, last = titles
        yield f"{', '.join(most)} and {last}: {reason}" if most else f"{last}: {reason}"


def attack_gaps(evaluations: dict[str, EvalView], attacks: Iterable[AttackView]) -> tuple[str, ...]:
    """What the attacks leave open: none run, not on the unlearned model, without a control."""
    if "unlearned" not in evaluations:
        return ()
    stages = tuple(attacks)
    if not stages:
        if subject_of(evaluations) != FORGETTING:
            return ()
        return ("what comes back under attack: no attack was run",)
    gaps = []
    if "target" not in evaluations:
        gaps.append(
            "how much comes back under attack, as a share: the model before unlearning was not evaluated"
        )
    for name in dict.fromkeys(stage.name for stage in stages):
        own = [stage for stage in stages if stage.name == name and "unlearned" in stage.evaluations]
        if not own:
            gaps.append(f"what comes back under the attack {name}: it was not run on the unlearned model")
        elif not any("retain" in stage.evaluations for stage in own):
            why = "it was not run on a model that never saw the examples"
            if any("retain" in stage.otherwise for stage in own):
                why = "the retain model was attacked with other options"
            gaps.append(f"the control of the attack {name}: {why}")
    return tuple(gaps)


def other_notes(suite: str, evaluations: dict[str, EvalView]) -> tuple[list[str], list[str]]:
    """Gaps and cautions of a further suite of the run, with its name before each."""
    gaps = [f"suite {suite}, {gap}" for gap in _unmeasured(evaluations)]
    about_forgetting = subject_of(evaluations) == FORGETTING
    if about_forgetting and "unlearned" in evaluations and "target" not in evaluations:
        gaps.append(f"suite {suite}: the model before unlearning was not evaluated")
    return gaps, [f"suite {suite}: {caution}" for caution in cautions_about(evaluations)]


def cautions_about(evaluations: dict[str, EvalView]) -> tuple[str, ...]:
    """Unscored examples, notes of metrics, and models that were not measured alike."""
    cautions = []
    views = list(evaluations.values())
    for part, what in (("data", "data"), ("template", "prompt template")):
        if len({json.dumps(view.fingerprint(part), sort_keys=True) for view in views}) > 1:
            cautions.append(f"the models were not evaluated with the same {what} (fingerprints differ)")
    cautions += _notes(views)
    for view in views:
        for metric in view.metrics.values():
            if metric.unscored:
                shown = ", ".join(metric.unscored[:5]) + (", …" if len(metric.unscored) > 5 else "")
                cautions.append(
                    f"{metric.title}, {called(views, view)}: {len(metric.unscored)} example(s) could not be "
                    f"scored and are not in the number ({shown})"
                )
    return tuple(cautions)


def _notes(views: list[EvalView]) -> list[str]:
    """The notes of the measured metrics; one that several share is given once.

    What every membership metric says of its few examples is said once for all of them; that its sets do not
    overlap stays with its numbers.
    """
    shared: dict[str, list[str]] = {}
    few: dict[str, None] = {}
    for view in views:
        for metric in view.metrics.values():
            if not metric.measured:
                continue
            kept = []
            for note in metric.note.rstrip(".").split("; "):
                if found := FEW.fullmatch(note):
                    few[_few(found["rates"], found["n"])] = None
                elif note and not note.startswith(SEPARATED):
                    kept.append(note)
            if kept:
                shared.setdefault("; ".join(kept), []).append(f"{metric.title}, {called(views, view)}")
    return [*few, *(f"{_first_of(names)}: {note}" for note, names in shared.items())]


def _few(rates: str, n: str) -> str:
    others = "one holdout example" if n == "one" else f"{n} holdout examples"
    return (
        f"Membership: with only {others} {rates} rests on fewer than one of them: it is the share of forget "
        "examples that look more familiar than every holdout example"
    )


def _first_of(names: list[str]) -> str:
    more = len(names) - 1
    return names[0] + (f", and {more} more number{'' if more == 1 else 's'}" if more else "")
