"""Probes: the only evaluation code that touches a model.

Results do not depend on batch size, padding side or order: pairs are sorted by length, padded, and masked by
length.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from unlearnkit.data.collate import pad_rows
from unlearnkit.data.formats import IGNORE
from unlearnkit.evaluation.questions import Question
from unlearnkit.training import logprobs

#: Logits of one scoring batch hold at most that many numbers (2 GiB in bfloat16).
_MOST_LOGITS = 1 << 30

Result = dict[str, Any]


def most_tokens(model: Any) -> int:
    """How many tokens the model has positions for; without a limit, a very large number."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)


def batches(sizes: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens (at least one row), longest first."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(sizes[order[start]], 1))
        yield order[start : start + count]
        start += count


@torch.no_grad()
def score_answers(
    model: Any, questions: Sequence[Question], *, pad_id: int, batch_tokens: int, done: Callable[[int], Any]
) -> Iterator[list[tuple[str, Result]]]:
    """Teacher-forced token statistics of each answer, batch by batch: (pair, {logps, hits, means,
    variances}).

    A pair without a token to score, or with more tokens than the model has positions, is yielded with empty
    lists.

    Args:
        model: a causal language model in eval mode.
        questions: one question per pair.
        batch_tokens: padded tokens at most in one forward pass.
        done: called with the number of pairs that each batch finished.
    """
    device = next(model.parameters()).device
    vocabulary = getattr(model.config, "vocab_size", 1)
    budget = max(1, min(batch_tokens, _MOST_LOGITS // vocabulary))
    room = most_tokens(model)
    sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in questions]
    if unscored := [q.pair for q, size in zip(questions, sizes, strict=True) if not 1 < size <= room]:
        done(len(unscored))
        yield [(pair, {"logps": [], "hits": [], "means": [], "variances": []}) for pair in unscored]
        questions = [q for q, size in zip(questions, sizes, strict=True) if 1 < size <= room]
        sizes = [size for size in sizes if 1 < size <= room]
    for chosen in batches(sizes, budget):
        rows = [
            {
                "input_ids": [*questions[i].prompt_ids, *questions[i].answer_ids],
                "labels": [IGNORE] * len(questions[i].prompt_ids) + list(questions[i].answer_ids),
            }
            for i in chosen
        ]
        padded: dict[str, Any] = {**pad_rows(rows, sizes[chosen[0]], pad_id=pad_id)}
        batch = {name: values.to(device) for name, values in padded.items()}
        out = logprobs.target_logits(model, batch)
        stats = logprobs.token_statistics(out.logits_NV, out.targets_N)
        counts = logprobs.count_targets(batch["labels"]).tolist()
        columns = {
            "logps": stats.logps, "hits": stats.hits, "means": stats.means, "variances": stats.variances,
        }  # fmt: skip
        split = {name: torch.split(values.cpu(), counts) for name, values in columns.items()}
        done(len(chosen))
        yield [
            (questions[i].pair, {name: parts[place].tolist() for name, parts in split.items()})
            for place, i in enumerate(chosen)
        ]


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's EOS and the model's own list."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({int(t) for t in [tokenizer.eos_token_id, *listed] if t is not None})


def generation_settings(model: Any) -> dict[str, Any]:
    """The model's own generation settings (a repetition penalty, say), which hold in a greedy search too."""
    config = getattr(model, "generation_config", None)
    settings = {} if config is None else dict(config.to_diff_dict())
    return {key: value for key, value in settings.items() if key != "transformers_version"}


@torch.no_grad()
def generate_answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, pad_id: int, batch_tokens: int,
    max_new_tokens: int, done: Callable[[int], Any],
) -> Iterator[list[tuple[str, Result]]]:  # fmt: skip
    """Greedy answers, batch by batch: (prompt name, {text, num_new_tokens}).

    Questions are grouped by the length of their true answers, which is a good guess of when a batch will be
    finished. An answer ends at the latest where the model has no more positions; a prompt that fills all of
    them gets the text None.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    stop = stop_tokens(model, tokenizer)
    room = most_tokens(model)

    def bound(question: Question) -> int:
        return max(0, min(max_new_tokens, room - len(question.prompt_ids)))

    for new_tokens, chosen in _alike(questions, bound, batch_tokens):
        if new_tokens == 0:
            done(len(chosen))
            yield [(q.prompt_name, {"text": None, "num_new_tokens": 0}) for q in chosen]
            continue
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=stop, pad_token_id=pad_id
        )
        rows = [{"input_ids": q.prompt_ids, "labels": [IGNORE] * len(q.prompt_ids)} for q in chosen]
        length = max(len(q.prompt_ids) for q in chosen)
        batch = pad_rows(rows, length, pad_id=pad_id, side="left")
        out = model.generate(
            input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device),
            generation_config=config,
        )  # fmt: skip
        results = []
        for question, ids in zip(chosen, out[:, length:].tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
            text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
            results.append((question.prompt_name, {"text": text, "num_new_tokens": min(end + 1, len(ids))}))
        done(len(chosen))
        yield results


def _alike(
    questions: Sequence[Question], bound: Callable[[Question], int], batch_tokens: int
) -> Iterator[tuple[int, list[Question]]]:
    """Batches of questions with the same bound of new tokens, the longest true answers first."""
    order = sorted(questions, key=lambda q: (-bound(q), -len(q.answer_ids)))
    for new_tokens, group in itertools.groupby(order, bound):
        members = list(group)
        # The cache holds prompt and answer, so both count towards the budget.
        longest = max(len(q.prompt_ids) for q in members) + new_tokens
        per_batch = max(1, batch_tokens // longest)
        for start in range(0, len(members), per_batch):
            yield new_tokens, members[start : start + per_batch]
