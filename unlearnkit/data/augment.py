"""Augmentation of a set: a language model says its questions and answers in other words, or answers wrongly.

How texts are drawn is said in `data/drawing.py`. What the model has written is kept by content as it comes,
so that a second call goes on where a killed one stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnkit.data.alternates import INSTRUCTION
from unlearnkit.data.cells import answer_text, levelled
from unlearnkit.data.drawing import asking, draw, ready_to_write, refuse_no_room
from unlearnkit.data.formats import Template, prompt_and_answer, with_answer
from unlearnkit.errors import DataError, UserError
from unlearnkit.evaluation.decode import Sampling
from unlearnkit.evaluation.probes import generate_answers, generation_settings, stop_tokens
from unlearnkit.evaluation.questions import Question, generation_questions
from unlearnkit.evaluation.share import ask_missing
from unlearnkit.evaluation.store import ResultStore
from unlearnkit.models import load
from unlearnkit.training.hidden import text_config
from unlearnkit.training.prepare import pad_id

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("paraphrase", "perturbed")
#: What a model that follows instructions is asked for a question in other words.
REWORD_QUESTION = (
    "Here is a question.\n\nQuestion: {prompt}\n\nAsk for exactly the same thing in other words. Names, "
    "dates, numbers and titles stay as they are, nothing is added and nothing is left out. Reply with the "
    "reworded question alone."
)
#: And for an answer in other words.
REWORD_ANSWER = (
    "Here is a question with its answer.\n\nQuestion: {prompt}\nAnswer: {answer}\n\nSay the answer in other "
    "words. Every fact stays as it is, and so do names, dates, numbers and titles; nothing is added. Reply "
    "with the reworded answer alone."
)
#: What models put in front of a reply, or around it.
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(
    r"\A\W{0,2}(?:(?:re|para|new|made|wrong|(?:an)?other)[\w-]*\s+)?(?:question|answer)\**\s*:\**\s*", re.I
)
_QUOTES = {'"': '"', "“": "”", "«": "»"}


@dataclass(frozen=True)
class AugmentSpec:
    """What is written, and how it is drawn.

    `prompt` asks for an answer (a wrong one, or the true one in other words) and `question_prompt` for the
    question in other words; both hold {question}, and {answer} for the true answer. None stands for the
    instructions that ship.
    """

    kind: str
    per_row: int = 2
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: str | None = None
    question_prompt: str | None = None
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError: settings that cannot work with any model."""
        if self.kind not in KINDS:
            raise UserError(f"--kind is {self.kind!r}; it must be {' or '.join(KINDS)}")
        if self.per_row < 1 or self.max_new_tokens < 1:
            name = "--per-row" if self.per_row < 1 else "--max-new-tokens"
            raise UserError(f"{name} is {min(self.per_row, self.max_new_tokens)}; it must be at least 1")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"at temperature {self.temperature} and top_p {self.top_p} no two texts could differ; set "
                "--temperature above 0, and --top-p above 0 and at most 1"
            )
        if self.kind == "perturbed" and self.question_prompt is not None:
            raise UserError(
                "--question-prompt asks for questions in other words, and wrong answers keep the question; "
                "leave it out, or set --kind paraphrase"
            )
        for option, text in (("--prompt", self.prompt), ("--question-prompt", self.question_prompt)):
            if text is not None and "{question}" not in text and "{prompt}" not in text:
                raise UserError(
                    f"{option} is {text!r}, which holds no row's question; write {{question}} where the "
                    "question belongs ({answer} stands for the true answer)"
                )

    @property
    def wordings(self) -> list[str]:
        """What is asked for an answer, and for paraphrases what is asked for a question, with {prompt}."""
        answer = INSTRUCTION if self.kind == "perturbed" else REWORD_ANSWER
        asked = [self.prompt or answer]
        if self.kind == "paraphrase":
            asked.append(self.question_prompt or REWORD_QUESTION)
        return [text.replace("{question}", "{prompt}") for text in asked]


def answered_rows(data: Dataset, where: str) -> list[dict[str, Any]]:
    """Canonical rows as `prompt` and `completion`.

    Raises:
        DataError: texts, which ask nothing, or preference pairs, which do not say which answer is true.
    """
    if "completion" not in data.column_names and "messages" not in data.column_names:
        raise DataError(
            f"{where} has the columns {', '.join(data.column_names)}; questions and their answers are "
            "needed, so name them with `columns`, such as {question: prompt, answer: chosen}"
        )
    return [with_answer(row, prompt_and_answer(row)[1]) for row in data]


def augment(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], spec: AugmentSpec, *,
    template: Template, batch_tokens: int = 16384, progress: bool = False,
) -> list[list[tuple[Any, str]]]:  # fmt: skip
    """For each row up to `spec.per_row` pairs of a question and an answer, distinct and never the row's own.

    Wrong answers keep the question. Of paraphrases question and answer are both in other words; where the
    model found fewer of one than of the other, it begins anew with the first, and the row's own stands where
    there is none.

    Args:
        rows: see `answered_rows`.
        batch_tokens: padded tokens at most of prompts and texts in one batch; it changes no text.
        progress: show a bar.

    Raises:
        DataError: a prompt that leaves the model no room.
    """
    own = [[levelled(answer_text(row["completion"])) for row in rows]]
    own += [[levelled(_last(row["prompt"])) for row in rows]] if spec.kind == "paraphrase" else []
    asked = [
        question
        for wording in spec.wordings
        for question in generation_questions("forget", asking(rows, wording), tokenizer, template)
    ]
    refuse_no_room(asked, text_config(model), "--prompt", "shorten it")
    ask = _Writer(model, tokenizer, spec, batch_tokens, progress)
    with ready_to_write(model):
        found = draw(asked, [{text} for side in own for text in side], spec.per_row, ask)
    answers, questions = found[: len(rows)], found[len(rows) :] or [[] for _ in rows]
    return [_pairs(row, q, a, spec) for row, q, a in zip(rows, questions, answers, strict=True)]


def _pairs(
    row: Mapping[str, Any], questions: Sequence[str], answers: Sequence[str], spec: AugmentSpec
) -> list[tuple[Any, str]]:
    """The texts of one row as pairs, of which no two are the same."""
    prompts = [_reworded(row["prompt"], text) for text in questions] or [row["prompt"]]
    said = answers or [answer_text(row["completion"])]
    count = min(spec.per_row, max(len(questions), len(answers)))
    return [(prompts[i % len(prompts)], said[i % len(said)]) for i in range(count)]


def _last(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _reworded(prompt: Any, text: str) -> Any:
    """A prompt with another question; of a chat the last message is replaced."""
    return text if isinstance(prompt, str) else [*prompt[:-1], {"role": "user", "content": text}]


def cleaned(text: str) -> str:
    """A reply without what models put around it: thoughts, a label, quotation marks."""
    text = _LABEL.sub("", _THOUGHTS.sub("", text).strip()).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


class _Writer:
    """Asks the model, each process its share, and remembers on the disk what it has said."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: AugmentSpec, batch_tokens: int, progress: bool
    ) -> None:
        self.model, self.tokenizer, self.spec = model, tokenizer, spec
        self.batch_tokens, self.progress = batch_tokens, progress
        self.sampling = Sampling(spec.temperature, spec.top_p, spec.seed)
        named = load.is_named_by_weights(model)
        key = load.model_fingerprint(model) if named else None
        self.store = ResultStore(
            key, "augment", spec.max_new_tokens, vars(self.sampling), stop_tokens(model, tokenizer),
            generation_settings(model), sorted(tokenizer.get_vocab().items()), enabled=named,
        )  # fmt: skip

    def __call__(self, asked: Mapping[str, Question]) -> dict[str, str | None]:
        """Name of a sample -> its text; None where it was cut off before it ended."""
        ask_missing(
            self.store, asked, "writing", self.progress,
            lambda mine, done: generate_answers(
                self.model, self.tokenizer, mine, pad_id=pad_id(self.tokenizer), done=done,
                batch_tokens=self.batch_tokens, max_new_tokens=self.spec.max_new_tokens,
                sampling=self.sampling,
            ),
        )  # fmt: skip
        return {name: _whole(self.store[name]) for name in asked}


def _whole(result: Mapping[str, Any]) -> str | None:
    ended = result["num_new_tokens"] > len(result["tokens"])
    return cleaned(result["text"]) if ended and result["text"] else None
