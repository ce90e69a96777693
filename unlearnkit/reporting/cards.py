"""The key numbers under the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlearnkit.reporting.attack_words import under
from unlearnkit.reporting.attacks import Attack, strongest
from unlearnkit.reporting.kept import kept_ability
from unlearnkit.reporting.membership import strongest as strongest_membership
from unlearnkit.reporting.numbers import count, number
from unlearnkit.reporting.subject import FORGETTING, subject_of
from unlearnkit.reporting.tables import cell
from unlearnkit.reporting.trained import key_metrics
from unlearnkit.reporting.views import Metric, RunView


@dataclass(frozen=True)
class Card:
    """One key number."""

    title: str
    value: str
    raw: float | None
    detail: str
    hint: str
    weaker: bool = False


def cards(run: RunView) -> list[Card]:
    """The key numbers under the verdict."""
    if subject_of(run.evaluations) != FORGETTING:
        return [_card(*one) for one in key_metrics(run)]
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


def evidence_cards(run: RunView, attacks: Sequence[Attack]) -> list[Card]:
    """What came back under the strongest attack, and the strongest membership attack; none where not run."""
    shown = []
    if found := strongest(list(attacks)):
        attack, stage, recovery = found
        control = recovery.control_attacked
        compared = "" if control.value is None else f" (retain model under the same attack: {control.text})"
        beyond = "" if recovery.excess.value is None else f"; beyond the retain model: {recovery.excess.text}"
        shown.append(
            Card(
                "Comes back under attack",
                recovery.back.text,
                recovery.back.value,
                f"{under(attack.name, stage.variant, stage.level)}: {recovery.title} {recovery.attacked.text}"
                f"{compared}, n = {count(recovery.attacked.n)}",
                f"share of what was forgotten{beyond}",
            )
        )
    metric = strongest_membership(run)
    if metric is not None:
        shown.append(
            Card(
                "Membership AUC",
                number(metric.value),
                metric.value,
                ", ".join(part for part in (cell(metric).interval, f"n = {count(metric.n)}") if part),
                "0.5: an attacker can only guess; 1 or 0: every forget example gives itself away",
                metric.weaker,
            )
        )
    return shown
