"""Alternate answers: plausible wrong ones that the target model itself writes before it is trained.

How they are drawn is said in `data/drawing.py`: answers that are empty, say what the true one says, or come
twice are left out and drawn again. What a model has written is kept by content, so that the seeds of a
comparison share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.data.cells import answer_text, levelled, listed_rows
from unlearnkit.data.columns import ALTERNATES
from unlearnkit.data.drawing import ROUNDS, asking, draw, ready_to_write, refuse_no_room
from unlearnkit.data.formats import Template, prompt_and_answer, with_answer
from unlearnkit.errors import DataError, RecipeError, UserError
from unlearnkit.evaluation.decode import Sampling
from unlearnkit.evaluation.probes import generate_answers, stop_tokens
from unlearnkit.evaluation.questions import Question, generation_questions
from unlearnkit.evaluation.share import gathered, is_main, processes
from unlearnkit.files import fingerprint, read_json, write_atomic
from unlearnkit.models import load
from unlearnkit.recipe import AlternatesSpec, TemplateSpec
from unlearnkit.training.hidden import text_config
from unlearnkit.training.prepare import pad_id
from unlearnkit.training.reference import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

#: What a model that follows instructions is asked with `prompt: instruct`.
INSTRUCTION = (
    "Here is a question with its correct answer.\n\nQuestion: {prompt}\nCorrect answer: {answer}\n\n"
    "Make up another answer to the question. It should sound just as plausible and have about the same "
    "length and style, but every fact that answers the question must be a different one. Reply with the "
    "made-up answer alone."
)
#: Raised when the stored format or the way of drawing changes, so that an old file is never read.
_CACHE_FORMAT = 1


def with_alternates(
    model: Any, tokenizer: Any, data: Dataset, spec: AlternatesSpec, template: TemplateSpec | None = None
) -> Dataset:
    """`data` with a column `alternate_answer`, a list of answers per row.

    Args:
        model: the target model.
        data: canonical rows with prompts, without that column.

    Raises:
        DataError: the column is there already, or rows for which no alternate answer was found.
    """
    refuse_given(data)
    settings = dataclasses.asdict(spec)
    found = generate_alternates(
        model, tokenizer, data, template=Template.for_tokenizer(tokenizer, template), **settings
    )
    return data.add_column(ALTERNATES, found)


def refuse_given(data: Dataset) -> None:
    """Raise where the rows hold alternate answers already.

    Raises:
        DataError: names the column.
    """
    if ALTERNATES in data.column_names:
        raise DataError(
            f"data.forget has a column {ALTERNATES}, and data.alternates asks for new ones; leave out one of "
            "them"
        )


def refuse_settings(temperature: float, top_p: float, prompt: str | None) -> None:
    """Raise where the settings cannot work with any model.

    Raises:
        RecipeError: a `prompt` without {prompt}, or draws that could not differ.
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise RecipeError(
            f"data.alternates draws at temperature {temperature} and top_p {top_p}, where no two draws could "
            "differ; set the temperature above 0, and top_p above 0 and at most 1"
        )
    if prompt not in (None, "instruct") and "{prompt}" not in prompt:
        raise RecipeError(
            f"data.alternates.prompt is {prompt!r}, which holds no row's question; write {{prompt}} where "
            "the question belongs ({answer} stands for the true answer), or use instruct"
        )


def write_alternates(data: Dataset, path: str | Path) -> None:
    """Write rows with their alternate answers as JSON lines, which a stream can read again."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data))


def generate_alternates(
    model: Any, tokenizer: Any, data: Dataset, *, template: Template, per_prompt: int = 5,
    temperature: float = 1.0, top_p: float = 1.0, prompt: str | None = None, max_new_tokens: int = 64,
    seed: int = 0, batch_tokens: int = 16384,
) -> list[list[str]]:  # fmt: skip
    """Up to `per_prompt` alternate answers of each row, from the disk or from the model.

    Args:
        model: the target model.
        data: canonical rows with prompts.
        prompt: what is asked, with {prompt} and {answer} in it; "instruct" stands for `INSTRUCTION`; None is
            the question itself.
        batch_tokens: padded tokens at most of prompts and answers in one batch; it changes no answer.

    Raises:
        DataError: rows for which no alternate answer was found, or rows that ask nothing.
        RecipeError: a `prompt` without {prompt}, or draws that could not differ.
    """
    refuse_settings(temperature, top_p, prompt)
    sampling = Sampling(temperature, top_p, seed)
    rows = [with_answer(row, _true(row)) for row in data]
    wording = INSTRUCTION if prompt == "instruct" else prompt or "{prompt}"
    questions = generation_questions("forget", asking(rows, wording), tokenizer, template)
    remedy = "shorten data.alternates.prompt, or set it to null"
    refuse_no_room(questions, text_config(model), "data.alternates", remedy)
    truths = [levelled(answer_text(row["completion"])) for row in rows]
    path = _cache_path(model, questions, truths, sampling, per_prompt, max_new_tokens, tokenizer)
    found = _read(path, len(rows))
    if not _all_have(found):
        ask = _Asker(model, tokenizer, sampling, max_new_tokens, batch_tokens)
        with ready_to_write(model):
            found = draw(questions, [{truth} for truth in truths], per_prompt, ask)
        _refuse_without(found, per_prompt, temperature)
        if path is not None and is_main():
            write_atomic(path, json.dumps(found, ensure_ascii=False))
    assert found is not None
    few = sum(len(own) < per_prompt for own in found)
    if few:
        logger.info("%d of %d rows have fewer than %d alternate answers", few, len(found), per_prompt)
    return found


def _true(row: Mapping[str, Any]) -> Any:
    """A row's own answer, where it has one."""
    has_one = row.get("messages") or row.get("completion") is not None
    return prompt_and_answer(row)[1] if has_one else ""


@dataclasses.dataclass(frozen=True)
class _Asker:
    """Asks the model, each process its share."""

    model: Any
    tokenizer: Any
    sampling: Sampling
    max_new_tokens: int
    batch_tokens: int

    def __call__(self, asked: Mapping[str, Question]) -> dict[str, str | None]:
        """Name of a sample -> its text, for all processes."""
        rank, world = processes()
        mine = list(asked.values())[rank::world]
        said: dict[str, str | None] = {}
        for results in generate_answers(
            self.model, self.tokenizer, mine, pad_id=pad_id(self.tokenizer), batch_tokens=self.batch_tokens,
            max_new_tokens=self.max_new_tokens, done=lambda count: None, sampling=self.sampling,
        ):  # fmt: skip
            said |= {name: result["text"] for name, result in results}
        for part in gathered(said) if world > 1 else ():
            said |= part
        return said


def _refuse_without(found: Sequence[Sequence[str]], per_prompt: int, temperature: float) -> None:
    if none := [row for row, own in enumerate(found) if not own]:
        raise DataError(
            f"data.alternates: the model gave {len(none)} row(s) no answer other than their own "
            f"({listed_rows(none)}) in {ROUNDS} rounds of {per_prompt} draws at temperature "
            f"{temperature}; raise data.alternates.temperature, or give the rows a column {ALTERNATES}"
        )


def _cache_path(
    model: Any, questions: Sequence[Question], truths: Sequence[str], sampling: Sampling, per_prompt: int,
    max_new_tokens: int, tokenizer: Any,
) -> Path | None:  # fmt: skip
    """Named by all that decides the answers; None for a model that its weights do not name."""
    if not load.is_named_by_weights(model):
        return None
    key = fingerprint(
        _CACHE_FORMAT, load.model_fingerprint(model), [one.prompt_ids for one in questions], list(truths),
        vars(sampling), per_prompt, max_new_tokens, stop_tokens(model, tokenizer),
    )  # fmt: skip
    return cache_folder() / "alternates" / f"{key}.json"


def _read(path: Path | None, count: int) -> list[list[str]] | None:
    """What lies on the disk; None for a file that is not there or broken."""
    if path is None or not path.exists():
        return None
    with contextlib.suppress(UserError, OSError):
        found = read_json(path)
        if isinstance(found, list) and len(found) == count and all(found):
            return [[str(text) for text in own] for own in found]
    return None


def _all_have(found: list[list[str]] | None) -> bool:
    """Whether every process has read the answers: each has looked at a moment of its own."""
    known = found is not None
    return all(gathered(known)) if processes()[1] > 1 else known
