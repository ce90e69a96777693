"""evaluate(): every question of a suite asked once, metrics of the records, the same under each attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.evaluation import capability
from unlearnkit.evaluation.attacks import Attack, Subject
from unlearnkit.evaluation.cost import Budget
from unlearnkit.evaluation.examine import Examination
from unlearnkit.evaluation.metrics import MetricResult
from unlearnkit.evaluation.metrics.result import not_measured
from unlearnkit.evaluation.questions import Question
from unlearnkit.evaluation.records import JUDGED_LIKELIHOOD, EvalRun
from unlearnkit.evaluation.requirements import check_inputs
from unlearnkit.evaluation.results import (
    Evaluation,
    compute_metrics,
    described,
    is_evaluation,
    note_differences,
    read_evaluation,
    refuse_other_data,
    save_evaluation,
)
from unlearnkit.evaluation.share import is_main
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.files import fingerprint
from unlearnkit.recipe import TemplateSpec


def evaluate(
    model: Any,
    tokenizer: Any = None,
    suite: str | Path | Suite = "tofu",
    data: Mapping[str, Any] | None = None,
    reference: Any = None,
    *,
    target: Any = None,
    attacks: Sequence[str | Attack] | Mapping[str, Mapping[str, Any]] = (),
    template: TemplateSpec | None = None,
    output: str | Path | Callable[[Evaluation], Path] | None = None,
    batch_tokens: int = 16384,
    max_new_tokens: int | None = None,
    role: str = "unlearned",
    label: str = "",
    cache: bool = True,
    progress: bool = True,
    load_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Run a suite on a model, and under each attack once more.

    Called by all processes of a distributed run, it shares the questions out among them; every process gets
    the whole result, and the first one writes it.

    Args:
        model: a causal language model, or the path or hub id of one (an adapter's folder works too).
        tokenizer: its tokenizer; by default the one saved with the model.
        suite: a shipped suite's name, a YAML file, or a loaded suite.
        data: overrides of the suite's data section: {"split": "forget10", "root": FOLDER, "forget": FILE,
            ...}; under "lm_eval" those of its tasks.
        reference: the retain model, for the metrics that compare with one: an Evaluation, the folder of one,
            or a model (object, folder or hub id), which is then evaluated on the same data.
        target: the model before unlearning (object, folder or hub id), which judges how likely the answers
            are where the suite asks for that.
        attacks: names of attacks (`unlearnkit ls attacks`), attacks, or a mapping from names to options.
        template: how prompts are written; must be the one used in training.
        output: a folder for `records.parquet` and `summary.json`, or what names it when they are known;
            attacked ones lie in `attacks/` below it.
        batch_tokens: padded tokens at most in one forward pass; results do not depend on it.
        max_new_tokens: bound of a generation, instead of the suite's.
        role, label: what the model is in a report ("target", "retain" or "unlearned") and what it is called.
        cache: keep results on disk by content, and reuse them.
        progress: show progress bars.
        load_options: how a model that is given by its path is loaded: dtype, revision, attn_implementation.
        target_options: the same for the target model.

    Raises:
        RecipeError, DataError, ModelError, RecordsError: before the model is run where that is possible.
    """
    from unlearnkit.data.formats import Template
    from unlearnkit.evaluation.attacked import make_attacks, under_attack
    from unlearnkit.models.load import (
        keep_packed_weights,
        load_model,
        load_tokenizer,
        model_fingerprint,
        to_device,
    )
    from unlearnkit.models.precision import own_precision

    started = time.perf_counter()
    if isinstance(suite, Suite) and data:
        raise RecipeError(
            "`data` changes a suite while it is loaded; give it to load_suite(), or the suite by its name"
        )
    suite = suite if isinstance(suite, Suite) else load_suite(suite, data)
    if suite.lm_eval is not None:
        capability.check(suite.lm_eval)
    made = make_attacks(attacks)
    rows, absent = load_rows(suite)
    check_inputs(suite, rows, has_retain=reference is not None)
    if is_evaluation(reference):  # read at once, so that a broken one is refused before any model runs
        reference = read_evaluation(reference, suite)
    if isinstance(reference, Evaluation):
        refuse_other_data(suite, rows, reference.run)
    if tokenizer is None:
        path = str(model) if isinstance(model, str | Path) else model.config._name_or_path
        if not path:
            raise ModelError(
                "the model was not loaded from anywhere, so its tokenizer is not known; give `tokenizer`"
            )
        tokenizer = load_tokenizer(path)
    written = Template.for_tokenizer(tokenizer, template)
    budget = Budget(batch_tokens, max_new_tokens, cache, progress)
    if isinstance(model, str | Path):
        model = to_device(load_model(str(model), **(load_options or {})))
    judge = Judge(target, role, model, target_options) if JUDGED_LIKELIHOOD in suite.probes.asks else None
    inquiry = Inquiry(suite, budget, role, label or role, absent, judge)
    subject = Subject(keep_packed_weights(model), tokenizer, written, rows)
    for one in made.values():  # an attack that cannot be made is refused before anything is asked
        if callable(refuse := getattr(one, "refuse", None)):
            refuse(subject)
    name = model_fingerprint(model)
    with own_precision(model):
        examination = inquiry.examination(subject, name)
        records = examination.records()
    other = _reference(reference, suite, tokenizer, template, budget)
    result = inquiry.result(records, examination, written, other, started, name)
    folder = output(result) if callable(output) else None if output is None else Path(output)
    if folder is not None and is_main():
        save_evaluation(result, folder)
    if made:
        result.attacked = under_attack(inquiry, subject, made, result, other, folder)
    return result


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

    def examination(self, subject: Subject, model_name: str, *, plain: Subject | None = None) -> Examination:
        """A subject under the suite; `plain` is the one before an attack.

        A model that is under attack itself judges nothing.
        """
        label = f"{self.label}, {subject.variant}" if subject.variant else self.label
        judge = self.judge
        if plain is not None and judge is not None and judge.target is subject.model:
            judge = None
        return Examination(
            subject, self.suite, model_name, self.budget, label=label, judge=judge,
            plain_rows=(plain or subject).rows,
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
            holdout = str(spec.options.get("holdout", "holdout")) if spec.kind in _TWO_SETS else ""
            if holdout and attack is not None and attack["asks_otherwise"]:
                why = "the attack asks about the members otherwise than about the holdout"
                metrics[name] = not_measured(result.name, why, variant=result.variant)
                continue
            for missing in (spec.dataset or "", holdout) if not result.measured else ():
                if missing in self.absent:
                    result.note = f"{result.note} ({self.absent[missing]})"


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


def load_rows(suite: Suite) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The rows of each data set that has a source, and why others are absent that may be.

    Raises:
        DataError: a set that must be there cannot be read, or none has a source although something is asked.
    """
    from unlearnkit.data.streams import load_stream

    rows: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for key, sources in suite.data.items():
        if not sources:
            absent[key] = f"no {key} set was given"
            continue
        try:
            rows[key] = load_stream(sources, root=suite.root, name=f"evaluation.data.{key}").to_list()
        except DataError as error:
            if key not in suite.optional:
                raise
            absent[key] = str(error)
    if not rows and suite.lm_eval is None:
        raise DataError(f"suite {suite.name} has no data; give data.forget (and data.retain)")
    return rows, absent


def load_datasets(suite: Suite) -> dict[str, list[dict[str, Any]]]:
    """The rows of each data set that has a source (see `load_rows`)."""
    return load_rows(suite)[0]


def _data_names(asked: Sequence[Question]) -> dict[str, str]:
    """Names what was asked: by its texts, and by its tokens."""
    return {
        "data": fingerprint([(q.dataset, q.example_id, q.field, q.index, q.answer) for q in asked]),
        "tokenizer": fingerprint(sorted({q.pair for q in asked})),
    }


def _reference(
    reference: Any, suite: Suite, tokenizer: Any, template: TemplateSpec | None, budget: Budget
) -> Evaluation | None:
    """The retain model's evaluation: as given, or made now on the same data."""
    if reference is None or isinstance(reference, Evaluation):
        return reference
    own = None if isinstance(reference, str | Path) else tokenizer
    return evaluate(
        reference, own, suite, template=template, role="retain", label="retain model",
        batch_tokens=budget.batch_tokens, max_new_tokens=budget.max_new_tokens, cache=budget.cache,
        progress=budget.progress,
    )  # fmt: skip


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
