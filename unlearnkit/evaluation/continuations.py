"""Texts to go on with: where a document is split into what is shown and what is to be said."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import answer_text
from unlearnkit.data.encoding import encode, without_eos
from unlearnkit.data.formats import prompt_and_answer, tokenize_pair
from unlearnkit.evaluation.questions import Question, Rows, document_ids, document_question, is_document
from unlearnkit.evaluation.records import CONTINUATION, CONTINUE_TEXT

if TYPE_CHECKING:
    from unlearnkit.evaluation.asks import Ask


def continuation_questions(
    dataset: str, rows: Rows, tokenizer: Any, *, ask: Ask, max_new_tokens: int, room: int
) -> list[tuple[Question, int]]:
    """The beginning of each text, to be continued, and how many tokens at most; the true continuation is cut
    to that.

    Of a document half is shown, or fewer tokens where `ask.prefix_tokens` says so. With `ask.suffix_tokens`
    it is all but the last so many (data extraction of arXiv 2406.10209), and no more are generated. A row
    with a prompt and a completion (MUSE's VerbMem) is a text whose beginning is the prompt: nothing is
    written around either.

    Args:
        room: tokens that the model has positions for. A document with a suffix that is longer loses its
            beginning, and the question says how much.
    """
    asked = []
    for row in rows:
        if is_document(row) and ask.suffix_tokens is not None:
            question = _suffix(dataset, row, tokenizer, ask.suffix_tokens, room, max_new_tokens)
            asked.append((question, max(1, len(question.answer_ids))))
            continue
        if is_document(row):
            ids = document_ids(row, tokenizer)
            half = max(1, len(ids) // 2)  # also of a text that is no longer than the prefix
            border = half if ask.prefix_tokens is None else min(ask.prefix_tokens, half)
        else:
            prompt, answer = (answer_text(part) for part in prompt_and_answer(row))
            prompt_ids, answer_ids, _ = tokenize_pair(tokenizer, prompt, answer, chat=False)
            ids, border = [*prompt_ids, *answer_ids[:-1]], len(prompt_ids)
        ids = ids[: border + max_new_tokens]
        question = document_question(CONTINUE_TEXT, CONTINUATION, dataset, row, tokenizer, ids, border=border)
        asked.append((question, max_new_tokens))
    return asked


def split_before_suffix(length: int, suffix_tokens: int, room: int) -> tuple[int, int]:
    """(first token shown, first token to be said) of a document of `length` tokens.

    The last min(length, room) tokens are used, and at least half of those are shown, so that a short document
    has a shorter suffix.
    """
    used = min(length, room)
    suffix = min(suffix_tokens, used // 2)
    return length - used, length - suffix


def _suffix(
    dataset: str, row: Any, tokenizer: Any, suffix_tokens: int, room: int, max_new_tokens: int
) -> Question:
    ids = without_eos(tokenizer, encode(tokenizer, row["text"])).ids
    start, border = split_before_suffix(len(ids), suffix_tokens, room)
    question = document_question(
        CONTINUE_TEXT, CONTINUATION, dataset, row, tokenizer, ids[start : border + max_new_tokens],
        border=border - start,
    )  # fmt: skip
    return dataclasses.replace(question, cut_tokens=start)
