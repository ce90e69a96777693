"""A prompt and an answer as one text: through the tokenizer's chat template, or between plain tags."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnkit.data.cells import answer_text
from unlearnkit.errors import ModelError
from unlearnkit.files import fingerprint
from unlearnkit.recipe import TemplateSpec

#: How chat templates ask for today's date.
_TODAY = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<form>.*?)(?P=quote)\s*\)")


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
        return stripped, before[len(stripped) :] + answer_text(answer) + s.answer_end

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
            [*messages, {"role": "assistant", "content": answer_text(answer)}], tokenize=False, **options
        )
        if whole.startswith(before):
            return before, whole[len(before) :]
        # Templates that write the generation prompt otherwise than the turn itself (thinking models): keep
        # the prompt that generation will see.
        return before, answer_text(answer) + tokenizer.eos_token

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
