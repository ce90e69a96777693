"""What is served: one model, or several networks whose predictions are added up, and what follows from that.

Where the unlearned model is such a combination, the model that was to forget is unchanged and still holds
everything. That must not be missed by somebody who reads a report for what became of the data, so it stands
in the verdict, under "What is served" and among the limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unlearnkit.reporting.distilled import distilled_from, under_adapter
from unlearnkit.reporting.kept import KEPT_LIMIT, Kept, kept_ability
from unlearnkit.reporting.numbers import count
from unlearnkit.reporting.views import EvalView, RunView

if TYPE_CHECKING:
    from unlearnkit.reporting.verdict import Verdict


@dataclass(frozen=True)
class Kind:
    """The words for one way of combining networks."""

    noun: str
    """"pair" or "combination"."""
    parts: str
    """Its networks."""
    how: str
    """How their predictions become one, with the value of alpha."""
    unchanged: str
    """What was not changed, and what does the forgetting in its place."""
    without: str
    """Without what the unchanged network answers as before."""
    still: str
    """What its weights are still worth, at the end of the headline of something forgotten."""


KINDS = {
    "uld": Kind(
        "pair",
        "the target model and a small assistant",
        "The assistant's log-probabilities, times alpha = {value}, are taken away from the target model's.",
        "The target model was not changed, and its weights still hold everything that was to be forgotten. "
        "Forgetting is the work of the assistant, which was itself trained to remember the forget set.",
        "its assistant",
        "the target model's weights still hold {them}",
    ),
    "offset": Kind(
        "combination",
        "the target model and two others, one that was trained to forget and the same one before",
        "The difference of the two others' log-probabilities, times alpha = {value}, is added to the target "
        "model's.",
        "The target model was not changed, and its weights still hold everything that was to be forgotten. "
        "Forgetting is the work of the difference between the two others.",
        "the two others",
        "the target model's weights still hold {them}",
    ),
    "value": Kind(
        "pair",
        "a base model and a value network, which was trained to foresee what training would add to it",
        "The value network's log-probabilities, times alpha = {value}, are added to the base model's.",
        "The base model was not changed: whatever its weights held, they still hold. What the pair does "
        "otherwise is the work of the value network.",
        "the value network",
        "the base model's weights are as they were",
    ),
}
_OTHER = Kind(
    "combination",
    "several networks",
    "Their log-probabilities are added up, those of all but the first weighted by alpha = {value}.",
    "The first network was not changed: whatever its weights held, they still hold. What the "
    "combination does otherwise is the work of the others.",
    "the others",
    "the first network's weights are as they were",
)
_FIRST = {"value": "base model"}
DISTIL = "Serve it whole, or make one model of it with unlearnkit export RUN --distill and evaluate that."
_FORGOTTEN = ("forgotten", "weaker_evidence_forgotten", "weaker_evidence_partly")
"""Codes whose headline would be taken for more than the behaviour of the whole."""


@dataclass(frozen=True)
class Serving:
    """How a combination was served while it was measured.

    `weights` are those of the networks in their order; the first is the unchanged one, with weight 1.
    `parameters` are the sizes of the networks, where they were recorded.
    """

    kind: str
    weights: Mapping[str, float]
    alpha: float | None
    top_logit_filter: float | None
    filtered_likelihoods: str
    filtered_generation: str
    parameters: Mapping[str, int]

    @property
    def words(self) -> Kind:
        """The words for its kind."""
        return KINDS.get(self.kind, _OTHER)

    @property
    def first(self) -> str:
        """The network that was not changed."""
        return _FIRST.get(self.kind, "target model" if self.kind in KINDS else "first network")

    @property
    def value(self) -> str:
        """Alpha, which can be changed without training, as text."""
        return "not recorded" if self.alpha is None else f"{self.alpha:g}"

    @property
    def short(self) -> str:
        """In a table: "pair, alpha 0.75, filter 0.01"."""
        rate = "no filter" if self.top_logit_filter is None else f"filter {self.top_logit_filter:g}"
        return f"{self.words.noun}, alpha {self.value}, {rate}"


def serving_of(view: EvalView | None) -> Serving | None:
    """How the model of an evaluation was served; None for one ordinary model."""
    entry = view.summary.get("serving") if view is not None else None
    if not isinstance(entry, dict) or not entry.get("kind"):
        return None
    kind = str(entry["kind"])
    weights = {str(name): float(one) for name, one in (entry.get("weights") or {}).items()}
    rate = _number(entry.get("top_logit_filter"))
    return Serving(
        kind,
        weights,
        _alpha(kind, entry, weights),
        rate,
        str(entry.get("filtered_likelihoods") or ""),
        str(entry.get("filtered_generation") or ""),
        {str(name): int(size) for name, size in (entry.get("parameters") or {}).items()},
    )


def _alpha(kind: str, entry: Mapping[str, Any], weights: Mapping[str, float]) -> float | None:
    """The size of all weights but the first; None where it is not known."""
    if (given := _number(entry.get("alpha"))) is not None:
        return given
    others = list(weights.values())[1:]
    return abs(others[0]) if kind in KINDS and others else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def serving(run: RunView) -> Serving | None:
    """How the model that a report is about was served."""
    return serving_of(run.unlearned or run.main)


def terms(run: RunView) -> set[str]:
    """What the glossary must explain of how the model was served."""
    served = serving(run)
    if served is None:
        return {"distillation"} if distilled_from(run) else set()
    named = {"assistant"} if served.kind == "uld" else set()
    filtered = {"filter"} if served.top_logit_filter is not None else set()
    return {"alpha", "distillation"} | named | filtered


def with_serving(verdict: Verdict, run: RunView) -> Verdict:
    """The verdict in words that fit a combination: what it is, and that no weights forgot anything."""
    served = serving(run)
    if served is None:
        return replace(verdict, sentences=(*under_adapter(run), *verdict.sentences))
    headline, words = verdict.headline, served.words
    if headline.startswith("The model "):
        headline = f"The {words.noun} {headline.removeprefix('The model ')}"
    told = (
        f"Measured is a {words.noun} that must be served together, with alpha {served.value}: "
        f"{words.parts}. {words.unchanged}"
    )
    tone = verdict.tone
    if verdict.code in _FORGOTTEN:
        headline = f"{headline.rstrip('.')}; {words.still.format(them='them')}."
        tone = "mixed" if tone == "good" else tone
    sentences = (told, *verdict.sentences, *_remedy(verdict, served, kept_ability(run)))
    return replace(verdict, tone=tone, headline=headline, sentences=sentences)


def _remedy(verdict: Verdict, served: Serving, kept: Kept | None) -> list[str]:
    """The remedy that costs no training, where there is something to mend."""
    if verdict.code in ("collapsed", "over_forgotten", "forgotten_utility_lost"):
        size = "smaller"
    elif verdict.code in ("not_forgotten", "weaker_evidence_not_forgotten", "weaker_evidence_partly"):
        if kept is not None and kept.share < KEPT_LIMIT:
            return []  # a larger alpha would take more, a smaller one forget less: the assistant must improve
        size = "larger"
    else:
        return []
    if served.alpha is None:
        return []
    return [f"Another remedy, which needs no training, is to serve it with a {size} alpha."]


def served_lines(run: RunView) -> list[str]:
    """What is served, for the box under the verdict; empty for one model that was not distilled."""
    served = serving(run)
    if served is None:
        return under_adapter(run)
    words = served.words
    lines = [
        f"A {words.noun}: {words.parts}. {words.how.format(value=served.value)}",
        f"The {served.first} was not changed, and without {words.without} it answers as before. {DISTIL}",
    ]
    if sizes := _sizes(served):
        lines.insert(1, sizes)
    return lines + _filter_lines(served)


def _sizes(served: Serving) -> str:
    if not served.parameters:
        return ""
    sizes = ", ".join(f"{name} {count(size)}" for name, size in served.parameters.items())
    return f"Parameters: {sizes}."


def _filter_lines(served: Serving) -> list[str]:
    """What became of the words that the first network itself finds unlikely, by use."""
    if served.top_logit_filter is None:
        return ["No filter: every token's score is changed, also of those that no network expects."]
    what = f"Tokens that the {served.first} finds far less likely than its first choice (filter rate "
    return [
        f"{what}{served.top_logit_filter:g}) are {_GENERATION.get(served.filtered_generation, 'filtered')} "
        f"in generated answers{_mode(served.filtered_generation)}; where likelihoods are measured, "
        f"{_LIKELIHOODS.get(served.filtered_likelihoods, 'they are filtered')}"
        f"{_mode(served.filtered_likelihoods)}."
    ]


_GENERATION = {"removed": "never chosen", "neutral": "left as they are"}
_LIKELIHOODS = {
    "neutral": "the other networks have no say about them, so that no right answer becomes impossible",
    "removed": "they count as impossible",
}


def _mode(mode: str) -> str:
    return f" (mode {mode})" if mode else ""


def served_limit(served: Serving) -> str:
    """What a measurement of a combination does not show, and what a reader must not take it for."""
    words = served.words
    return (
        f"What was measured holds for the {words.noun} served as a whole. In the weights nothing was "
        f"forgotten: who has them, or can ask the {served.first} without {words.without}, gets what it said "
        "before. A model distilled from it is another model, and must be evaluated by itself."
    )
