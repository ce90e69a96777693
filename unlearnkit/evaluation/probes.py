"""Probes: what touches a model. Scoring (see `scoring`) and generation; `gradients` has the third.

Results do not depend on batch size, padding side or order: prompts are sorted by length, padded, and masked
by length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from unlearnkit.evaluation.batching import in_parts
from unlearnkit.evaluation.decode import (
    NotANumberError,
    Sampling,
    can_decode,
    decode,
    greedy,
    sampler,
)
from unlearnkit.evaluation.foreign import through_generate
from unlearnkit.evaluation.questions import Question
from unlearnkit.evaluation.scoring import Done as Done
from unlearnkit.evaluation.scoring import Result as Result
from unlearnkit.evaluation.scoring import most_tokens as most_tokens
from unlearnkit.evaluation.scoring import not_a_number
from unlearnkit.evaluation.scoring import score_answers as score_answers
from unlearnkit.evaluation.scoring import score_at as score_at

#: New tokens of an answer before those that go on are put together anew.
_FIRST_ROUND = 64

#: A question, and the tokens that have been said so far.
_Begun: TypeAlias = tuple[Question, list[int]]


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
    max_new_tokens: int, done: Done, sampling: Sampling | None = None,
) -> Iterator[list[tuple[str, Result]]]:  # fmt: skip
    """Greedy or sampled answers, batch by batch: (name, {text, tokens, num_new_tokens}).

    The name is the question's `prompt_name`, or its `sample_name` where answers are sampled. Questions are
    grouped by the length of their true answers, which is a good guess of when a batch will be finished. An
    answer ends at the latest where the model has no more positions; a prompt that fills all of them, or has
    no token, gets the text None.
    """
    stop = stop_tokens(model, tokenizer)
    room = most_tokens(model)
    own = can_decode(model, generation_settings(model))

    def bound(question: Question) -> int:
        return max(0, min(max_new_tokens, room - len(question.prompt_ids))) if question.prompt_ids else 0

    going_on: list[_Begun] = [(question, []) for question in questions]
    for until in _rounds(max_new_tokens) if own else [max_new_tokens]:
        begun, going_on = going_on, []
        for new_tokens, chosen in _alike(begun, bound, batch_tokens, until):

            def run(part: list[_Begun], new_tokens: int = new_tokens, until: int = until) -> list[list[int]]:
                names = [_spoken_name(q, sampling) for q, _ in part]
                prompts = [(*q.prompt_ids, *said) for q, said in part]
                before, found = len(part[0][1]), None
                if new_tokens == 0:
                    return [[] for _ in part]
                if own:
                    pick = greedy if sampling is None else sampler(sampling, names, new_tokens)
                    try:
                        found = decode(
                            model, prompts, max_new_tokens=min(new_tokens, until) - before, stop=stop,
                            pad_id=pad_id, pick=pick, first_step=before,
                        )  # fmt: skip
                    except NotANumberError as error:
                        raise not_a_number(
                            part[error.row][0], f"token {error.step + 1} that it generates"
                        ) from None
                if found is not None:
                    return found
                return through_generate(
                    model, names, prompts, max_new_tokens=new_tokens - before, stop=stop, pad_id=pad_id,
                    sampling=sampling,
                )  # fmt: skip

            results = []
            for (question, said), more in zip(chosen, in_parts(run, chosen), strict=True):
                ids = said + more
                end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
                if end == len(ids) < new_tokens:
                    going_on.append((question, ids))
                    continue
                text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip() if new_tokens else None
                result = {"text": text, "tokens": ids[:end], "num_new_tokens": min(end + 1, len(ids))}
                results.append((_spoken_name(question, sampling), result))
            done(len(results))
            yield results


def _spoken_name(question: Question, sampling: Sampling | None) -> str:
    return question.prompt_name if sampling is None else question.sample_name


def _rounds(max_new_tokens: int) -> list[int]:
    """New tokens after which what goes on is put together anew: a step costs for a few rows nearly as much as
    for many, and little memory need be reserved for answers that turn out short."""
    ends, end = [], _FIRST_ROUND
    while end < max_new_tokens:
        ends.append(end)
        end *= 4
    return [*ends, max_new_tokens]


def _alike(
    begun: Sequence[_Begun], bound: Callable[[Question], int], batch_tokens: int, until: int
) -> Iterator[tuple[int, list[_Begun]]]:
    """Batches of questions with the same bound of new tokens, the longest true answers first; none gets more
    than `until` new tokens here."""
    order = sorted(begun, key=lambda one: (-bound(one[0]), -len(one[0].answer_ids)))
    for new_tokens, group in itertools.groupby(order, lambda one: bound(one[0])):
        members = list(group)
        # The cache holds prompt and answer, so both count towards the budget.
        longest = max(len(question.prompt_ids) for question, _ in members) + min(new_tokens, until)
        per_batch = max(1, batch_tokens // max(longest, 1))
        for start in range(0, len(members), per_batch):
            yield new_tokens, members[start : start + per_batch]
