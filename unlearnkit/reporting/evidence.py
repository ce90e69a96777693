"""What attacks, membership tests and the choice of the checkpoint add to a verdict on behaviour.

The verdict on the suite's questions comes first (`verdict`); what is found here can only weaken it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearnkit.reporting import membership
from unlearnkit.reporting.attack_words import under
from unlearnkit.reporting.attacks import Attack, Stage, in_words, strongest
from unlearnkit.reporting.recoveries import MORE, RETURNS_LIMIT, Recovery, returns
from unlearnkit.reporting.subject import FORGETTING, subject_of
from unlearnkit.reporting.tables import titles
from unlearnkit.reporting.views import RunView

if TYPE_CHECKING:
    from unlearnkit.reporting.verdict import Verdict

MOSTLY_BACK = 0.5
"""From here on most of it was hidden rather than forgotten, and the verdict is bad, not mixed."""
RETURNS = "_but_returns"
"""Ends the code of a verdict whose forgotten answers return: `forgotten_but_returns`."""
_FORGOTTEN = ("forgotten", "weaker_evidence_forgotten", "weaker_evidence_partly")


def with_evidence(verdict: Verdict, run: RunView, attacks: Sequence[Attack]) -> Verdict:
    """The verdict with what attacks and membership tests showed, or that there were none."""
    if run.unlearned is None:
        return verdict
    found = strongest(list(attacks))
    if found and verdict.code.startswith(_FORGOTTEN) and returns(found[2]):
        verdict = _returned(verdict, *found)
    if verdict.tone == "good" and membership.is_visible(run):
        headline = verdict.headline.rstrip(".") + "; but it can still be told that it was trained on them."
        verdict = replace(verdict, tone="mixed", headline=headline)
    about_forgetting = subject_of(run.evaluations) == FORGETTING
    tried = [*_attack_sentences(attacks, found), *membership.sentences(run)]
    sentences = (*(tried if attacks or about_forgetting else ()), *selection_sentences(run))
    return replace(verdict, sentences=(*verdict.sentences, *sentences))


def _returned(verdict: Verdict, attack: Attack, stage: Stage, recovery: Recovery) -> Verdict:
    opening = (
        "Forgotten by behaviour" if verdict.code.startswith("forgotten") else "Repeated less by behaviour"
    )
    return replace(
        verdict,
        code=verdict.code + RETURNS,
        tone="bad" if (recovery.judged.value or 0.0) >= MOSTLY_BACK else "mixed",
        headline=f"{opening}, but {_what_returns(attack, stage, recovery)}.",
        sentences=(verdict.headline, *verdict.sentences),
    )


def _what_returns(attack: Attack, stage: Stage, recovery: Recovery) -> str:
    where = under(attack.name, stage.variant, stage.level)
    back, control = recovery.back, recovery.control
    if back.value is None or back.value < RETURNS_LIMIT:
        # Little was gained: it was there before the attack, which only the levels tell.
        more = f"{MORE[recovery.measure]} than a model that never saw them does"
        return f"{where} it {more} ({recovery.levels})"
    if control.value is not None and control.value < 0:
        levels = f"{recovery.title} {recovery.attacked.text}, a model that never saw them"
        return f"{back.text} returns {where} ({levels} {recovery.control_attacked.text})"
    compared = "" if control.value is None else f" (a model that never saw them: {control.text})"
    return f"{back.text} returns {where}{compared}"


def _attack_sentences(attacks: Sequence[Attack], found: tuple[Attack, Stage, Recovery] | None) -> list[str]:
    if not attacks:
        return [
            "Whether the answers come back under attack (further training, rounded weights, rephrased "
            "questions, crafted prompts) was not tested."
        ]
    names = ", ".join(attack.title.lower() for attack in attacks)
    stages = sum(len(attack.stages) for attack in attacks)
    tried = f"{names}: {stages} stage{'' if stages == 1 else 's'}"
    if found is None:
        return [f"Attacks were run ({tried}); {_lower(attacks[0].headline)}"]
    back = found[2].back.value
    opening = "the strongest brought back" if back is None or back > 0 else "nothing came back,"
    return [f"Attacks ({tried}): {opening} {in_words(*found)}"]


def _lower(text: str) -> str:
    # "ROUGE-L" keeps its capitals.
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def selection_sentences(run: RunView) -> list[str]:
    """How the checkpoint was chosen, and by which numbers of this report; nothing where no rule was given."""
    chosen = selection_of(run)
    return [chosen["sentence"]] if chosen else []


def selection_of(run: RunView) -> dict[str, Any] | None:
    """The rule, its step and its metrics by their titles; None where no rule was given.

    `step` is the last one where no checkpoint satisfied the rule.
    """
    entry = run.selection
    if not entry:
        return None
    known = titles(run)
    names = [known.get(str(name), str(name).replace("_", " ")) for name in entry.get("metrics") or ()]
    step, of_steps = entry.get("step"), entry.get("of_steps")
    place = "" if step is None else f"{step}" + ("" if of_steps is None else f" of {of_steps}")
    rule = entry.get("rule") or "not recorded"
    if run.is_selected:
        where = f" of step {place}" if place else ""
        shown = f" ({', '.join(names)})" if names else ""
        sentence = (
            f"The checkpoint{where} was selected on these metrics{shown}, by the rule: {rule}. Numbers that "
            "a checkpoint was chosen by look better than the same numbers on new questions would."
        )
    else:
        where = f", {place}," if place else ""
        sentence = (
            f"No checkpoint satisfied the rule ({rule}); the weights of the last step{where} were kept."
        )
    return {
        "sentence": sentence,
        "rule": entry.get("rule"),
        "step": step,
        "of_steps": of_steps,
        "metrics": names,
    }
