"""Scoring: teacher-forced statistics of every token of an answer, from one forward pass a batch.

Results do not depend on batch size, padding side or order: pairs are sorted by length, padded, and masked by
length. A combined model is asked once for any number of alphas: each network gives its logits once, and what
the alphas make of them is computed from these.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from unlearnkit.data.collate import pad_rows
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.batching import batches, in_parts
from unlearnkit.evaluation.decode import can_decode
from unlearnkit.evaluation.questions import Question
from unlearnkit.evaluation.reading import Reading
from unlearnkit.evaluation.shared_prompt import EncodedPrompts, pays
from unlearnkit.training import logprobs

#: Logits of one scoring batch hold at most that many numbers (2 GiB in bfloat16).
_MOST_LOGITS = 1 << 30
#: Prompt tokens whose keys and values are held while their answers are scored.
_PROMPT_TOKENS = 4096
#: Tokens of a scoring batch on the CPU, where more fill its caches and make nothing faster.
_CPU_TOKENS = 4096

Result = dict[str, Any]
Done = Callable[[int], Any]
#: A pair's name, and a result for each of the weights that are read (a single one of an ordinary model).
_Scored: TypeAlias = tuple[str, list[Result]]


def most_tokens(model: Any) -> int:
    """How many tokens the model has positions for; without a limit, a very large number."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)


def score_answers(
    model: Any, questions: Sequence[Question], *, pad_id: int, batch_tokens: int, done: Done,
    share_prompts: bool | None = None,
) -> Iterator[list[tuple[str, Result]]]:  # fmt: skip
    """Teacher-forced token statistics of each answer, batch by batch: (pair, {logps, hits, means,
    variances}).

    A pair without a token to score, or with more tokens than the model has positions, is yielded with empty
    lists.

    Args:
        model: a causal language model in eval mode.
        questions: one question per pair.
        batch_tokens: padded tokens at most in one forward pass; on the CPU never more than 4,096.
        done: called with the number of pairs that each batch finished.
        share_prompts: encode a prompt once for all of its answers; by default where it pays and the model's
            cache allows it.

    Raises:
        ModelError: the model gives NaN; the example and the token are named.
    """
    for answers in _score(
        Reading(model), questions, pad_id=pad_id, batch_tokens=batch_tokens, done=done,
        share_prompts=share_prompts,
    ):  # fmt: skip
        yield [(pair, found) for pair, (found,) in answers]


def score_at(
    model: Any, weights: Sequence[Mapping[str, float]], questions: Sequence[Question], *, pad_id: int,
    batch_tokens: int, done: Done, share_prompts: bool | None = None,
) -> Iterator[list[tuple[str, list[Result]]]]:  # fmt: skip
    """As `score_answers`, of a combined model at several weights: (pair, a result for each of the weights).

    Each network is run as often as for a single one.
    """
    return _score(
        Reading(model, weights), questions, pad_id=pad_id, batch_tokens=batch_tokens, done=done,
        share_prompts=share_prompts,
    )  # fmt: skip


@torch.no_grad()
def _score(
    reading: Reading, questions: Sequence[Question], *, pad_id: int, batch_tokens: int, done: Done,
    share_prompts: bool | None,
) -> Iterator[list[_Scored]]:  # fmt: skip
    model = reading.model
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1) * reading.networks
    on_cpu = next(model.parameters()).device.type == "cpu"
    budget = max(1, min(batch_tokens, _MOST_LOGITS // vocabulary, _CPU_TOKENS if on_cpu else batch_tokens))
    room = most_tokens(model)
    fits = [q.answer_ids and 1 < len(q.prompt_ids) + len(q.answer_ids) <= room for q in questions]
    if unscored := [q.pair for q, fit in zip(questions, fits, strict=True) if not fit]:
        done(len(unscored))
        yield [(pair, [_nothing() for _ in range(reading.results)]) for pair in unscored]
    questions = [q for q, fit in zip(questions, fits, strict=True) if fit]
    shared = [q for q in questions if q.prompt_ids]
    if share_prompts is None:
        share_prompts = _keeps_cache(model) and pays([(q.prompt_ids, q.answer_ids) for q in shared])
    if share_prompts and shared:
        for answers in _score_by_prompt(reading, shared, pad_id=pad_id, budget=budget):
            if answers is None:  # the model's cache does not allow it
                break
            done(len(answers))
            yield answers
        else:
            questions = [q for q in questions if not q.prompt_ids]
    sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in questions]
    for chosen in batches(sizes, budget):
        rows = [questions[i] for i in chosen]
        results = in_parts(lambda part: _score_rows(reading, part, pad_id), rows)
        done(len(rows))
        yield results


def _nothing() -> Result:
    return {"logps": [], "hits": [], "means": [], "variances": []}


def _score_rows(reading: Reading, questions: list[Question], pad_id: int) -> list[_Scored]:
    """One forward pass over whole rows of prompt and answer."""
    device = next(reading.model.parameters()).device
    rows = [
        {
            "input_ids": [*q.prompt_ids, *q.answer_ids],
            "labels": [IGNORE] * len(q.prompt_ids) + list(q.answer_ids),
        }
        for q in questions
    ]
    length = max(len(row["input_ids"]) for row in rows)
    padded: dict[str, Any] = {**pad_rows(rows, length, pad_id=pad_id)}
    batch = {name: values.to(device) for name, values in padded.items()}
    stats = reading.statistics(*reading.answers(batch))
    return _split(questions, stats, logprobs.count_targets(batch["labels"]).tolist())


def _score_by_prompt(
    reading: Reading, questions: list[Question], *, pad_id: int, budget: int
) -> Iterator[list[_Scored] | None]:
    """Prompts of like length are encoded together, then their answers, sorted by length, follow them."""
    by_prompt: dict[tuple[int, ...], list[Question]] = {}
    for question in questions:
        by_prompt.setdefault(question.prompt_ids, []).append(question)
    prompts = list(by_prompt)
    for chosen in batches([len(prompt) for prompt in prompts], min(_PROMPT_TOKENS, budget)):
        some = [prompts[i] for i in chosen]
        encoded = _encoded(reading, some, pad_id)
        if encoded is None:  # too many for the accelerator's memory: each answer with its own prompt
            whole = [q for prompt in some for q in by_prompt[prompt]]
            sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in whole]
            for rows in batches(sizes, budget):
                yield in_parts(lambda part: _score_rows(reading, part, pad_id), [whole[i] for i in rows])
            continue
        if not encoded.usable:
            yield None
            return
        asked = [(place, q) for place, prompt in enumerate(some) for q in by_prompt[prompt]]
        longest = max(len(prompt) for prompt in some)
        sizes = [longest + len(q.answer_ids) for _, q in asked]

        def score(part: list[tuple[int, Question]], encoded: EncodedPrompts = encoded) -> list[_Scored]:
            stats = encoded.score([place for place, _ in part], [q.answer_ids for _, q in part])
            return _split([q for _, q in part], stats, [len(q.answer_ids) for _, q in part])

        for rows in batches(sizes, budget):
            yield in_parts(score, [asked[i] for i in rows])


def _encoded(reading: Reading, prompts: list[tuple[int, ...]], pad_id: int) -> EncodedPrompts | None:
    try:
        return EncodedPrompts(reading, prompts, pad_id=pad_id)
    except torch.OutOfMemoryError:
        warnings.warn(
            f"the accelerator ran out of memory with {len(prompts)} prompts at once; each answer goes "
            "through the model with its own prompt (a smaller --batch-tokens avoids the attempt)",
            stacklevel=2,
        )
        return None


def _keeps_cache(model: Any) -> bool:
    return can_decode(model, ()) and not getattr(getattr(model, "config", None), "sliding_window", None)


def _split(
    questions: Sequence[Question], stats: Sequence[logprobs.ScoredTokens], counts: list[int]
) -> list[_Scored]:
    """Statistics of all tokens -> the results of each pair.

    Raises:
        ModelError: NaN among them.
    """
    split = [_by_question(questions, one, counts) for one in stats]
    return [(question.pair, [one[place] for one in split]) for place, question in enumerate(questions)]


def _by_question(
    questions: Sequence[Question], stats: logprobs.ScoredTokens, counts: list[int]
) -> list[Result]:
    columns = {
        "logps": stats.logps, "hits": stats.hits, "means": stats.means, "variances": stats.variances,
    }  # fmt: skip
    split = {name: torch.split(values.cpu(), counts) for name, values in columns.items()}
    logps = split["logps"]
    for question, values in zip(questions, logps, strict=True):
        if bool(values.isnan().any()):
            place = int(values.isnan().nonzero()[0])
            raise not_a_number(
                question,
                f"token {place + 1} of {len(values)} of its {question.field.replace('_', ' ')} (id "
                f"{question.answer_ids[place - len(values)]})",
            )
    return [{name: parts[place].tolist() for name, parts in split.items()} for place in range(len(questions))]


def not_a_number(question: Question, token: str) -> ModelError:
    """The error for a model whose logits are NaN."""
    return ModelError(
        f"the model gives NaN for example {question.example_id} of {question.dataset!r}, {token}; its "
        "weights may be broken, or too large for its dtype: try float32"
    )
