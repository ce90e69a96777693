"""What a suite asks: data sets -> (prompt, answer) pairs as tokens, each with the record it will become."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearnkit.data.formats import Template, prompt_and_answer, tokenize_pair
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    GENERATE_ANSWER,
    GENERATION,
    PARAPHRASED_ANSWER,
    PER_TOKEN,
    PERTURBED_ANSWER,
)


@dataclass(frozen=True)
class Question:
    """One (prompt, answer) pair and the record it belongs to.

    `answer_ids` end with EOS unless the text was a document; for a generation they are the true answer, which
    is compared with what the model says.
    """

    probe: str
    dataset: str
    example_id: str
    field: str
    index: int
    prompt: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def pair(self) -> str:
        """Names the tokens of prompt and answer: what is scored is scored once per pair."""
        return _name(self.prompt_ids, self.answer_ids)

    @property
    def prompt_name(self) -> str:
        """Names the prompt's tokens: a greedy generation depends on nothing else."""
        return _name(self.prompt_ids)

    def scored(self, result: Mapping[str, Any], stop: Collection[int]) -> dict[str, Any]:
        """The record of a likelihood result; `stop` are the tokens that end an answer."""
        ends = bool(self.answer_ids) and self.answer_ids[-1] in stop
        return {
            **self._shared(),
            **{name: result[name] for name in PER_TOKEN},
            "num_tokens": len(result["logps"]),
            "ends_with_eos": ends,
        }

    def spoken(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a generation."""
        return {**self._shared(), "text": result["text"], "num_tokens": result["num_new_tokens"]}

    def _shared(self) -> dict[str, Any]:
        names = ("probe", "dataset", "example_id", "field", "index", "prompt")
        return {**{name: getattr(self, name) for name in names}, "reference_text": self.answer}


def _name(*parts: Sequence[int]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.asarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()


def likelihood_questions(
    dataset: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, template: Template
) -> list[Question]:
    """The answer, its paraphrase and its perturbations, where a row has them."""
    questions = []
    for row in rows:
        if "text" in row and row["text"] is not None:
            questions.append(_document(ANSWER_LIKELIHOOD, ANSWER, dataset, row, tokenizer, keep=1))
            continue
        prompt, _ = prompt_and_answer(row)
        questions += [
            _question(ANSWER_LIKELIHOOD, dataset, row, field, index, prompt, text, tokenizer, template)
            for field, index, text in answers_of(row)
        ]
    return questions


def answers_of(row: Mapping[str, Any]) -> list[tuple[str, int, Any]]:
    """(field, index, answer) of every answer that a row has."""
    _, answer = prompt_and_answer(row)
    wrong = row.get("perturbed_answer") or []
    found = [(ANSWER, 0, answer), (PARAPHRASED_ANSWER, 0, row.get("paraphrased_answer"))]
    found += [
        (PERTURBED_ANSWER, i, text) for i, text in enumerate([wrong] if isinstance(wrong, str) else wrong)
    ]
    return [(field, index, text) for field, index, text in found if field == ANSWER or text]


def generation_questions(
    dataset: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, template: Template
) -> list[Question]:
    """Each row's prompt; of a document its first half."""
    questions = []
    for row in rows:
        if "text" in row and row["text"] is not None:
            questions.append(_document(GENERATE_ANSWER, GENERATION, dataset, row, tokenizer, keep=None))
        else:
            prompt, answer = prompt_and_answer(row)
            questions.append(
                _question(GENERATE_ANSWER, dataset, row, GENERATION, 0, prompt, answer, tokenizer, template)
            )
    return questions


def _question(
    probe: str, dataset: str, row: Mapping[str, Any], field: str, index: int, prompt: Any, answer: Any,
    tokenizer: Any, template: Template,
) -> Question:  # fmt: skip
    prompt_text, answer_text = template.texts(tokenizer, prompt, answer)
    prompt_ids, answer_ids, _ = tokenize_pair(tokenizer, prompt_text, answer_text, chat=template.chat)
    shown = prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)
    return Question(
        probe,
        dataset,
        row["example_id"],
        field,
        index,
        shown,
        text_of(answer),
        tuple(prompt_ids),
        tuple(answer_ids),
    )


def text_of(answer: Any) -> str:
    """An answer, or the last of its messages, as text."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def _document(
    probe: str, field: str, dataset: str, row: Mapping[str, Any], tokenizer: Any, *, keep: int | None
) -> Question:
    """A text without a question: its first `keep` tokens (None: half) are prompt, the rest answer."""
    ids = list(tokenizer(row["text"])["input_ids"])
    border = max(1, len(ids) // 2) if keep is None else min(keep, len(ids))
    prompt, answer = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:border], ids[border:])
    )
    return Question(
        probe, dataset, row["example_id"], field, 0, prompt, answer, tuple(ids[:border]), tuple(ids[border:])
    )
