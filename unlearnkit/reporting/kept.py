"""How much of what should stay did stay: the unlearned model against the target, or the retain model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlearnkit.reporting.numbers import number, percent
from unlearnkit.reporting.views import RunView


@dataclass(frozen=True)
class Kept:
    """How much of an ability is left: `after` out of `before` of the `base` model."""

    what: str
    before: float
    after: float
    base: str

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


def kept_ability(run: RunView) -> Kept | None:
    """The broadest measure of what should be left that both models have; None where there is none."""
    names = (
        ("model_utility", "utility"),
        ("retain_rouge", "answer overlap (ROUGE-L) on the retain set"),
        ("retain_probability", "answer probability on the retain set"),
    )
    for base in (run.target, run.retain):
        for name, what in names:
            if base is None or run.unlearned is None:
                continue
            before, after = base.value(name), run.unlearned.value(name)
            if before > 0 and not math.isnan(after):
                return Kept(what, before, after, base.role)
    return None
