"""What a suite asks: data sets -> (prompt, answer) pairs as tokens, each with the record it will become."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnkit.data.encoding import encode, encode_pair
from unlearnkit.data.formats import Template, prompt_and_answer
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    GENERATE_ANSWER,
    GENERATION,
    PARAPHRASED_ANSWER,
    PER_TOKEN,
    PERTURBED_ANSWER,
)
from unlearnkit.evaluation.terms import risky_tokens

if TYPE_CHECKING:
    from unlearnkit.evaluation.asks import Ask

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """One (prompt, answer) pair and the record it belongs to.

    `answer_ids` end with EOS unless the text was a document; for a generation they are the true answer, which
    is compared with what the model says. `stop` are texts before which a generation is cut; `cut_tokens` of a
    document's beginning are left out of its prompt, since the model has no positions for them. `risky` says
    of each answer token whether it belongs to a term, where terms are looked for.
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
    stop: tuple[str, ...] = ()
    cut_tokens: int = 0
    risky: tuple[bool, ...] = ()

    @property
    def pair(self) -> str:
        """Names the tokens of prompt and answer: what is scored is scored once per pair."""
        return _name(self.prompt_ids, self.answer_ids)

    @property
    def prompt_name(self) -> str:
        """Names the prompt's tokens: a greedy generation depends on nothing else."""
        return _name(self.prompt_ids)

    @property
    def sample_name(self) -> str:
        """Names one of several samples for a prompt."""
        return f"{self.prompt_name}/{self.index}"

    def scored(self, result: Mapping[str, Any], stop: Collection[int]) -> dict[str, Any]:
        """The record of a likelihood result; `stop` are the tokens that end an answer."""
        ends = bool(self.answer_ids) and self.answer_ids[-1] in stop
        return {
            **self._shared(),
            **{name: result[name] for name in PER_TOKEN},
            "num_tokens": len(result["logps"]),
            "risky": list(self.risky) if len(result["logps"]) else [],
            "ends_with_eos": ends,
        }

    def spoken(self, result: Mapping[str, Any], stop: Collection[int]) -> dict[str, Any]:
        """The record of a generation."""
        text = result["text"]
        for end in self.stop if text is not None else ():
            text = text.partition(end)[0].rstrip()
        return {
            **self._shared(),
            "text": text,
            "num_tokens": result["num_new_tokens"],
            "tokens": [token for token in result["tokens"] if token not in stop],
            "reference_tokens": [token for token in self.answer_ids if token not in stop],
            "cut_tokens": self.cut_tokens,
        }

    def numbered(self, field: str, value: float) -> dict[str, Any]:
        """The record of a single number."""
        return {**self._shared(), "field": field, "value": value}

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
    dataset: str, rows: Rows, tokenizer: Any, template: Template, *, probe: str = ANSWER_LIKELIHOOD,
    terms: re.Pattern[str] | None = None,
) -> list[Question]:  # fmt: skip
    """The answer, its paraphrase and its perturbations, where a row has them.

    Args:
        terms: tokens of the answers that belong to a match are marked.

    Raises:
        ModelError: terms, and a tokenizer that does not tell where its tokens stand.
    """
    questions = []
    for row in rows:
        if is_document(row):
            ids = document_ids(row, tokenizer)
            made = document_question(probe, ANSWER, dataset, row, tokenizer, ids, border=1)
            if terms is not None:
                offsets = encode(tokenizer, row["text"], offsets=True).offsets or []
                marks = risky_tokens(row["text"], 0, offsets, terms)
                made = dataclasses.replace(made, risky=marks[1:])
            questions.append(made)
            continue
        prompt, _ = prompt_and_answer(row)
        questions += [
            _question(probe, dataset, row, field, index, prompt, text, tokenizer, template, terms)
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
    dataset: str, rows: Rows, tokenizer: Any, template: Template, *, ask: Ask | None = None,
    shots: Rows = (), probe: str = GENERATE_ANSWER, field: str = GENERATION,
) -> list[Question]:  # fmt: skip
    """Each row's prompt, after `shots` that are answered; of a document its first half."""
    stop = tuple(ask.stop) if ask is not None else ()
    questions = []
    for row in rows:
        if is_document(row):
            ids = document_ids(row, tokenizer)
            made = document_question(probe, field, dataset, row, tokenizer, ids, border=max(1, len(ids) // 2))
        else:
            prompt, answer = prompt_and_answer(row)
            made = _question(
                probe, dataset, row, field, 0, _after(shots, prompt), answer, tokenizer, template
            )
        questions.append(dataclasses.replace(made, stop=stop))
    return questions


def with_answer_prefix(questions: Iterable[Question], num_tokens: int, tokenizer: Any) -> list[Question]:
    """Move the first tokens of each answer into its prompt; at least one token is left to be measured."""
    out = []
    for one in questions:
        border = max(0, min(num_tokens, len(one.answer_ids) - 2))  # the EOS is no answer
        given, rest = one.answer_ids[:border], one.answer_ids[border:]
        out.append(
            dataclasses.replace(
                one,
                prompt=f"{one.prompt} {tokenizer.decode(given, skip_special_tokens=True).strip()}".strip(),
                answer=tokenizer.decode(rest, skip_special_tokens=True).strip(),
                prompt_ids=one.prompt_ids + given,
                answer_ids=rest,
                risky=one.risky[border:],
            )
        )
    return out


def is_document(row: Mapping[str, Any]) -> bool:
    """Whether a row is a text without a question."""
    return row.get("text") is not None


def _after(shots: Rows, prompt: Any) -> Any:
    """The prompt after answered examples, as earlier turns of one conversation."""
    turns: list[dict[str, str]] = []
    for shot in shots:
        asked, answered = prompt_and_answer(shot)
        turns += _as_turns(asked)
        turns.append({"role": "assistant", "content": text_of(answered)})
    return [*turns, *_as_turns(prompt)] if turns else prompt


def _as_turns(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _question(
    probe: str, dataset: str, row: Mapping[str, Any], field: str, index: int, prompt: Any, answer: Any,
    tokenizer: Any, template: Template, terms: re.Pattern[str] | None = None,
) -> Question:  # fmt: skip
    texts = template.texts(tokenizer, prompt, answer)
    before, after, _ = encode_pair(tokenizer, *texts, chat=template.chat, offsets=terms is not None)
    offsets = after.offsets or []
    risky = () if terms is None else risky_tokens("".join(texts), len(texts[0]), offsets, terms)
    return Question(
        probe,
        dataset,
        row["example_id"],
        field,
        index,
        shown(prompt),
        text_of(answer),
        tuple(before.ids),
        tuple(after.ids),
        risky=risky,
    )


def shown(prompt: Any) -> str:
    """A prompt, or its messages, as records show it."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)


def text_of(answer: Any) -> str:
    """An answer, or the last of its messages, as text."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def document_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """The tokens of a text without a question."""
    return list(tokenizer(row["text"])["input_ids"])


def document_question(
    probe: str, field: str, dataset: str, row: Mapping[str, Any], tokenizer: Any, ids: Sequence[int], *,
    border: int,
) -> Question:  # fmt: skip
    """A text without a question: its tokens up to `border` are prompt, the rest answer."""
    prompt, answer = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:border], ids[border:])
    )
    return Question(
        probe, dataset, row["example_id"], field, 0, prompt, answer, tuple(ids[:border]), tuple(ids[border:])
    )
