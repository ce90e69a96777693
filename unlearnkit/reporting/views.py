"""What a report reads, as plain values: a metric, an evaluation of one model, a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("target", "unlearned", "retain")
"""The three models of a report, in the order of its tables."""


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation, as its summary.json holds it.

    `value`, `low` and `high` are NaN where nothing was measured; `note` then says why.
    """

    name: str
    title: str
    value: float
    low: float
    high: float
    n: int
    unscored: tuple[str, ...]
    variant: str
    note: str
    group: str
    extra: dict[str, Any]
    weaker: bool = False
    """Weaker evidence: no retain model stands behind the number."""

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class EvalView:
    """One evaluated model: its summary and its records."""

    folder: Path
    role: str
    label: str
    summary: dict[str, Any]
    metrics: dict[str, Metric]
    records: pd.DataFrame

    @property
    def title(self) -> str:
        """What the model is, and what it is called where it has a name of its own."""
        named = self.label != self.role
        return f"{self.role.capitalize()}: {self.label}" if named else f"{self.role.capitalize()} model"

    def value(self, name: str) -> float:
        """The value of a metric; NaN where it was not measured."""
        metric = self.metrics.get(name)
        return metric.value if metric else math.nan

    def fingerprint(self, part: str) -> Any:
        """The fingerprint of "model", "data", "tokenizer" or "template"; None where it was not recorded."""
        return (self.summary.get("fingerprint") or {}).get(part)


@dataclass(frozen=True)
class AttackView:
    """One stage of one attack ("relearn", "10 steps") and the models that it was run on."""

    name: str
    variant: str
    level: float | None
    options: dict[str, Any]
    facts: dict[str, Any]
    seen: frozenset[str]
    """Ids of the examples that the attack itself disclosed; they say nothing about what came back."""
    evaluations: dict[str, EvalView]
    otherwise: frozenset[str] = frozenset()
    """Roles that were attacked by the same name but with other options, and so do not compare."""

    @property
    def title(self) -> str:
        """The attack and its stage, for messages."""
        return f"{self.name}, {self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class AlphaView:
    """The metrics of a combination of networks, served with one alpha."""

    alpha: float
    metrics: dict[str, Metric]
    summary: dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """Everything a report shows about one run."""

    folder: Path
    name: str
    suite: str
    main: EvalView
    evaluations: dict[str, EvalView]
    manifest: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    gaps: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    attacks: tuple[AttackView, ...] = ()
    others: dict[str, dict[str, EvalView]] = field(default_factory=dict)
    """Further suites of the run: suite -> role -> evaluation."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations during training, in the order of their steps; step 0 is the target model."""
    alphas: tuple[AlphaView, ...] = ()
    """The unlearned model served with one alpha after another, where it was so evaluated; its own is one."""

    @property
    def target(self) -> EvalView | None:
        """The evaluation before unlearning."""
        return self.evaluations.get("target")

    @property
    def unlearned(self) -> EvalView | None:
        """The evaluation after unlearning."""
        return self.evaluations.get("unlearned")

    @property
    def retain(self) -> EvalView | None:
        """The evaluation of the gold standard."""
        return self.evaluations.get("retain")

    @property
    def selection(self) -> dict[str, Any]:
        """The rule by which a checkpoint was to be kept, and its metrics; empty where there was none."""
        found = self.manifest.get("selection")
        return found if isinstance(found, dict) else {}

    @property
    def is_selected(self) -> bool:
        """Whether a checkpoint satisfied the rule; else the last step was kept, chosen by no number."""
        return bool(self.selection) and self.selection.get("satisfied") is not False

    @property
    def is_run(self) -> bool:
        """False for a single evaluation folder without a run around it."""
        return self.folder != self.main.folder
