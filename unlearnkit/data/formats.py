"""Rows -> `input_ids` and `labels`: the only place where text becomes tokens.

Labels are -100 on the prompt and equal to `input_ids` on the answer and on one EOS. They are not shifted here
(see `training/logprobs.py`). How a prompt and an answer are written as one text is said in
`data/template.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from unlearnkit.data.cells import listed_rows
from unlearnkit.data.template import Template as Template
from unlearnkit.errors import DataError
from unlearnkit.files import fingerprint

IGNORE = -100


class TokenRow(TypedDict):
    """One example as tokens; `labels` are unshifted and have the length of `input_ids`."""

    example_id: str
    input_ids: list[int]
    labels: list[int]


@dataclass
class Tokenized:
    """Token rows of one stream, and what was noticed on the way."""

    rows: list[TokenRow]
    #: Rows whose prompt tokens were no prefix of the whole text's tokens: prompt and answer were tokenised
    #: apart.
    split_rows: int = 0
    #: Rows that were cut to `max_length` (only with `truncate`).
    cut_rows: int = 0
    lengths: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(r["input_ids"]) for r in self.rows)

    @property
    def num_target_tokens(self) -> int:
        """Tokens that count in a loss."""
        return sum(sum(label != IGNORE for label in r["labels"][1:]) for r in self.rows)

    @property
    def fingerprint(self) -> str:
        """Names the exact tokens and labels; with the model's it names every log-prob computed from them."""
        return fingerprint([(r["example_id"], r["input_ids"], r["labels"]) for r in self.rows])


def tokenize_pair(
    tokenizer: Any, prompt_text: str, answer_text: str, *, chat: bool
) -> tuple[list[int], list[int], bool]:
    """(prompt ids, answer ids with exactly one EOS at the end, whether the prompt was a prefix of the whole).

    The whole text is tokenised at once, as at training time elsewhere, and the prompt is masked by prefix.
    Where the prompt's tokens are no prefix (a merge across the border), both sides are tokenised apart, which
    is what generation sees.
    """
    special = not chat  # a chat template writes its own BOS
    prompt_ids = list(tokenizer(prompt_text, add_special_tokens=special)["input_ids"])
    whole_ids = list(tokenizer(prompt_text + answer_text, add_special_tokens=special)["input_ids"])
    if special:  # in a chat an EOS at the end of the prompt is the template's own
        prompt_ids, whole_ids = _without_eos(tokenizer, prompt_ids), _without_eos(tokenizer, whole_ids)
    is_prefix = whole_ids[: len(prompt_ids)] == prompt_ids
    answer_ids = (
        whole_ids[len(prompt_ids) :]
        if is_prefix
        else list(tokenizer(answer_text, add_special_tokens=False)["input_ids"])
    )
    return prompt_ids, _one_eos(tokenizer, answer_ids, chat), is_prefix


def _without_eos(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Drop an EOS that the tokenizer appends by itself to every text."""
    ids = list(ids)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1 else ids


def _one_eos(tokenizer: Any, ids: list[int], chat: bool) -> list[int]:
    """End the answer with one EOS; a chat template's newline after the end-of-turn token is dropped."""
    eos = tokenizer.eos_token_id
    if chat and eos in ids:
        last = len(ids) - 1 - ids[::-1].index(eos)
        if not tokenizer.decode(ids[last + 1 :]).strip():
            ids = ids[:last]
    while ids and ids[-1] == eos:
        ids = ids[:-1]
    return [*ids, eos]


def prompt_and_answer(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The prompt and the answer of a canonical row; of `messages` the last assistant turn is the answer."""
    if row.get("messages"):
        messages = row["messages"]
        if messages[-1]["role"] != "assistant":
            raise DataError(
                f"example {row['example_id']} ends with a {messages[-1]['role']} message; the last "
                "must be the assistant's"
            )
        if len(messages) < 2:
            raise DataError(
                f"example {row['example_id']} has no message before the assistant's; put the question there"
            )
        return list(messages[:-1]), messages[-1]["content"]
    return row["prompt"], row["completion"]


def with_answer(row: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """The same question under the same `example_id` with another answer, as `prompt` and `completion`.

    Args:
        row: a canonical row of any shape with a prompt.
        answer: text, or messages of which the last is the answer.

    Raises:
        DataError: a `text` row, which asks nothing.
    """
    if not row.get("messages") and row.get("prompt") is None:
        raise DataError(
            f"example {row['example_id']} is a text without a prompt, so it cannot get another answer; give "
            "its stream prompt and completion, or messages"
        )
    prompt = row["messages"][:-1] if row.get("messages") else row["prompt"]
    return {"example_id": row["example_id"], "prompt": prompt, "completion": answer}


def tokenize_stream(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    template: Template,
    *,
    max_length: int,
    truncate: bool = False,
    name: str = "data",
) -> Tokenized:
    """Tokenise canonical rows.

    Args:
        rows: canonical rows (see `data/streams.py`).
        max_length: tokens at most in one example; `text` rows that are longer become several examples.
        truncate: cut an answer that does not fit instead of refusing it.

    Raises:
        DataError: an answer that does not fit, named by row with its length.
    """
    out = Tokenized([])
    too_long: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        if row.get("text") is not None and "prompt" not in row:
            out.rows.extend(_text_rows(row, tokenizer, max_length))
            continue
        prompt, answer = prompt_and_answer(row)
        prompt_ids, answer_ids, is_prefix = tokenize_pair(
            tokenizer, *template.texts(tokenizer, prompt, answer), chat=template.chat
        )
        out.split_rows += not is_prefix
        length = len(prompt_ids) + len(answer_ids)
        if length > max_length:
            # An answer of which nothing would be left is refused even when cutting is allowed.
            if not truncate or len(prompt_ids) >= max_length:
                too_long.append((number, length))
                continue
            answer_ids = answer_ids[: max_length - len(prompt_ids)]
            out.cut_rows += 1
        out.rows.append(
            TokenRow(
                example_id=row["example_id"],
                input_ids=prompt_ids + answer_ids,
                labels=[IGNORE] * len(prompt_ids) + answer_ids,
            )
        )
    _refuse_long(too_long, max_length, name, truncate)
    if not out.rows:
        raise DataError(f"data.{name} has no rows; give it at least one example")
    out.lengths = [len(r["input_ids"]) for r in out.rows]
    return out


def _refuse_long(too_long: list[tuple[int, int]], max_length: int, name: str, truncate: bool) -> None:
    if too_long:
        listed = ", ".join(f"row {n} has {length} tokens" for n, length in too_long[:3])
        longest = max(length for _, length in too_long)
        also = ", or data.truncate: true to cut the answers"
        if truncate:
            also = "; cutting would leave nothing of their answers, and prompts are not cut"
        raise DataError(
            f"data.{name}: {len(too_long)} example(s) do not fit data.max_length={max_length} ({listed}); "
            f"set data.max_length to {longest} or more{also}"
        )


def refuse_equal_pairs(chosen: Tokenized, rejected: Tokenized, name: str, max_length: int) -> None:
    """Refuse preference pairs whose two sides are the same tokens, as they are where cutting removed the
    difference.

    Args:
        chosen: rows aligned with those of `rejected`.
        name: the stream's name, for messages.
        max_length: the bound at which rows were cut.

    Raises:
        DataError: names the first pairs by number.
    """
    sides = enumerate(zip(chosen.rows, rejected.rows, strict=True))
    same = [(n, len(one["input_ids"])) for n, (one, other) in sides if one["input_ids"] == other["input_ids"]]
    if same:
        cut = any(length >= max_length for _, length in same)
        remedy = f"data.max_length={max_length} cuts off where they differ, so raise it" if cut else (
            "they differ only in what the template or the tokenizer drops, so write another answer"
        )  # fmt: skip
        raise DataError(
            f"data.{name}: {len(same)} pair(s) have a chosen and a rejected answer of the same tokens "
            f"({listed_rows([n for n, _ in same])}); {remedy}, or remove the pair(s)"
        )


def _text_rows(row: Mapping[str, Any], tokenizer: Any, max_length: int) -> list[TokenRow]:
    """A document as consecutive pieces of `max_length` tokens at most; all but the first are targets."""
    ids = _one_eos(tokenizer, _without_eos(tokenizer, tokenizer(row["text"])["input_ids"]), chat=False)
    pieces = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
    if len(pieces) > 1 and len(pieces[-1]) < 2:
        pieces.pop()  # a lone last token would be a target without any context
    return [
        TokenRow(
            example_id=row["example_id"] if len(pieces) == 1 else f"{row['example_id']}/{i}",
            input_ids=piece,
            labels=[IGNORE, *piece[1:]],
        )
        for i, piece in enumerate(pieces)
    ]
