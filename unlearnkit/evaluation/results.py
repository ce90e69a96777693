"""What an evaluation gives: records, metrics and summary; read again from a folder, compared with another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnkit.data.formats import prompt_and_answer
from unlearnkit.errors import RecordsError, UserError
from unlearnkit.evaluation.metrics import KINDS, MetricResult
from unlearnkit.evaluation.questions import answers_of, shown, text_of
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    RECORDS_FILE,
    SUMMARY_FILE,
    EvalRun,
    select,
)
from unlearnkit.evaluation.requirements import compares
from unlearnkit.evaluation.suite import Suite
from unlearnkit.files import read_json

#: Evaluations under attack lie below that folder of the evaluation that they belong to.
ATTACKS = "attacks"
#: Written last into the folder of an attack: what was attacked, how, and the folders of its stages.
STAGES = "stages.json"
#: A combined model at other alphas lies below that folder of its evaluation.
ALPHAS = "alphas"
#: Written last into it: whose alphas, and which, the model's own one among them.
ALPHAS_FILE = "alphas.json"


@dataclass
class Evaluation:
    """An evaluated model: records, metrics and the summary that is written beside them.

    `asked` counts the pairs and prompts that the model was run on; what was known already is not asked.
    `attacked` are the evaluations of the same model under attack, a stage each; `others` those of a combined
    model at other alphas than its own.
    """

    run: EvalRun
    metrics: dict[str, MetricResult]
    asked: int = 0
    attacked: list[Evaluation] = field(default_factory=list)
    others: dict[float, Evaluation] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return self.run.meta

    def __getitem__(self, name: str) -> float:
        """A metric's value; NaN where it could not be measured."""
        return self.metrics[name].value

    @property
    def alphas(self) -> dict[float, Evaluation]:
        """A combined model's evaluations by alpha, smallest first, this one among them; empty if there is no
        other."""
        if not self.others:
            return {}
        return dict(sorted({self.summary["serving"]["alpha"]: self, **self.others}.items()))

    @property
    def stage(self) -> tuple[str, str] | None:
        """(attack, variant) of an evaluation under attack."""
        attack = self.summary.get("attack")
        return (attack["name"], attack["variant"]) if attack else None

    def under(self, stage: tuple[str, str], options: Mapping[str, Any] | None = None) -> Evaluation | None:
        """The evaluation of this model at the same stage of the same attack (with the same options)."""
        return next(
            (
                one
                for one in self.attacked
                if one.stage == stage and options in (None, one.summary["attack"]["options"])
            ),
            None,
        )


def compute_metrics(suite: Suite, run: Any, retain: Any = None) -> dict[str, MetricResult]:
    """Every metric of the suite, from records alone."""
    results = {}
    for name, spec in suite.metrics.items():
        where = {} if spec.dataset is None else {"dataset": spec.dataset}
        results[name] = KINDS[spec.kind](run, **where, retain=retain, **spec.options)
    return results


def described(metrics: Mapping[str, MetricResult], suite: Suite) -> dict[str, dict[str, Any]]:
    """The metrics as `summary.json` holds them."""
    return {
        name: {
            **result.as_json(),
            "title": suite.metrics[name].title or name.replace("_", " "),
            "group": suite.metrics[name].group,
        }
        for name, result in metrics.items()
    }


def is_evaluation(path: Any) -> bool:
    """Whether `path` is the folder of an evaluation."""
    return isinstance(path, str | Path) and (Path(path) / RECORDS_FILE).exists()


def read_evaluation(folder: str | Path, suite: Suite, **entries: Any) -> Evaluation:
    """An evaluation from its folder, with the suite's metrics computed anew from its records.

    Args:
        entries: what its summary says otherwise, such as its role in another run.

    Raises:
        RecordsError: a broken folder.
    """
    run = EvalRun.load(folder)
    metrics = compute_metrics(suite, run)
    found = Evaluation(
        EvalRun(run.records, {**run.meta, "metrics": described(metrics, suite), **entries}), metrics
    )
    for stage in stage_folders(folder, found.summary.get("fingerprint")):
        found.attacked.append(read_evaluation(stage, suite, **entries))
    for alpha, where in alpha_folders(folder, found.summary.get("fingerprint")).items():
        if where != Path(folder):
            found.others[alpha] = read_evaluation(where, suite, **entries)
    return found


def stage_folders(folder: str | Path, of: Any) -> list[Path]:
    """The finished stages of all attacks on the model, data and template that `of` names.

    What an earlier evaluation in the same folder left behind does not belong to this one.
    """
    found = []
    for listed in sorted((Path(folder) / ATTACKS).glob(f"*/{STAGES}")):
        written = read_json(listed)
        if isinstance(written, dict) and written.get("of") == of:
            found += [listed.parent / name for name in written.get("stages", ())]
    return found


def alpha_folder(folder: str | Path, alpha: float) -> Path:
    """Where a combined model's evaluation at another alpha than its own lies."""
    return Path(folder) / ALPHAS / str(float(alpha))


def alpha_folders(folder: str | Path, of: Any) -> dict[float, Path]:
    """The folders of a finished sweep over alphas of the model, data and template that `of` names, by alpha.

    The model's own alpha has `folder` itself. Empty where there was no sweep; what an earlier evaluation in
    the same folder left behind does not belong to this one.
    """
    listed = Path(folder) / ALPHAS / ALPHAS_FILE
    written = read_json(listed) if listed.is_file() else None
    if not isinstance(written, dict) or written.get("of") != of:
        return {}
    places = {float(alpha): alpha_folder(folder, alpha) for alpha in written.get("alphas", ())}
    own = written.get("own")
    return {alpha: Path(folder) if alpha == own else place for alpha, place in places.items()}


def save_evaluation(result: Evaluation, folder: str | Path) -> None:
    """Write records and summary; where the same answers lie there already, what they cost stays."""
    try:
        old = read_json(Path(folder) / SUMMARY_FILE)
    except UserError:
        old = {}
    same = isinstance(old, dict) and old.get("fingerprint") == result.summary["fingerprint"]
    if same and not result.asked and "cost" in old:
        result.summary["cost"] = old["cost"]
    result.run.save(folder)


def refuse_other_data(
    suite: Suite, rows: Mapping[str, Sequence[Mapping[str, Any]]], reference: EvalRun
) -> None:
    """A comparison with a reference that answered something else would be a number without a meaning.

    Raises:
        RecordsError: another set of examples or answers, in a data set that a metric compares.
    """
    compared = {suite.metrics[metric].dataset or "forget" for metric in _comparing(suite)}
    asks = {ask.dataset: ask for ask in suite.probes.of(ANSWER_LIKELIHOOD)}
    for name in compared & set(rows) & set(asks):
        own = {answer for row in rows[name][: asks[name].limit] for answer in _answers(row)}
        records = select(reference, ANSWER_LIKELIHOOD, name)
        columns = (records[key] for key in ("example_id", "field", "index", "reference_text", "prompt"))
        theirs = set(zip(*columns, strict=True))
        documents = {row["example_id"] for row in rows[name] if row.get("text") is not None}
        theirs = {(*a[:3], "", "") if a[0] in documents else a for a in theirs}
        if own != theirs:
            examples = len({answer[0] for answer in own ^ theirs})
            raise RecordsError(
                f"the reference evaluation has other examples or answers in {name!r} than this suite's data "
                f"({examples} example(s) differ); evaluate the reference again on the same data"
            )


def note_differences(suite: Suite, metrics: Mapping[str, MetricResult], own: Any, reference: Any) -> None:
    """Say in the metrics that compare two models what was not the same for both summaries."""
    pairs = {
        "a version of the suite": [(s.get("suite"), s.get("suite_version")) for s in (own, reference)],
        "a template": [s.get("fingerprint", {}).get("template") for s in (own, reference)],
    }
    other = [what for what, (one, two) in pairs.items() if two is not None and one != two]
    for name in _comparing(suite):
        if other and metrics[name].measured:
            note = f"the reference was evaluated with {' and '.join(other)} of its own"
            metrics[name].note = "; ".join(filter(None, (metrics[name].note, note)))


def _comparing(suite: Suite) -> list[str]:
    """The metrics that compare with a retain model."""
    return [name for name, spec in suite.metrics.items() if compares(spec)]


def _answers(row: Mapping[str, Any]) -> list[tuple[str, str, int, str, str]]:
    name = row["example_id"]
    if row.get("text") is not None:  # a document's id stands for its text
        return [(name, ANSWER, 0, "", "")]
    asked = shown(prompt_and_answer(row)[0])
    return [(name, field, index, text_of(answer), asked) for field, index, answer in answers_of(row)]
