"""What attacks, membership tests and the choice of the checkpoint add to a verdict on behaviour.

The verdict on the suite's questions comes first (`verdict`); what is found here can only weaken it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearnkit.reporting import membership
from unlearnkit.reporting.attack_words import under
from unlearnkit.reporting.attacks import Attack, Stage, share_sentence, strongest
from unlearnkit.reporting.recoveries import Recovery
from unlearnkit.reporting.tables import titles
from unlearnkit.reporting.views import RunView

if TYPE_CHECKING:
    from unlearnkit.reporting.verdict import Verdict

RETURNS_LIMIT = 0.1
"""From this share back beyond the control on (and an interval above 0), forgotten answers count as returning:
a tenth is more than what the choice of examples moves in the usual 40 to 400 of them, and it is a number that
somebody who asked for deletion would want to know."""
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
    sentences = (*_attack_sentences(attacks, found), *membership.sentences(run), *selection_sentences(run))
    return replace(verdict, sentences=(*verdict.sentences, *sentences))


def returns(recovery: Recovery) -> bool:
    """Whether this much back is more than chance and more than RETURNS_LIMIT."""
    shown = recovery.judged
    return shown.value is not None and shown.value >= RETURNS_LIMIT and (shown.low is None or shown.low > 0)


def _returned(verdict: Verdict, attack: Attack, stage: Stage, recovery: Recovery) -> Verdict:
    control = (
        "" if recovery.control.value is None else f" (a model that never saw them: {recovery.control.text})"
    )
    where = under(attack.name, stage.variant, stage.level)
    opening = (
        "Forgotten by behaviour" if verdict.code.startswith("forgotten") else "Repeated less by behaviour"
    )
    value = recovery.judged.value or 0.0
    return replace(
        verdict,
        code=verdict.code + RETURNS,
        tone="bad" if value >= MOSTLY_BACK else "mixed",
        headline=f"{opening}, but {recovery.back.text} returns {where}{control}.",
        sentences=(verdict.headline, *verdict.sentences),
    )


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
    nothing = (found[2].back.value or 0.0) <= 0
    opening = "nothing came back," if nothing else "the strongest brought back"
    text = f"Attacks ({tried}): {opening} {share_sentence(*found)}."
    if found[2].excess.value is not None:
        excess = found[2].excess
        text += f" Beyond that control it is {excess.text} ({excess.interval or 'no interval'})."
    return [text]


def _lower(text: str) -> str:
    # "ROUGE-L" keeps its capitals.
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def selection_sentences(run: RunView) -> list[str]:
    """That the checkpoint was chosen by numbers of this report, and by which; nothing where it was not."""
    chosen = selection_of(run)
    return [chosen["sentence"]] if chosen else []


def selection_of(run: RunView) -> dict[str, Any] | None:
    """The rule, its step and its metrics by their titles; None where the last step was kept."""
    entry = run.selection
    if not entry:
        return None
    known = titles(run)
    names = [known.get(str(name), str(name).replace("_", " ")) for name in entry.get("metrics") or ()]
    step, of_steps = entry.get("step"), entry.get("of_steps")
    where = "" if step is None else f" of step {step}" + ("" if of_steps is None else f" of {of_steps}")
    shown = f" ({', '.join(names)})" if names else ""
    sentence = (
        f"The checkpoint{where} was selected on these metrics{shown}, by the rule: "
        f"{entry.get('rule') or 'not recorded'}. Numbers that a checkpoint was chosen by look better than "
        f"the "
        "same numbers on new questions would."
    )
    return {
        "sentence": sentence,
        "rule": entry.get("rule"),
        "step": step,
        "of_steps": of_steps,
        "metrics": names,
    }
