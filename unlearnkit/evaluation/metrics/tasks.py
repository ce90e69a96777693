"""Scores of lm-evaluation-harness's tasks, read from its records: lm-eval's own numbers, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from unlearnkit.evaluation.metrics.formulas import FloatArray
from unlearnkit.evaluation.metrics.result import (
    MetricResult,
    check_choice,
    interval,
    not_measured,
    resample_counts,
)
from unlearnkit.evaluation.records import LM_EVAL, Records, frame_of

#: Metrics of whole texts, as functions of the nats per word or byte (or text) over all texts.
_OF_NATS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "word_perplexity": np.exp,
    "byte_perplexity": np.exp,
    "perplexity": np.exp,
    "bits_per_byte": lambda nats: nats / np.log(2),
}


def task_score(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    field: str | None = None,
    weight: Literal["documents", "tasks"] = "documents",
    seed: int = 0,
) -> MetricResult:
    """A task's score, or that of all tasks of a group: mean over documents, with its bootstrap interval.

    Perplexities are functions of the mean over words or bytes, as in lm-eval.

    Args:
        dataset: a task, group or tag; any part of the path of a record's data set ("mmlu_stem" of
            "mmlu/mmlu_stem/mmlu_astronomy").
        field: lm-eval's name of the metric ("acc", "acc_norm", "exact_match,flexible-extract"); by default
            the task's first. Without a filter's name the first filter is taken.
        weight: each document counts the same, or each task (`weight_by_size: false` of lm-eval's groups).
        seed: draws the interval; documents are drawn within their tasks where tasks count the same.

    Raises:
        RecipeError: an option has an unknown value.
    """
    check_choice("weight", weight, ("documents", "tasks"))
    frame = frame_of(run)
    frame = frame[frame["probe"] == LM_EVAL]
    parts = frame["dataset"].map(lambda path: dataset == path or dataset in str(path).split("/")).astype(bool)
    frame = frame[parts]
    if frame.empty:
        return not_measured("task_score", f"no records of the task {dataset!r}")
    fields = list(dict.fromkeys(frame["field"]))
    wanted = fields[0] if field is None else field
    chosen = next((one for one in fields if one == wanted or one.split(",")[0] == wanted), None)
    if chosen is None:
        return not_measured(
            "task_score", f"the task {dataset!r} has no {wanted} (it has {', '.join(fields)})"
        )
    frame = frame[frame["field"] == chosen].sort_values(["dataset", "example_id"], kind="stable")
    tasks = frame["dataset"].astype(str)
    several = tasks.nunique() > 1
    variant = f"{chosen} of lm-eval's {dataset}" + (f", each of {weight} counts the same" if several else "")
    names = tasks.str.split("/").str[-1] + "/" if several else ""
    scores = pd.Series(
        frame["value"].to_numpy(dtype=np.float64), index=names + frame["example_id"].astype(str)
    )
    known = scores.notna().to_numpy()
    unscored = [str(name) for name in scores.index[~known]]
    if not known.any():
        return not_measured("task_score", "no document could be scored", variant=variant, unscored=unscored)
    of_nats = _OF_NATS.get(chosen.split(",")[0])
    values_N = scores.to_numpy()[known]
    sizes_N = frame["num_tokens"].to_numpy(dtype=np.float64)[known] if of_nats else np.ones(len(values_N))
    groups = [tasks.to_numpy()[known] == task for task in dict.fromkeys(tasks[known])]
    if weight == "documents":
        groups = [np.ones(len(values_N), dtype=bool)]
    finish = of_nats or (lambda mean: mean)
    value, resampled_R = 0.0, np.zeros(1)
    for place, inside in enumerate(groups):
        sums_n, sizes_n = (values_N * sizes_N)[inside], sizes_N[inside]
        counts_Rn = resample_counts(len(sums_n), seed=[seed, place])
        value += float(finish(sums_n.sum() / sizes_n.sum())) / len(groups)
        resampled_R = resampled_R + finish((counts_Rn @ sums_n) / (counts_Rn @ sizes_n)) / len(groups)
    low, high = interval(resampled_R)
    return MetricResult(
        "task_score",
        value,
        low,
        high,
        n=len(values_N),
        unscored=unscored,
        variant=variant,
        per_example=scores,
        extra={"field": chosen, "tasks": int(tasks.nunique())},
    )
