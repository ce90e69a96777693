"""Probes: what touches a model. Scoring and generation; `gradients` has the third.

Results do not depend on batch size, padding side or order: pairs are sorted by length, padded, and masked by
length.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from unlearnkit.data.collate import pad_rows
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.batching import batches, in_parts
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
from unlearnkit.evaluation.shared_prompt import EncodedPrompts, pays
from unlearnkit.training import logprobs

#: Logits of one scoring batch hold at most that many numbers (2 GiB in bfloat16).
_MOST_LOGITS = 1 << 30
#: Prompt tokens whose keys and values are held while their answers are scored.
_PROMPT_TOKENS = 4096
#: Tokens of a scoring batch on the CPU, where more fill its caches and make nothing faster.
_CPU_TOKENS = 4096
#: New tokens of an answer before those that go on are put together anew.
_FIRST_ROUND = 64

Result = dict[str, Any]
Done = Callable[[int], Any]
#: A question, and the tokens that have been said so far.
_Begun: TypeAlias = tuple[Question, list[int]]


def most_tokens(model: Any) -> int:
    """How many tokens the model has positions for; without a limit, a very large number."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)


@torch.no_grad()
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
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1)
    on_cpu = next(model.parameters()).device.type == "cpu"
    budget = max(1, min(batch_tokens, _MOST_LOGITS // vocabulary, _CPU_TOKENS if on_cpu else batch_tokens))
    room = most_tokens(model)
    fits = [q.answer_ids and 1 < len(q.prompt_ids) + len(q.answer_ids) <= room for q in questions]
    if unscored := [q.pair for q, fit in zip(questions, fits, strict=True) if not fit]:
        done(len(unscored))
        yield [(pair, {"logps": [], "hits": [], "means": [], "variances": []}) for pair in unscored]
    questions = [q for q, fit in zip(questions, fits, strict=True) if fit]
    shared = [q for q in questions if q.prompt_ids]
    if share_prompts is None:
        share_prompts = _keeps_cache(model) and pays([(q.prompt_ids, q.answer_ids) for q in shared])
    if share_prompts and shared:
        for answers in _score_by_prompt(model, shared, pad_id=pad_id, budget=budget):
            if answers is None:  # the model's cache does not allow it
                break
            done(len(answers))
            yield answers
        else:
            questions = [q for q in questions if not q.prompt_ids]
    sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in questions]
    for chosen in batches(sizes, budget):
        rows = [questions[i] for i in chosen]
        results = in_parts(lambda part: _score_rows(model, part, pad_id), rows)
        done(len(rows))
        yield results


def _score_rows(model: Any, questions: list[Question], pad_id: int) -> list[tuple[str, Result]]:
    """One forward pass over whole rows of prompt and answer."""
    device = next(model.parameters()).device
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
    out = logprobs.target_logits(model, batch)
    stats = logprobs.token_statistics(out.logits_NV, out.targets_N)
    return _split(questions, stats, logprobs.count_targets(batch["labels"]).tolist())


def _score_by_prompt(
    model: Any, questions: list[Question], *, pad_id: int, budget: int
) -> Iterator[list[tuple[str, Result]] | None]:
    """Prompts of like length are encoded together, then their answers, sorted by length, follow them."""
    by_prompt: dict[tuple[int, ...], list[Question]] = {}
    for question in questions:
        by_prompt.setdefault(question.prompt_ids, []).append(question)
    prompts = list(by_prompt)
    for chosen in batches([len(prompt) for prompt in prompts], min(_PROMPT_TOKENS, budget)):
        some = [prompts[i] for i in chosen]
        encoded = _encoded(model, some, pad_id)
        if encoded is None:  # too many for the accelerator's memory: each answer with its own prompt
            whole = [q for prompt in some for q in by_prompt[prompt]]
            sizes = [len(q.prompt_ids) + len(q.answer_ids) for q in whole]
            for rows in batches(sizes, budget):
                yield in_parts(lambda part: _score_rows(model, part, pad_id), [whole[i] for i in rows])
            continue
        if not encoded.usable:
            yield None
            return
        asked = [(place, q) for place, prompt in enumerate(some) for q in by_prompt[prompt]]
        longest = max(len(prompt) for prompt in some)
        sizes = [longest + len(q.answer_ids) for _, q in asked]

        def score(part: list[tuple[int, Question]], encoded: EncodedPrompts = encoded) -> Any:
            stats = encoded.score([place for place, _ in part], [q.answer_ids for _, q in part])
            return _split([q for _, q in part], stats, [len(q.answer_ids) for _, q in part])

        for rows in batches(sizes, budget):
            yield in_parts(score, [asked[i] for i in rows])


def _encoded(model: Any, prompts: list[tuple[int, ...]], pad_id: int) -> EncodedPrompts | None:
    try:
        return EncodedPrompts(model, prompts, pad_id=pad_id)
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
    questions: Sequence[Question], stats: logprobs.ScoredTokens, counts: list[int]
) -> list[tuple[str, Result]]:
    """Statistics of all tokens -> one result per pair.

    Raises:
        ModelError: NaN among them.
    """
    columns = {
        "logps": stats.logps, "hits": stats.hits, "means": stats.means, "variances": stats.variances,
    }  # fmt: skip
    split = {name: torch.split(values.cpu(), counts) for name, values in columns.items()}
    logps = split["logps"]
    for question, values in zip(questions, logps, strict=True):
        if bool(values.isnan().any()):
            place = int(values.isnan().nonzero()[0])
            raise _nan(
                question,
                f"token {place + 1} of {len(values)} of its {question.field.replace('_', ' ')} (id "
                f"{question.answer_ids[place - len(values)]})",
            )
    return [
        (question.pair, {name: parts[place].tolist() for name, parts in split.items()})
        for place, question in enumerate(questions)
    ]


def _nan(question: Question, token: str) -> ModelError:
    return ModelError(
        f"the model gives NaN for example {question.example_id} of {question.dataset!r}, {token}; its "
        "weights may be broken, or too large for its dtype: try float32"
    )


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
                        raise _nan(part[error.row][0], f"token {error.step + 1} that it generates") from None
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
