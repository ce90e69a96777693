"""Probes: the only evaluation code that touches a model.

Results do not depend on batch size, padding side or order: pairs are sorted by length, padded, and masked by length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from unlearnkit.data.collate import pad_rows
from unlearnkit.evaluation.questions import Question
from unlearnkit.training import logprobs

#: Logits of one scoring batch hold at most that many numbers (2 GiB in bfloat16).
_MOST_LOGITS = 1 << 30

Result = dict[str, Any]


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
    model: Any, questions: Sequence[Question], *, pad_id: int, batch_tokens: int, done: Callable[[int], None]
) -> Iterator[list[tuple[str, Result]]]:
    """Teacher-forced token statistics of each answer, batch by batch: (pair, {logps, hits, means, variances}).

    A pair whose answer has no token is yielded with empty lists.

    Args:
        model: a causal language model in eval mode.
        questions: one question per pair.
        batch_tokens: padded tokens at most in one forward pass.
        done: called with the number of pairs that each batch finished.
    """
    device = next(model.parameters()).device
    vocabulary = getattr(model.config, "vocab_size", 1)
    budget = max(1, min(batch_tokens, _MOST_LOGITS // vocabulary))
    sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in questions]
    for chosen in batches(sizes, budget):
        rows = [
            {
                "input_ids": [*questions[i].prompt_ids, *questions[i].answer_ids],
                "labels": [logprobs.IGNORE] * len(questions[i].prompt_ids) + list(questions[i].answer_ids),
            }
            for i in chosen
        ]
        batch = pad_rows(rows, sizes[chosen[0]], pad_id=pad_id)
        batch = {k: v.to(device) for k, v in batch.items()}  # type: ignore[assignment, attr-defined]
        out = logprobs.target_logits(model, batch)  # type: ignore[arg-type]
        stats = logprobs.token_statistics(out.logits_NV, out.targets_N)
        counts = logprobs.count_targets(batch["labels"]).tolist()
        columns = {
            "logps": stats.logps, "hits": stats.hits, "means": stats.means, "variances": stats.variances,
        }  # fmt: skip
        split = {name: values.cpu().split(counts) for name, values in columns.items()}
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


@torch.no_grad()
def generate_answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, pad_id: int, batch_tokens: int,
    max_new_tokens: int, done: Callable[[int], None],
) -> Iterator[list[tuple[str, Result]]]:  # fmt: skip
    """Greedy answers, batch by batch: (prompt name, {text, num_new_tokens}).

    Questions are grouped by the length of their true answers, which is a good guess of when a batch will be finished.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    stop = stop_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stop, pad_token_id=pad_id
    )
    order = sorted(questions, key=lambda q: -len(q.answer_ids))
    # The cache holds prompt and answer, so both count towards the budget.
    sizes = [len(q.prompt_ids) + max_new_tokens for q in order]
    per_batch = max(1, batch_tokens // max(sizes, default=1))
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        rows = [{"input_ids": q.prompt_ids, "labels": [logprobs.IGNORE] * len(q.prompt_ids)} for q in chosen]
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
