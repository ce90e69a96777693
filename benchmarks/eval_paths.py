"""The two ways of evaluating that `eval_speed.py` compares, each run and measured in its own process."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import process_memory
import torch
from cpu_clock import Clock
from plain_evaluation import PlainEvaluation
from plain_formulas import GUARD, lowest

from unlearnkit.evaluation import examine, gradients, inquiry, results, runner
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.models.load import load_model, load_tokenizer

SUITE = "tofu_full"


@dataclass(frozen=True)
class Task:
    """The same for both paths; `data` are the suite's overrides, `retain` the folder of an evaluation."""

    model: str
    target: str
    retain: str
    data: dict[str, Any]
    max_new_tokens: int
    threads: int


def serve(connection: Any, name: str, task: Task) -> None:
    """A child process: evaluate, send the numbers."""
    connection.send(measured(name, task))


def measured(name: str, task: Task) -> dict[str, Any]:
    """Evaluate in this process: metrics, CPU seconds by part, forward passes, peak memory."""
    torch.set_num_threads(task.threads)
    touch_libraries(task)
    process_memory.forget_peak()
    clock = Clock()
    model, judge = load_model(task.model), load_model(task.target)
    tokenizer = load_tokenizer(task.model)
    seen = {"forward passes": 0, "positions": 0}
    for one in (model, judge):
        one.register_forward_pre_hook(functools.partial(_count, seen), with_kwargs=True)
    suite = load_suite(SUITE, task.data)
    run = shipped if name == "shipped" else plain
    values, passes = run(task, suite, model, judge, tokenizer, clock)
    clock.stop()
    return {
        "values": values,
        "seconds": clock.seconds,
        "total": sum(clock.seconds.values()),
        "repeated": sum(sum(times) - max(times) for times in passes.values()),
        "peak": process_memory.peak_bytes(),
        **seen,
    }


def touch_libraries(task: Task) -> None:
    """Load what either path loads at first use, so that its time is nobody's."""
    for name in ("pyarrow.parquet", "rouge_score.rouge_scorer", "scipy.stats", "peft.tuners.tuners_utils"):
        importlib.import_module(name)
    load_model(task.model).generate(torch.tensor([[1]]), max_new_tokens=1, pad_token_id=0)
    load_tokenizer(task.model)


def _count(seen: dict[str, int], _: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    seen["forward passes"] += 1
    seen["positions"] += (args[0] if args else kwargs["input_ids"]).numel()


def plain(
    task: Task, suite: Suite, model: Any, judge: Any, tokenizer: Any, clock: Clock
) -> tuple[dict[str, float], dict[tuple[str, ...], list[float]]]:
    """The straightforward path."""
    rows = runner.load_datasets(suite)
    ask = suite.probes.of("sample_answer")[0]
    evaluation = PlainEvaluation(
        model, judge, tokenizer, rows, kept_numbers(task.retain, rows), clock=clock,
        max_new_tokens=task.max_new_tokens, samples=(ask.samples, ask.limit),
    )  # fmt: skip
    return evaluation.metrics(suite.metrics), evaluation.passes


def kept_numbers(folder: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the plain path needs of the retain model, from its records, in the order of the rows."""
    frame = EvalRun.load(folder).records
    frame = frame[frame["probe"] == "answer_likelihood"].set_index(["dataset", "field", "example_id"])

    def logps(dataset: str, field: str) -> list[list[np.ndarray]]:
        ids = [row["example_id"] for row in rows[dataset]]
        return [[np.array(one, float) for one in frame.loc[[(dataset, field, i)], "logps"]] for i in ids]

    right = np.exp([one[0].mean() for one in logps("forget", "paraphrased_answer")])
    wrong = np.exp(
        [np.mean([one.mean() for one in several]) for several in logps("forget", "perturbed_answer")]
    )
    answers = {name: [one[0] for one in logps(name, "answer")] for name in rows}
    return {
        "ratios": wrong / (right + GUARD),
        "losses": {name: np.array([-one.mean() for one in found]) for name, found in answers.items()},
        "min_k": {name: lowest(found) for name, found in answers.items()},
    }


def shipped(
    task: Task, suite: Suite, model: Any, judge: Any, tokenizer: Any, clock: Clock
) -> tuple[dict[str, float], dict[tuple[str, ...], list[float]]]:
    """The library's own path, with its parts timed from outside."""

    def inside(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with clock.part(part):
                return function(*args, **kwargs)

        return run

    def each(part: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            found, name = iter(function(*args, **kwargs)), part(*args, **kwargs)
            while True:
                with clock.part(name):
                    one = next(found, None)
                if one is None:
                    return
                yield one

        return run

    probes = examine.probes
    wrapped = {
        (probes, "score_answers"): each(
            lambda asked, *_, **__: "judging" if asked is judge else "scoring", probes.score_answers
        ),
        (probes, "generate_answers"): each(
            lambda *_, sampling=None, **__: "generating" if sampling is None else "sampling",
            probes.generate_answers,
        ),
        (gradients, "gradient_norms"): each(lambda *_, **__: "gradients", gradients.gradient_norms),
        (examine, "likelihood_questions"): inside("tokenising", examine.likelihood_questions),
        (examine, "generation_questions"): inside("tokenising", examine.generation_questions),
        (inquiry, "compute_metrics"): inside("metrics", inquiry.compute_metrics),
        (results, "compute_metrics"): inside("metrics", results.compute_metrics),
    }
    patches = [patch.object(place, name, function) for (place, name), function in wrapped.items()]
    for one in patches:
        one.start()
    try:
        found = runner.evaluate(
            model, tokenizer, suite=suite, reference=task.retain, target=judge, cache=False, progress=False,
            max_new_tokens=task.max_new_tokens,
        )  # fmt: skip
    finally:
        for one in patches:
            one.stop()
    return {name: one.value for name, one in found.metrics.items() if one.measured}, {}
