"""evaluate(): one scoring pass and one generation pass over a suite's data, then metrics of the records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.evaluation.questions import Question, generation_questions, likelihood_questions
from unlearnkit.evaluation.records import GENERATE_ANSWER, EvalRun, new_records
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
from unlearnkit.evaluation.store import ResultStore
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
    template: TemplateSpec | None = None,
    output: str | Path | None = None,
    batch_tokens: int = 16384,
    max_new_tokens: int | None = None,
    role: str = "unlearned",
    label: str = "",
    cache: bool = True,
    progress: bool = True,
    load_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Run a suite on a model.

    Args:
        model: a causal language model, or the path or hub id of one (an adapter's folder works too).
        tokenizer: its tokenizer; by default the one saved with the model.
        suite: a shipped suite's name, a YAML file, or a loaded suite.
        data: overrides of the suite's data section: {"split": "forget10", "root": FOLDER, "forget": FILE,
            ...}.
        reference: the retain model, for forget quality: an Evaluation, the folder of one, or a model (object,
            folder or hub id), which is then evaluated on the same data.
        template: how prompts are written; must be the one used in training.
        output: a folder for `records.parquet` and `summary.json`.
        batch_tokens: padded tokens at most in one forward pass; results do not depend on it.
        max_new_tokens: bound of a generation, instead of the suite's.
        role, label: what the model is in a report ("target", "retain" or "unlearned") and what it is called.
        cache: keep results on disk by content, and reuse them.
        progress: show progress bars.
        load_options: how a model that is given by its path is loaded: dtype, revision, attn_implementation.

    Raises:
        RecipeError, DataError, ModelError, RecordsError: before the model is run where that is possible.
    """
    from unlearnkit.data.formats import Template
    from unlearnkit.models.load import load_model, load_tokenizer, model_fingerprint, to_device
    from unlearnkit.models.precision import own_precision

    started = time.perf_counter()
    if isinstance(suite, Suite) and data:
        raise RecipeError(
            "`data` changes a suite while it is loaded; give it to load_suite(), or the suite by its name"
        )
    suite = suite if isinstance(suite, Suite) else load_suite(suite, data)
    rows = load_datasets(suite)
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
    questions = ask(suite, rows, tokenizer, written)
    options: dict[str, Any] = {
        "batch_tokens": batch_tokens, "max_new_tokens": max_new_tokens or suite.probes.max_new_tokens,
        "cache": cache, "progress": progress,
    }  # fmt: skip
    if isinstance(model, str | Path):
        model = to_device(load_model(str(model), **(load_options or {})))
    name = model_fingerprint(model)
    with own_precision(model):
        records, cost = _answers(model, name, tokenizer, questions, label or role, **options)
    other = _reference(reference, suite, tokenizer, template, batch_tokens, max_new_tokens, cache, progress)
    metrics = compute_metrics(suite, records, other.run if other else None)
    meta = {
        "format": 1, "suite": suite.name, "suite_version": suite.version, "split": suite.split, "role": role,
        "label": label or role,
        "fingerprint": {
            "model": name, "template": written.fingerprint,
            "data": fingerprint([(q.dataset, q.example_id, q.field, q.index, q.answer) for q in questions]),
            "tokenizer": fingerprint(sorted({q.pair for q in questions})),
        },
        "reference": None if other is None else {
            "label": other.summary.get("label"),
            "fingerprint": other.summary.get("fingerprint", {}).get("model"),
        },
        "metrics": {},
        "cost": {**cost, "seconds": round(time.perf_counter() - started, 3)},
        "versions": versions(),
    }  # fmt: skip
    if other is not None:
        note_differences(suite, metrics, meta, other.summary)
    meta["metrics"] = described(metrics, suite)
    result = Evaluation(EvalRun(records, meta), metrics, asked=cost["scored_pairs"] + cost["generated"])
    if output is not None and _is_main():
        save_evaluation(result, output)
    return result


def load_datasets(suite: Suite) -> dict[str, list[dict[str, Any]]]:
    """The rows of each data set that has a source."""
    from unlearnkit.data.streams import load_stream

    rows = {
        key: load_stream(sources, root=suite.root, name=f"evaluation.data.{key}").to_list()
        for key, sources in suite.data.items()
        if sources
    }
    if not rows:
        raise DataError(f"suite {suite.name} has no data; give data.forget (and data.retain)")
    return rows


def ask(
    suite: Suite, rows: Mapping[str, Sequence[Mapping[str, Any]]], tokenizer: Any, template: Any
) -> list[Question]:
    """Every question of the suite, in the order of its records."""
    questions = []
    for names, make in (
        (suite.probes.answer_likelihood, likelihood_questions),
        (suite.probes.generate_answer, generation_questions),
    ):
        for name in names:
            if name in rows:
                questions += make(name, rows[name], tokenizer, template)
    return questions


def _answers(
    model: Any, model_name: str, tokenizer: Any, questions: Sequence[Question], label: str, *,
    batch_tokens: int, max_new_tokens: int, cache: bool, progress: bool,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Records of all questions; what the store knows is not asked again."""
    from unlearnkit.evaluation import probes

    was_training = model.training
    model.eval()
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    stop = probes.stop_tokens(model, tokenizer)
    scores = ResultStore(model_name, "answer_likelihood", enabled=cache)
    texts = ResultStore(
        model_name, "generate_answer", max_new_tokens, stop, probes.generation_settings(model),
        fingerprint(tokenizer.get_vocab()), enabled=cache,
    )  # fmt: skip
    budget: dict[str, int] = {"pad_id": pad_id, "batch_tokens": batch_tokens}
    try:
        scored = _collect(
            scores, {q.pair: q for q in questions if q.probe != GENERATE_ANSWER},
            f"{label}: scoring answers", progress,
            lambda mine, done: probes.score_answers(model, mine, **budget, done=done),
        )  # fmt: skip
        spoken = _collect(
            texts, {q.prompt_name: q for q in questions if q.probe == GENERATE_ANSWER},
            f"{label}: generating answers", progress,
            lambda mine, done: probes.generate_answers(
                model, tokenizer, mine, **budget, max_new_tokens=max_new_tokens, done=done
            ),
        )  # fmt: skip
    finally:
        model.train(was_training)
    stop_set = set(stop)
    records = new_records(
        q.spoken(texts[q.prompt_name]) if q.probe == GENERATE_ANSWER else q.scored(scores[q.pair], stop_set)
        for q in questions
    )
    tokens = sum(len(q.prompt_ids) + len(q.answer_ids) for q in scored)
    return records, {"scored_pairs": len(scored), "generated": len(spoken), "tokens": tokens}


def _collect(
    store: ResultStore, asked: Mapping[str, Question], title: str, progress: bool,
    probe: Callable[[list[Question], Callable[[int], Any]], Any],
) -> list[Question]:  # fmt: skip
    """Ask for what is missing, each process its share; all get all of it. Return what was asked."""
    import torch.distributed as dist
    from tqdm import tqdm

    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    unknown = {name for name in asked if name not in store}
    if several:
        # Each process has read the disk at a moment of its own: what one of them lacks, all ask for.
        unknown = set().union(*_gathered(unknown, world))
    missing = [question for name, question in asked.items() if name in unknown]
    if not missing:
        return []
    mine = missing[rank::world]
    collected: list[Any] = []
    try:
        with tqdm(total=len(mine), desc=title, disable=not progress or rank > 0, leave=False) as bar:
            for results in probe(mine, bar.update):
                store.add(results)
                collected += results
    finally:
        store.flush()
    if several:
        for other, part in enumerate(_gathered(collected, world)):
            if other != rank:
                store.remember(part)
    return missing


def _gathered(value: Any, world: int) -> list[Any]:
    import torch.distributed as dist

    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, value)
    return parts


def _reference(
    reference: Any, suite: Suite, tokenizer: Any, template: TemplateSpec | None, batch_tokens: int,
    max_new_tokens: int | None, cache: bool, progress: bool,
) -> Evaluation | None:  # fmt: skip
    """The retain model's evaluation: as given, or made now on the same data."""
    if reference is None or isinstance(reference, Evaluation):
        return reference
    own = None if isinstance(reference, str | Path) else tokenizer
    return evaluate(
        reference, own, suite, template=template, batch_tokens=batch_tokens, max_new_tokens=max_new_tokens,
        role="retain", label="retain model", cache=cache, progress=progress,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import unlearnkit

    found = {"python": platform.python_version(), "unlearnkit": unlearnkit.__version__}
    for package in ("torch", "transformers", "peft", "accelerate", "datasets", "scipy", "rouge-score"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _is_main() -> bool:
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
