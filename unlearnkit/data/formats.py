"""Rows -> `input_ids` and `labels`: the only place where text becomes tokens.

A prompt is written through the tokenizer's chat template or between plain tags. Labels are -100 on the prompt
and equal to `input_ids` on the answer and on one EOS. Labels are not shifted here (see
`training/logprobs.py`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from unlearnkit.errors import DataError, ModelError
from unlearnkit.files import fingerprint
from unlearnkit.recipe import TemplateSpec

IGNORE = -100
#: How chat templates ask for today's date.
_TODAY = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<form>.*?)(?P=quote)\s*\)")


class TokenRow(TypedDict):
    """One example as tokens; `labels` are unshifted and have the length of `input_ids`."""

    example_id: str
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Template:
    """How a prompt and an answer are written as one text.

    Build it with `Template.for_tokenizer`, which settles `auto`.
    """

    spec: TemplateSpec
    chat: bool

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, spec: TemplateSpec | None = None) -> Template:
        """Settle `auto` for this tokenizer.

        Raises:
            ModelError: `kind: chat` for a tokenizer without a chat template, or a tokenizer without EOS.
        """
        spec = spec or TemplateSpec()
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so no answer could end; set tokenizer.eos_token"
            )
        if spec.kind == "chat" and not has_template:
            raise ModelError(
                "data.template.kind is chat, but the tokenizer has no chat template; use plain, or a chat "
                "model"
            )
        return cls(spec, chat=has_template if spec.kind == "auto" else spec.kind == "chat")

    def texts(self, tokenizer: Any, prompt: Any, answer: Any) -> tuple[str, str]:
        """(prompt text, answer text); the model generates after exactly the first one."""
        return self._chat(tokenizer, prompt, answer) if self.chat else self._plain(prompt, answer)

    def _plain(self, prompt: Any, answer: Any) -> tuple[str, str]:
        s = self.spec
        system = f"{s.system}\n" if s.system else ""
        turns = _as_messages(prompt, "user")
        if system and turns[0]["role"] == "system":
            system = ""  # a row's own system message comes first, as it does in a chat template
        before = system + "".join(self._turn(m) for m in turns) + s.answer_start
        # A tokenizer joins the space before a word to that word, so the space belongs to the answer.
        stripped = before.rstrip(" ")
        return stripped, before[len(stripped) :] + _content(answer) + s.answer_end

    def _turn(self, message: Mapping[str, str]) -> str:
        """One earlier message between the plain tags."""
        s, content = self.spec, message["content"]
        if message["role"] == "system":
            return f"{content}\n"
        if message["role"] == "assistant":
            return f"{s.answer_start}{content}{s.answer_end}\n"
        return f"{s.question_start}{content}{s.question_end}"

    def _chat(self, tokenizer: Any, prompt: Any, answer: Any) -> tuple[str, str]:
        messages = _as_messages(prompt, "user")
        if self.spec.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.spec.system}, *messages]
        options = dict(self.spec.chat_template_kwargs)
        options["chat_template"] = _with_fixed_date(tokenizer.get_chat_template(options.get("chat_template")))
        before = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )
        whole = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": _content(answer)}], tokenize=False, **options
        )
        if whole.startswith(before):
            return before, whole[len(before) :]
        # Templates that write the generation prompt otherwise than the turn itself (thinking models): keep
        # the prompt that generation will see.
        return before, _content(answer) + tokenizer.eos_token

    @property
    def fingerprint(self) -> str:
        """A name for everything in the template that can change a token."""
        return fingerprint(self.chat, vars(self.spec))


def _with_fixed_date(template: str) -> str:
    """A chat template that tells a fixed date in place of today's: the one Llama 3 tells without a clock.

    Else a model would be asked something else every day. `date_string` in `chat_template_kwargs` sets another
    one where the template reads it.
    """
    date = datetime.date(2024, 7, 26)
    return _TODAY.sub(lambda call: repr(date.strftime(call["form"])), template)


def _as_messages(prompt: Any, role: str) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": role, "content": prompt}]
    # A table gives every message the keys of all others, null where a message has none.
    return [{k: v for k, v in m.items() if v is not None} for m in prompt]


def _content(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


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
    _refuse_long(too_long, max_length, name)
    if not out.rows:
        raise DataError(f"data.{name} has no rows; give it at least one example")
    out.lengths = [len(r["input_ids"]) for r in out.rows]
    return out


def _refuse_long(too_long: list[tuple[int, int]], max_length: int, name: str) -> None:
    if too_long:
        listed = ", ".join(f"row {n} has {length} tokens" for n, length in too_long[:3])
        longest = max(length for _, length in too_long)
        raise DataError(
            f"data.{name}: {len(too_long)} example(s) do not fit data.max_length={max_length} ({listed}); "
            f"set data.max_length to {longest} or more, or data.truncate: true to cut the answers"
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
