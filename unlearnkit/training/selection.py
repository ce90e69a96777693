"""Which checkpoint is kept and when training stops: rules over the metrics that are measured meanwhile.

Pure functions of numbers. The value at step 0 is the target's; step 0 itself is never chosen, for nothing has
been forgotten there. Of two checkpoints with the same value the earlier one wins; a metric that could not be
measured (NaN, null) neither wins nor holds a condition.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean, nearest
from unlearnkit.yamlfile import show

#: Metric -> value; None or NaN where it could not be measured.
Values = Mapping[str, float | None]

_EVERY = re.compile(r"(?:([1-9]\d*) )?(step|epoch)s?")
_WAYS = "'50 steps', 'epoch' or '2 epochs'"


@dataclass(frozen=True)
class Every:
    """Every `count` optimizer steps or epochs."""

    count: int
    unit: Literal["step", "epoch"]

    @classmethod
    def parse(cls, value: Any) -> Every:
        """Read "50 steps", "epoch" or "2 epochs".

        Raises:
            RecipeError: it is written in another way.
        """
        if isinstance(value, str) and (found := _EVERY.fullmatch(value)):
            number, unit = found.groups()
            if number is not None or not value.endswith("s"):
                return cls(int(number or 1), "epoch" if unit == "epoch" else "step")
        raise RecipeError(f"must be {_WAYS}, found {show(value)}{_every_hint(value)}")

    def due(self, step: int, epoch: float) -> bool:
        """Whether it is time after `step` optimizer steps, the last of which ended at `epoch` (a fraction
        inside of one)."""
        if self.unit == "step":
            return step % self.count == 0
        rounds = epoch / self.count
        return round(rounds) >= 1 and abs(rounds - round(rounds)) < 1e-6


def _every_hint(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return f"; did you mean '{value} steps'?"
    number, _, word = value.strip().rpartition(" ") if isinstance(value, str) else ("", "", "")
    unit = nearest(word, ("steps", "epochs", "step", "epoch")) if word else None
    if unit is None or (number and not re.fullmatch(r"[1-9]\d*", number)):
        return ""
    unit = unit.removesuffix("s") + ("s" if number not in ("", "1") else "")
    return f"; did you mean {f'{number} {unit}'.strip()!r}?"


@dataclass(frozen=True)
class Keep:
    """Keep the checkpoint with the lowest (or highest) `metric` among those where `guard` is still at least
    the share `at_least` of the target's value."""

    metric: str
    lowest: bool
    guard: str
    at_least: float = 0.95

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Keep:
        """Read `{lowest: METRIC, with: METRIC, at_least: 0.95}`, with `highest` in place of `lowest`.

        Raises:
            RecipeError: another key or value.
        """
        _known(value, ("lowest", "highest", "with", "at_least"))
        if ("lowest" in value) == ("highest" in value):
            both = "has both lowest and highest; keep one" if "lowest" in value else "has no metric to go by"
            raise RecipeError(f"{both}; write it as {{lowest: METRIC, with: METRIC, at_least: 0.95}}")
        if "with" not in value:
            raise RecipeError(
                "does not say what has to stay, so that a broken model could win; add with: METRIC, such as "
                "with: retain_rouge"
            )
        lowest = "lowest" in value
        share = _number(value, "at_least") if "at_least" in value else 0.95
        if share < 0:
            raise RecipeError(f"has at_least {share:g}; give a share of the target's value, such as 0.95")
        return cls(_name(value, "lowest" if lowest else "highest"), lowest, _name(value, "with"), share)

    @property
    def metrics(self) -> list[str]:
        """The metrics that it reads."""
        return list(dict.fromkeys((self.metric, self.guard)))

    def __str__(self) -> str:
        way = "lowest" if self.lowest else "highest"
        return f"{way} {self.metric} with {self.guard} at least {100 * self.at_least:g} % of the target's"

    def holds(self, values: Values, target: Values) -> bool:
        """Whether enough has stayed: `guard` lost at most the share 1 - at_least of the target's value.

        For a positive value that is guard >= at_least * target; a negative one may fall by that share too.
        """
        now, before = _value(values, self.guard), _value(target, self.guard)
        return now >= before - (1 - self.at_least) * abs(before)  # False with a NaN

    def better(self, value: float, best: float) -> bool:
        """Whether `value` beats the best so far; never when equal, and never a NaN."""
        return value < best if self.lowest else value > best


@dataclass(frozen=True)
class Stop:
    """Stop after `patience` evaluations without a better checkpoint, or once `metric` has crossed `level`."""

    patience: int | None = None
    metric: str | None = None
    below: bool = True
    level: float = 0.0

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Stop:
        """Read `{patience: 3}`, `{when: METRIC, below: 0.2}` or `{when: METRIC, above: 0.05}`.

        Raises:
            RecipeError: another key or value.
        """
        _known(value, ("patience", "when", "below", "above"))
        if set(value) == {"patience"}:
            patience = value["patience"]
            if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
                raise RecipeError(
                    f"has patience {show(patience)}; give a whole number of evaluations, such as 3"
                )
            return cls(patience=patience)
        if set(value) not in ({"when", "below"}, {"when", "above"}):
            raise RecipeError(
                f"has {', '.join(value) or 'no key'}; write {{patience: 3}}, {{when: METRIC, below: 0.2}} or "
                "{when: METRIC, above: 0.05}"
            )
        below = "below" in value
        return cls(None, _name(value, "when"), below, _number(value, "below" if below else "above"))

    @property
    def metrics(self) -> list[str]:
        """The metrics that it reads."""
        return [] if self.metric is None else [self.metric]

    def __str__(self) -> str:
        if self.metric is None:
            return f"stop after {self.patience} evaluations without a better checkpoint"
        return f"stop when {self.metric} is {'below' if self.below else 'above'} {self.level:g}"

    def crossed(self, values: Values) -> bool:
        """Whether the metric has crossed the level; not measured is not crossed."""
        if self.metric is None:
            return False
        value = _value(values, self.metric)
        return value < self.level if self.below else value > self.level


def check_rules(every: Any, keep: Any, stop: Any) -> list[tuple[str, str]]:
    """What is wrong with the three settings: (the setting's name, the rest of a sentence)."""
    found = []
    parsers: dict[str, tuple[Any, Any]] = {
        "every": (every, Every.parse), "keep": (keep, Keep.parse), "stop": (stop, Stop.parse),
    }  # fmt: skip
    for name, (value, parse) in parsers.items():
        try:
            if value is not None:
                parse(value)
        except RecipeError as error:
            found.append((name, str(error)))
    for name, value in (("keep", keep), ("stop", stop)):
        if value is not None and every is None:
            found.append((name, f"needs evaluations during training; add every: {_WAYS}"))
    if isinstance(stop, Mapping) and keep is None and "patience" in stop:
        found.append(
            ("stop", "with patience needs a rule that says which checkpoint is better; add "
             "keep: {lowest: METRIC, with: METRIC}, or write {when: METRIC, below: 0.2}")
        )  # fmt: skip
    return found


class Choice:
    """The rules while training goes on: fed each evaluation in turn, it knows the best so far.

    Attributes:
        target: the values at step 0.
        best: step and value of the checkpoint to keep, if one satisfied the condition.
        stopped: the step at which training had to stop, if it had to.
    """

    def __init__(self, keep: Keep | None, stop: Stop | None) -> None:
        self.keep, self.stop = keep, stop
        self.target: Values | None = None
        self.best: tuple[int, float] | None = None
        self.stopped: int | None = None
        self._without_better = 0

    @property
    def metrics(self) -> list[str]:
        """Every metric that the rules read."""
        rules = [rule for rule in (self.keep, self.stop) if rule is not None]
        return list(dict.fromkeys(name for rule in rules for name in rule.metrics))

    def take(self, step: int, values: Values) -> bool:
        """One evaluation; whether this checkpoint is the best so far."""
        if step == 0:
            self.target = values
            return False
        won = self._wins(values)
        if won and self.keep is not None:
            self.best = step, _value(values, self.keep.metric)
        self._without_better = 0 if won else self._without_better + 1
        if self.stop is not None and self.stopped is None:
            tired = self.stop.patience is not None and self._without_better >= self.stop.patience
            if tired or self.stop.crossed(values):
                self.stopped = step
        return won

    def _wins(self, values: Values) -> bool:
        if self.keep is None or self.target is None or not self.keep.holds(values, self.target):
            return False
        value = _value(values, self.keep.metric)
        return not math.isnan(value) and (self.best is None or self.keep.better(value, self.best[1]))

    def entry(self, last_step: int, of_steps: int) -> dict[str, Any] | None:
        """What the manifest says: rule, step, planned steps, metrics; None without a rule."""
        if not self.metrics:
            return None
        found: dict[str, Any] = {
            "rule": str(self.keep or self.stop), "step": last_step, "of_steps": of_steps,
            "metrics": self.metrics, "satisfied": self.stopped is not None,
        }  # fmt: skip
        if self.keep is not None:
            found["satisfied"] = self.best is not None
            found["step"] = self.best[0] if self.best is not None else last_step
            if self.stop is not None:
                found["stop"] = {"rule": str(self.stop), "step": self.stopped}
        if not found["satisfied"]:
            found["note"] = (
                f"no checkpoint satisfied the rule ({found['rule']}), so the weights of the last step, "
                f"{last_step}, were kept"
            )
        return found


def _value(values: Values, name: str) -> float:
    value = values.get(name)
    return math.nan if value is None else value


def _known(value: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping):
        raise RecipeError(f"must be a section of keys ({', '.join(keys)}), found {show(value)}")
    for key in value:
        if key not in keys:
            raise RecipeError(f"has the unknown key {key!r}{did_you_mean(str(key), keys)}")


def _name(value: Mapping[str, Any], key: str) -> str:
    if not isinstance(value[key], str):
        raise RecipeError(f"has {key}: {show(value[key])}; name a metric of the suite, such as forget_rouge")
    return str(value[key])


def _number(value: Mapping[str, Any], key: str) -> float:
    number = value[key]
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise RecipeError(f"has {key}: {show(number)}; give a number")
    return float(number)
