"""A suite made light enough to be run during training: some examples of each set, a known retain model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecipeError, RecordsError
from unlearnkit.evaluation.records import JUDGED_LIKELIHOOD, EvalRun
from unlearnkit.evaluation.requirements import compares, needs_retain
from unlearnkit.evaluation.results import Evaluation, is_evaluation, read_evaluation, refuse_other_data
from unlearnkit.evaluation.runner import load_datasets
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.recipe import StreamSpec
from unlearnkit.strict import did_you_mean


def choose(ids: Sequence[str], limit: int | None) -> list[int]:
    """At most `limit` positions, in their order; which examples these are depends on their ids alone."""
    if limit is None or len(ids) <= limit:
        return list(range(len(ids)))
    ranked = sorted(range(len(ids)), key=lambda i: (hashlib.blake2b(ids[i].encode()).digest(), ids[i]))
    return sorted(ranked[:limit])


def from_data_sets(suite: str | Path | Suite, data: Mapping[str, Any] | None, folder: Path) -> Suite:
    """A suite whose `data` may also hold data sets that are in memory; those are written to `folder`."""
    from datasets import Dataset

    given = {
        name: _written(value, folder / f"given-{name}.parquet") if isinstance(value, Dataset) else value
        for name, value in (data or {}).items()
    }
    return suite if isinstance(suite, Suite) else load_suite(suite, given)


def lighten(suite: Suite, limit: int | None, folder: Path) -> tuple[Suite, dict[str, set[str]]]:
    """Cut each data set to at most `limit` examples (see `choose`).

    What is shown before the questions (`shots`) and lists of terms stay whole. No metric is required any more
    that needs the retain model, and the target judges no answers.

    Args:
        folder: the examples that remain of a data set are written here, and have to stay.

    Returns:
        The light suite, and the ids that remain of each data set that was cut.
    """
    from datasets import Dataset

    whole = suite.probes.term_lists | {ask.shots for asks in suite.probes.asks.values() for ask in asks}
    sources, kept = dict(suite.data), {}
    for name, rows in load_datasets(suite).items():
        chosen = [rows[i] for i in choose([row["example_id"] for row in rows], limit)]
        if name not in whole and len(chosen) < len(rows):
            path = _written(Dataset.from_list(chosen), folder / f"{name}.parquet")
            sources[name] = [StreamSpec(path=path)]
            kept[name] = {row["example_id"] for row in chosen}
    # Where no retain model's answers are known, what compares with them is not measured, and no error.
    metrics = {
        name: dataclasses.replace(spec, required=spec.required and not needs_retain(spec))
        for name, spec in suite.metrics.items()
    }
    # The target is no longer there to judge answers once training has begun.
    asks = {probe: asked for probe, asked in suite.probes.asks.items() if probe != JUDGED_LIKELIHOOD}
    probes = dataclasses.replace(suite.probes, asks=asks)
    return dataclasses.replace(suite, data=sources, probes=probes, metrics=metrics), kept


def refuse_unknown_metrics(names: list[str], suite: Suite) -> None:
    """Every metric that a rule names is one of the suite's.

    Raises:
        RecipeError: one is not.
    """
    for name in names:
        if name not in suite.metrics:
            raise RecipeError(
                f"the suite {suite.name}, which is run during training, has no metric {name!r}"
                f"{did_you_mean(name, suite.metrics)}"
            )


def asks_for_retain(suite: Suite) -> bool:
    """Whether the suite compares the forget set with a retain model, and its data allow that."""
    compared = {spec.dataset for spec in suite.metrics.values() if compares(spec)}
    rows = load_datasets(suite)
    return any(row.get("perturbed_answer") for name in compared for row in rows.get(name or "", ()))


def _written(data: Any, path: Path) -> str:
    data.to_parquet(str(path))
    return str(path)


def known_retain(
    reference: str | Path | None, suite: Suite, kept: Mapping[str, set[str]]
) -> Evaluation | None:
    """The retain model's answers to the light suite, where they are known already.

    Args:
        reference: an evaluation's folder, or a model's or run's folder that has one beside it.
        suite: the light suite.
        kept: the ids that remain of each data set that was cut.

    Returns:
        None if there is no such evaluation, or one of other data: what compares with it is then not measured.
    """
    if reference is None:
        return None
    path = Path(reference)
    for folder in (path, path / "eval" / suite.name, path.parent / "eval" / suite.name):
        if not is_evaluation(folder):
            continue
        try:
            found = read_evaluation(folder, suite)
            records = found.run.records
            left_out = [
                name in kept and example not in kept[name]
                for name, example in zip(records["dataset"], records["example_id"], strict=True)
            ]
            run = EvalRun(records[[not out for out in left_out]].reset_index(drop=True), found.run.meta)
            refuse_other_data(suite, load_datasets(suite), run)
        except RecordsError:
            continue
        return Evaluation(run, found.metrics)
    return None
