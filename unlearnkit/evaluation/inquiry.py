"""What stays the same for every subject that a suite is put to, and what becomes of its records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnkit.evaluation.attacks import Subject
from unlearnkit.evaluation.cost import Budget
from unlearnkit.evaluation.examine import Examination
from unlearnkit.evaluation.metrics import MetricResult
from unlearnkit.evaluation.metrics.result import not_measured
from unlearnkit.evaluation.questions import Question
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.requirements import further_set
from unlearnkit.evaluation.results import Evaluation, compute_metrics, described, note_differences
from unlearnkit.evaluation.serving import serving
from unlearnkit.evaluation.suite import Suite
from unlearnkit.files import fingerprint

#: Kinds of metrics that tell members from a holdout.
_TWO_SETS = ("membership", "privleak")


@dataclass
class Inquiry:
    """What stays the same for every subject that a suite is put to."""

    suite: Suite
    budget: Budget
    role: str
    label: str
    absent: Mapping[str, str]
    judge: Judge | None = None

    @property
    def name(self) -> str:
        """Names all that decides what is asked, models and rows aside."""
        judge = None if self.judge is None else self.judge.name
        return fingerprint(
            self.suite.versioned, repr(self.suite.probes), repr(self.suite.lm_eval),
            self.budget.max_new_tokens, judge,
        )  # fmt: skip

    def examination(
        self, subject: Subject, model_name: str, *, plain: Subject | None = None, **shared: Any
    ) -> Examination:
        """A subject under the suite; `plain` is the one before an attack, or at the alpha of its own.

        A model that is under attack itself judges nothing. `shared` is for the `Examination`.
        """
        label = f"{self.label}, {subject.variant}" if subject.variant else self.label
        judge = self.judge
        if plain is not None and judge is not None and judge.target is subject.model:
            judge = None
        return Examination(
            subject, self.suite, model_name, self.budget, label=label, judge=judge,
            plain_rows=(plain or subject).rows, **shared,
        )  # fmt: skip

    def result(
        self, records: Any, examination: Examination, template: Any, other: Evaluation | None, started: float,
        model_name: str, attack: Mapping[str, Any] | None = None,
    ) -> Evaluation:  # fmt: skip
        """Metrics and summary of the records."""
        suite, cost = self.suite, examination.cost
        metrics = compute_metrics(suite, records, other.run if other else None)
        self.explain(metrics, attack)
        meta: dict[str, Any] = {
            "format": 1, "suite": suite.name, "suite_version": suite.version, "split": suite.split,
            "role": self.role, "label": self.label,
            "fingerprint": {
                "model": model_name, "template": template.fingerprint, **_data_names(examination.asked),
            },
            "reference": None if other is None else {
                "label": other.summary.get("label"),
                "fingerprint": other.summary.get("fingerprint", {}).get("model"),
            },
            "absent": dict(self.absent),
            "metrics": {},
            "cost": {**cost.as_json(), "seconds": round(time.perf_counter() - started, 3)},
            "versions": versions(),
        }  # fmt: skip
        if (served := serving(examination.subject.model)) is not None:
            meta["serving"] = served
        if attack is not None:
            meta["attack"] = dict(attack)
        if other is not None:
            note_differences(suite, metrics, meta, other.summary)
        meta["metrics"] = described(metrics, suite)
        return Evaluation(EvalRun(records, meta), metrics, asked=cost.asked)

    def explain(self, metrics: dict[str, MetricResult], attack: Mapping[str, Any] | None) -> None:
        """Why a data set that may be absent is absent, and what an attack on the questions leaves without a
        meaning: members that are asked otherwise than the holdout."""
        for name, result in metrics.items():
            spec = self.suite.metrics[name]
            further = further_set(spec) or ""
            if spec.kind in _TWO_SETS and attack is not None and attack["asks_otherwise"]:
                why = "the attack asks about the members otherwise than about the holdout"
                metrics[name] = not_measured(result.name, why, variant=result.variant)
                continue
            for missing in (spec.dataset or "", further) if not result.measured else ():
                if missing in self.absent:
                    result.note = f"not measured: the data set {missing!r} is absent ({self.absent[missing]})"


class Judge:
    """The target model, loaded when it is first asked."""

    def __init__(self, target: Any, role: str, model: Any, options: Mapping[str, Any] | None) -> None:
        self.target = model if role == "target" else target
        self.options = dict(options or {})
        self._known: tuple[Any, str] | None = None

    def __bool__(self) -> bool:
        return self.target is not None

    @property
    def name(self) -> str | None:
        """Names the target without running it."""
        from unlearnkit.models.load import model_fingerprint
        from unlearnkit.run import model_identity

        if self.target is None:
            return None
        if isinstance(self.target, str | Path):
            return f"{self.target} {model_identity(str(self.target))}"
        return model_fingerprint(self.target)

    def __call__(self) -> tuple[Any, str]:
        from unlearnkit.models.load import load_model, model_fingerprint, to_device

        if self._known is None:
            given = isinstance(self.target, str | Path)
            model = to_device(load_model(str(self.target), **self.options)) if given else self.target
            self._known = model, model_fingerprint(model)
        return self._known


def _data_names(asked: Sequence[Question]) -> dict[str, str]:
    """Names what was asked: by its texts, and by its tokens."""
    return {
        "data": fingerprint([(q.dataset, q.example_id, q.field, q.index, q.answer) for q in asked]),
        "tokenizer": fingerprint(sorted({q.pair for q in asked})),
    }


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import unlearnkit

    found = {"python": platform.python_version(), "unlearnkit": unlearnkit.__version__}
    for package in (
        "torch", "transformers", "peft", "accelerate", "datasets", "scipy", "rouge-score", "lm-eval",
        "bitsandbytes",
    ):  # fmt: skip
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
