"""What a pair says to the prompts that it is distilled on: generated once, kept as JSON lines in the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.files import fingerprint, write_atomic
from unlearnkit.recipe import DataSpec, Recipe
from unlearnkit.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset

#: The sets that are distilled on; the pair's own answers to the prompts of NAME are the stream NAME_answered.
SETS = ("forget", "retain")
#: Prompts of a set that the pair answers itself, and rows of a stream on which the two are compared, at most.
MOST_ROWS = 1000
#: Tokens of an answer where no suite bounds them.
_MAX_NEW_TOKENS = 200


def write_answers(recipe: Recipe, folder: Path, most: int = MOST_ROWS) -> dict[str, int]:
    """Let the pair answer the prompts of each set, greedily, and write a file of JSON lines for each.

    What it says is kept by content, as it is in an evaluation, so that neither is asked twice.

    Args:
        most: prompts of each set, evenly spread; 0 for none.

    Returns:
        Set -> answers; sets of documents ask nothing, and empty answers are left out.
    """
    from unlearnkit.data.documents import is_documents
    from unlearnkit.data.formats import with_answer

    data = {name: load_rows(recipe.data, name) for name in SETS if name in recipe.data.streams}
    asked = {name: evenly(table, most) for name, table in data.items() if not is_documents(table)}
    if not any(asked.values()):
        return {}
    counts = " and ".join(f"{len(rows)} {name}" for name, rows in asked.items())
    say(f"{recipe.name}: the pair answers {counts} prompts")
    found = _generated(recipe, asked)
    for name, texts in found.items():
        lines = [with_answer(row, text) for row, text in zip(asked[name], texts, strict=True) if text]
        told = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(answers_file(folder, name), told)
    return {name: sum(bool(text) for text in texts) for name, texts in found.items()}


def answers_file(folder: Path, name: str) -> Path:
    """Where the pair's answers to the prompts of a set lie."""
    return folder.resolve() / f"answers_{name}.jsonl"


def load_rows(data: DataSpec, name: str) -> Dataset:
    """The rows of one stream of a recipe."""
    from unlearnkit.data.streams import load_stream

    return load_stream(data.streams[name], root=data.root, name=name)


def evenly(rows: Sequence[Any] | Dataset, most: int = MOST_ROWS) -> list[Any]:
    """At most so many of the rows, evenly spread."""
    count = min(len(rows), most)
    return [rows[i * len(rows) // count] for i in range(count)]


def open_as_distilled(recipe: Recipe) -> tuple[Any, Any]:
    """The pair as a distillation's recipe serves it, and its tokenizer."""
    from unlearnkit.models.load import load_tokenizer
    from unlearnkit.training.distill import open_pair

    training, spec = recipe.training, recipe.model
    pair = open_pair(
        training["pair"], alpha=training.get("alpha"), top_logit_filter=training.get("top_logit_filter"),
        dtype=spec.dtype, attn_implementation=spec.attn_implementation,
    )  # fmt: skip
    return pair, load_tokenizer(spec.tokenizer or training["pair"])


def _generated(recipe: Recipe, asked: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Set -> the pair's text for each row; "" where the model has no room for one."""
    from unlearnkit.data.formats import Template
    from unlearnkit.evaluation import probes
    from unlearnkit.evaluation.questions import generation_questions
    from unlearnkit.evaluation.records import GENERATE_ANSWER
    from unlearnkit.evaluation.share import ask_missing
    from unlearnkit.evaluation.store import ResultStore
    from unlearnkit.models.load import is_named_by_weights, model_fingerprint
    from unlearnkit.models.precision import own_precision
    from unlearnkit.preflight_evaluation import suite_of
    from unlearnkit.training.prepare import pad_id

    pair, tokenizer = open_as_distilled(recipe)
    template = Template.for_tokenizer(tokenizer, recipe.data.template)
    suite, spec = suite_of(recipe), recipe.evaluation
    bound = spec.max_new_tokens or (_MAX_NEW_TOKENS if suite is None else suite.probes.max_new_tokens)
    questions = {name: generation_questions(name, rows, tokenizer, template) for name, rows in asked.items()}
    store = ResultStore(
        model_fingerprint(pair), GENERATE_ANSWER, bound, probes.stop_tokens(pair, tokenizer),
        probes.generation_settings(pair), fingerprint(tokenizer.get_vocab()),
        enabled=is_named_by_weights(pair),
    )  # fmt: skip
    with own_precision(pair):
        ask_missing(
            store, {q.prompt_name: q for several in questions.values() for q in several},
            "the pair answers", True,
            lambda mine, done: probes.generate_answers(
                pair, tokenizer, mine, pad_id=pad_id(tokenizer), batch_tokens=spec.batch_tokens,
                max_new_tokens=bound, done=done,
            ),
        )  # fmt: skip
    return {
        name: [str(store[q.prompt_name]["text"] or "") for q in several]
        for name, several in questions.items()
    }
