"""What an evaluation gives: records, metrics and summary; read again from a folder, compared with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnkit.evaluation.metrics import KINDS, MetricResult
from unlearnkit.evaluation.records import RECORDS_FILE, EvalRun
from unlearnkit.evaluation.suite import Suite


@dataclass
class Evaluation:
    """An evaluated model: records, metrics and the summary that is written beside them."""

    run: EvalRun
    metrics: dict[str, MetricResult]

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return self.run.meta

    def __getitem__(self, name: str) -> float:
        """A metric's value; NaN where it could not be measured."""
        return self.metrics[name].value


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
    return Evaluation(
        EvalRun(run.records, {**run.meta, "metrics": described(metrics, suite), **entries}), metrics
    )
