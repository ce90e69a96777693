"""How much of what should stay did stay: the unlearned model against the target, or the retain model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.numbers import number, percent
from unlearnkit.reporting.views import RunView

KEPT_LIMIT = 0.9
"""The share of the target model's utility that counts as kept."""


@dataclass(frozen=True)
class Kept:
    """How much of an ability is left: `after` out of `before` of the `base` model."""

    what: str
    before: float
    after: float
    base: str
    metric: str

    @property
    def share(self) -> float:
        """1 = all of it."""
        return self.after / self.before

    @property
    def sentence(self) -> str:
        """For the verdict."""
        amounts = f"({number(self.after)} of {number(self.before)})"
        if self.base == "retain":
            return f"Its {self.what} is {percent(self.share)} of the retain model's {amounts}."
        if self.share > 1:
            return f"Its {self.what} did not fall ({number(self.before)} before, {number(self.after)} after)."
        return f"It kept {percent(self.share)} of its {self.what} {amounts}."


@dataclass(frozen=True)
class RetainTerm:
    """What held the rest of the model in place during training; `name` is "none" where nothing did."""

    name: str
    weight: float = 1.0


RETAIN_IS_TRAINED = (
    "The retain examples that were measured are the ones it was trained to keep; how well it kept other "
    "things was not measured."
)
"""For every report whose retain examples come from the data of the retain term."""
_UNLEARNING_WITHOUT = ("grad_ascent",)  # these have no retain term unless the recipe names one
_UNLEARNING_WITH = ("npo", "grad_diff")  # these have nll


def retain_term(run: RunView) -> RetainTerm | None:
    """The retain term of the training; None where it is not known or the method has none to name (sft)."""
    method = str(run.manifest.get("method") or run.recipe.get("method") or "")
    if not run.is_run or method == "sft" or not trains_to_forget(run):
        return None
    if (noted := _mapping(run.manifest.get("retain"))).keys() >= {"term", "weight"}:
        return _term(noted["term"], noted["weight"])
    # Runs of earlier versions say it in their recipe or, where that leaves it to the method, in their log.
    training = _mapping(run.recipe.get("training"))
    weight = training.get("retain_weight", 1.0)
    weight = float(weight) if isinstance(weight, int | float) else 1.0
    logged = {key.removeprefix("retain/") for row in run.log for key in row if key.startswith("retain/")}
    name = training.get("retain") if "retain" in training else next(iter(sorted(logged - {"weight"})), None)
    if "retain" in training and name is None:
        name = "none"
    if name is None and method in _UNLEARNING_WITHOUT + _UNLEARNING_WITH:
        name = "none" if run.log or method in _UNLEARNING_WITHOUT else "nll"
    return None if name is None else _term(name, weight)


def trains_to_forget(run: RunView) -> bool:
    """Whether the training has a forget set; also where it is not known."""
    data = _mapping(run.manifest.get("data")) or _mapping(run.recipe.get("data"))
    return not data or "forget" in data


def _term(name: Any, weight: Any) -> RetainTerm:
    return RetainTerm("none" if weight == 0 else str(name), float(weight))


def retain_is_trained(run: RunView) -> bool:
    """Whether the retain examples of the evaluation are those that the retain term was trained on.

    Judged by the recipe: the suite `forget` asks about the recipe's own data unless it names other data.
    """
    term, trained = retain_term(run), _mapping(run.recipe.get("data")).get("retain")
    if term is None or term.name == "none" or not trained:
        return False
    own = _mapping(_mapping(run.recipe.get("evaluation")).get("data")).get("retain")
    asked = set(run.main.records["dataset"])
    if "retain" not in asked or asked - {"forget", "retain"}:
        return False
    return run.suite == "forget" if own is None else bool(own == trained)


def nothing_to_keep(run: RunView) -> bool:
    """Whether the run was given no retain set, neither for training nor for its evaluation."""
    given = _mapping(run.recipe.get("data")).get("retain") or _mapping(run.manifest.get("data")).get("retain")
    return run.is_run and not given and "retain" not in set(run.main.records["dataset"])


def is_of_trained(run: RunView, kept: Kept) -> bool:
    """Whether what was kept was measured on nothing but the examples of the retain term."""
    return kept.metric.startswith("retain_") and retain_is_trained(run)


def kept_sentence(run: RunView, kept: Kept | None, otherwise: str) -> str:
    """What the verdict says about keeping; `otherwise` where there is nothing to compare with."""
    if kept is None:
        return (
            "What it kept was not measured: no retain set was given." if nothing_to_keep(run) else otherwise
        )
    if is_of_trained(run, kept):
        return f"{kept.sentence} These are examples that it was trained to keep."
    return kept.sentence


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def kept_ability(run: RunView) -> Kept | None:
    """The broadest measure of what should be left that both models have; None where there is none."""
    names = (
        ("model_utility", "utility"),
        ("knowmem_retain", "knowledge (KnowMem) of the retain texts"),  # what MUSE calls utility
        ("retain_rouge", "answer overlap (ROUGE-L) on the retain set"),
        ("retain_probability", "answer probability on the retain set"),
    )
    for base in (run.target, run.retain):
        for name, what in names:
            if base is None or run.unlearned is None:
                continue
            before, after = base.value(name), run.unlearned.value(name)
            if before > 0 and not math.isnan(after):
                return Kept(what, before, after, base.role, name)
    return None
