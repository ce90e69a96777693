"""Texts that a model writes for the rows of a set: asked for, drawn, and drawn again where they are no good.

Every text is a function of its prompt, its number and the seed, whatever stands beside it in a batch and
however many processes share the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from unlearnkit.data.cells import answer_text, levelled, listed_rows
from unlearnkit.errors import DataError
from unlearnkit.evaluation.questions import Question
from unlearnkit.models import load

#: Rounds in which a row is asked: the first, and more for the texts that were left out.
ROUNDS = 5


def asking(rows: Sequence[Mapping[str, Any]], wording: str) -> list[dict[str, Any]]:
    """Rows with the question that the model is asked; of a chat the last message is replaced.

    Args:
        rows: with `prompt` and `completion`.
        wording: holds {prompt}, and {answer} for the row's own answer.
    """
    out = []
    for row in rows:
        asked = row["prompt"]
        before, last = ([], asked) if isinstance(asked, str) else (asked[:-1], asked[-1]["content"])
        # In this order, so that a question with {answer} in it stays as it is.
        pieces = [
            part.replace("{answer}", answer_text(row["completion"])) for part in wording.split("{prompt}")
        ]
        text = last.join(pieces)
        out.append({**row, "prompt": [*before, {"role": "user", "content": text}] if before else text})
    return out


def refuse_no_room(questions: Sequence[Question], config: Any, where: str, remedy: str) -> None:
    """Raise where a prompt fills all positions of the model, so that nothing could follow it.

    Raises:
        DataError: names the rows, and what there is to do.
    """
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and (full := [i for i, q in enumerate(questions) if len(q.prompt_ids) >= room]):
        longest = max(len(question.prompt_ids) for question in questions)
        raise DataError(
            f"{where}: what the model is asked has up to {longest} tokens, and the model holds "
            f"{room} ({listed_rows(full)}), so no answer has room; {remedy}"
        )


@contextlib.contextmanager
def ready_to_write(model: Any) -> Iterator[None]:
    """The model is whole, in eval mode and on its device; then back as it was."""
    before, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with load.gathered(list(model.parameters())):
            load.to_device(model)
            yield
    finally:
        model.train(was_training)
        if next(model.parameters()).device != before:
            model.to(before)  # FSDP and DeepSpeed move it themselves


def draw(
    questions: Sequence[Question], unwanted: Sequence[Container[str]], per_row: int,
    ask: Callable[[dict[str, Question]], Mapping[str, str | None]],
) -> list[list[str]]:  # fmt: skip
    """Up to `per_row` distinct texts for each question, in the order of their numbers.

    What is empty, unwanted or comes twice is left out and drawn again with further numbers.

    Args:
        unwanted: for each question the texts that are none, levelled.
        ask: name of a sample -> its text; None for a prompt that nothing can follow.
    """
    found: list[dict[str, str]] = [{} for _ in questions]
    drawn = [0] * len(questions)
    for _ in range(ROUNDS):
        wanted: list[tuple[int, Question]] = []
        for row, question in enumerate(questions):
            numbers = range(drawn[row], drawn[row] + per_row - len(found[row]))
            wanted += [(row, dataclasses.replace(question, index=number)) for number in numbers]
            drawn[row] = numbers.stop
        if not wanted:
            break
        said = ask({question.sample_name: question for _, question in wanted})
        for row, question in wanted:
            text = said[question.sample_name]
            if text and (key := levelled(text)) and key not in unwanted[row]:
                found[row].setdefault(key, text)
    return [list(own.values()) for own in found]
