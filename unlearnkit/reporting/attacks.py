"""The attack section of a report: every attack with its stages, its worst one, and what to keep in mind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.attack_words import EXPLAINED, LEVELS, TITLES, order_of, under
from unlearnkit.reporting.numbers import count, number
from unlearnkit.reporting.recoveries import (
    MEASURES,
    NO_MORE,
    OTHER_OPTIONS,
    RETURNS_LIMIT,
    Recovery,
    not_changed,
    recovery,
    returns,
    share,
)
from unlearnkit.reporting.views import AttackView, RunView

NOT_ATTACKED = "no model that never saw them was attacked for comparison"


@dataclass(frozen=True)
class Stage:
    """One stage of an attack on the unlearned model."""

    variant: str
    level: float | None
    n: int
    left_out: int
    facts: tuple[tuple[str, str], ...]
    recoveries: tuple[Recovery, ...]

    @property
    def strongest(self) -> Recovery | None:
        """The measure by which most came back; None where no share could be computed."""
        measured = [one for one in self.recoveries if one.judged.value is not None]
        return max(measured, key=_strength, default=None)


@dataclass(frozen=True)
class Attack:
    """An attack with its stages, as a section of the report."""

    name: str
    title: str
    explained: str
    level_title: str
    stages: tuple[Stage, ...]
    headline: str
    worst: str
    spread: str
    caveats: tuple[str, ...]


def attacks_of(run: RunView) -> list[Attack]:
    """Every attack that was run on the unlearned model; empty where nothing was unlearned."""
    views = [stage for stage in run.attacks if "unlearned" in stage.evaluations]
    if run.unlearned is None:
        return []
    names = sorted(dict.fromkeys(view.name for view in views), key=order_of)
    return [_attack(name, [view for view in views if view.name == name], run) for name in names]


def strongest(attacks: list[Attack]) -> tuple[Attack, Stage, Recovery] | None:
    """The stage that brought most back, of all attacks; None where no share could be computed."""
    found = [
        (attack, stage, best)
        for attack in attacks
        for stage in attack.stages
        if (best := stage.strongest) is not None
    ]
    return max(found, key=lambda item: _strength(item[2]), default=None)


def _strength(recovery: Recovery) -> tuple[bool, float]:
    """What came back at all goes before what did not, however the control fared."""
    return recovery.back.value is None or recovery.back.value > 0, recovery.judged.value or 0.0


def in_words(attack: Attack, stage: Stage, recovery: Recovery) -> str:
    """Sentences without an opening: how much came back, of how much in the control, and how much beyond it.

    "38 % (30 % to 46 %) by ROUGE-L after 10 relearning steps; a model that never saw them: 12 %. Beyond that
    control it is 25 points (15 to 35): 0.520 against 0.264 under the same attack."
    """
    back, control = recovery.back, recovery.control
    interval = f" ({back.interval})" if back.interval else ""
    came = "a share that cannot be told" if back.value is None else f"{back.text}{interval}"
    text = f"{came} by {recovery.title} {under(attack.name, stage.variant, stage.level)}"
    has_control = control.value is not None and control.value >= 0
    if has_control:
        text += f"; a model that never saw them: {control.text}"
    elif recovery.control_attacked.value is None:
        is_other = recovery.control.note == OTHER_OPTIONS
        text += f"; {'no control: ' + OTHER_OPTIONS if is_other else NOT_ATTACKED}"
    elif recovery.excess.value is None:
        text += f"; {recovery.levels} of a model that never saw them under the same attack"
    return " ".join(part for part in (f"{text}.", _beyond(recovery, has_control)) if part)


def _beyond(recovery: Recovery, has_control: bool) -> str:
    """What the attacked model shows beyond a model that never saw the examples; "" where it is not known."""
    excess, levels = recovery.excess, recovery.levels
    if excess.value is None:
        return ""
    if excess.value <= 0:
        opening = "Even so it" if (recovery.back.value or 0.0) > 0 else "It"
        more = NO_MORE[recovery.measure]
        return f"{opening} {more} than a model that never saw them does under the same attack ({levels})."
    shown = f"{excess.text} ({excess.interval or 'no interval'})"
    if returns(recovery):
        control = "that control" if has_control else "a model that never saw them"
        return f"Beyond {control} it is {shown}: {levels} under the same attack."
    is_chance = excess.low is not None and excess.low <= 0
    why = "within chance" if is_chance else f"below the {100 * RETURNS_LIMIT:g} points that count"
    other = f"a model that never saw them under the same attack ({levels})"
    return f"That is {shown} beyond {other}, which is {why}."


def _attack(name: str, views: list[AttackView], run: RunView) -> Attack:
    stages = tuple(_stage(view, run) for view in views)
    draft = Attack(
        name,
        TITLES.get(name, name.replace("_", " ").replace(".", " ").capitalize()),
        EXPLAINED.get(name, "An attack of one's own."),
        LEVELS.get(name, "level") if any(stage.level is not None for stage in stages) else "",
        stages,
        "",
        "",
        "",
        tuple(_caveats(name, views, run)),
    )
    found = strongest([draft])
    if found is None:
        headline, worst = _plainly(stages), ""
    else:
        back = found[2].back.value
        opening = "Strongest" if back is None or back > 0 else "Nothing came back"
        headline, worst = f"{opening}: {in_words(*found)}", found[1].variant
    fields = {**vars(draft), "headline": headline, "worst": worst, "spread": _spread(stages)}
    return Attack(**fields)


def _plainly(stages: tuple[Stage, ...]) -> str:
    """The plain numbers before and after, where there is no share."""
    for number_of in (0, 1):
        known = [stage for stage in stages if stage.recoveries[number_of].attacked.value is not None]
        if known:
            worst = max(known, key=lambda stage: stage.recoveries[number_of].attacked.value or 0.0)
            one = worst.recoveries[number_of]
            return (
                f"{one.title[:1].upper()}{one.title[1:]} on the forget set: {one.unlearned.text} before the "
                f"attack, {one.attacked.text} after it ({worst.variant or 'one stage'}). "
                f"No share: {one.back.note or 'not measured'}."
            )
    return "Nothing could be measured under this attack."


def _spread(stages: tuple[Stage, ...]) -> str:
    """How far the stages lie apart, for attacks that differ in kind and not in strength."""
    if len(stages) < 2 or any(stage.level is not None for stage in stages):
        return ""
    recoveries = [stage.recoveries[0] for stage in stages]
    shares = [one.back.value for one in recoveries if one.back.value is not None]
    plain = [one.attacked.value for one in recoveries if one.attacked.value is not None]
    title = recoveries[0].title
    if len(shares) == len(stages):
        low, high = share(min(shares)), share(max(shares))
        return f"Over the {len(stages)} forms, between {low} and {high} comes back by {title}."
    if len(plain) == len(stages):
        return (
            f"Over the {len(stages)} forms, {title} is between {number(min(plain))} and {number(max(plain))}."
        )
    return ""


def _caveats(name: str, views: list[AttackView], run: RunView) -> list[str]:
    found = []
    if seen := set().union(*(view.seen for view in views)):
        found.append(
            f"{count(len(seen))} examples that the attack itself showed to the model are left out of the "
            f"numbers."
        )
    if not any("retain" in view.evaluations for view in views):
        why = "The attack was not run on a model that never saw the examples"
        if any("retain" in view.otherwise for view in views):
            why = "There is no control: the retain model was attacked with other options"
        found.append(f"{why}, so how much of this any model would show is not known.")
    if name == "sampling":
        found.append(
            "The best of several tries is compared with a single answer: some gain is luck, and the control "
            "shows how much."
        )
    if name == "prompt":
        found.append("Where the first words of the answer were given away, only the rest is measured.")
    if run.target is not None and name in ("rephrase", "prompt"):
        found.append("Before unlearning the questions were asked in their own words, not in this form.")
    return found


def _stage(view: AttackView, run: RunView) -> Stage:
    attacked = view.evaluations["unlearned"]
    recoveries = tuple(
        # Drawing answers otherwise does not change how likely they are.
        not_changed(measure, title, "sampling does not change probabilities")
        if (view.name, measure) == ("sampling", "probability")
        else recovery(view, run, measure, title)
        for measure, title in MEASURES
    )
    return Stage(
        view.variant,
        view.level,
        max(one.attacked.n for one in recoveries),
        len(view.seen & {str(one) for one in attacked.records["example_id"]}),
        tuple((key.replace("_", " "), _fact(value)) for key, value in view.facts.items()),
        recoveries,
    )


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:g}"
