"""Text -> tokens, and where they stand in the text for whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearnkit.errors import ModelError

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Tokens:
    """Token ids, and from which to which character of the text each goes (None if nobody asked)."""

    ids: list[int]
    offsets: Offsets | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], None if self.offsets is None else self.offsets[part])

    def __add__(self, other: Tokens) -> Tokens:
        both = None if self.offsets is None or other.offsets is None else self.offsets + other.offsets
        return Tokens(self.ids + other.ids, both)

    def ended(self, token: int, at: int) -> Tokens:
        """With one more token, which stands for no character, at the end of the text."""
        return self + Tokens([token], None if self.offsets is None else [(at, at)])


def encode(
    tokenizer: Any, text: str, *, special: bool = True, offsets: bool = False, start: int = 0
) -> Tokens:
    """Tokenise a text.

    Args:
        special: let the tokenizer put its own BOS or EOS around the text.
        offsets: also tell where each token stands.
        start: where the text begins in a longer one, in which the offsets count.

    Raises:
        ModelError: offsets are wanted of a tokenizer that has none.
    """
    if offsets and not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} does not tell where its tokens stand in the text, "
            "which risk spans and normalised windows need; load the fast one (AutoTokenizer with "
            "use_fast=True, which writes a tokenizer.json)"
        )
    extra = {"return_offsets_mapping": True} if offsets else {}
    out = tokenizer(text, add_special_tokens=special, **extra)
    if not offsets:
        return Tokens(list(out["input_ids"]))
    return Tokens(list(out["input_ids"]), [(a + start, b + start) for a, b in out["offset_mapping"]])


def without_eos(tokenizer: Any, tokens: Tokens) -> Tokens:
    """Drop an EOS that the tokenizer appends by itself to every text."""
    return tokens[:-1] if len(tokens) > 1 and tokens.ids[-1] == tokenizer.eos_token_id else tokens


def with_one_eos(tokenizer: Any, tokens: Tokens, *, chat: bool, at: int = 0) -> Tokens:
    """End the answer with one EOS; a chat template's newline after the end-of-turn token is dropped.

    Args:
        at: the length of the text, where the EOS stands.
    """
    eos = tokenizer.eos_token_id
    if chat and eos in tokens.ids:
        last = len(tokens) - 1 - tokens.ids[::-1].index(eos)
        if not tokenizer.decode(tokens.ids[last + 1 :]).strip():
            tokens = tokens[:last]
    while tokens.ids and tokens.ids[-1] == eos:
        tokens = tokens[:-1]
    return tokens.ended(eos, at)


def encode_pair(
    tokenizer: Any, prompt_text: str, answer_text: str, *, chat: bool, offsets: bool = False
) -> tuple[Tokens, Tokens, bool]:
    """(prompt, answer with exactly one EOS at the end, whether the prompt was a prefix of the whole).

    The whole text is tokenised at once, as at training time elsewhere, and the prompt is masked by prefix.
    Where the prompt's tokens are no prefix (a merge across the border), both sides are tokenised apart, which
    is what generation sees. Offsets count from the beginning of the prompt.
    """
    special = not chat  # a chat template writes its own BOS
    prompt = encode(tokenizer, prompt_text, special=special, offsets=offsets)
    whole = encode(tokenizer, prompt_text + answer_text, special=special, offsets=offsets)
    if special:  # in a chat an EOS at the end of the prompt is the template's own
        prompt, whole = without_eos(tokenizer, prompt), without_eos(tokenizer, whole)
    is_prefix = whole.ids[: len(prompt)] == prompt.ids
    before = len(prompt_text)
    answer = (
        whole[len(prompt) :]
        if is_prefix
        else encode(tokenizer, answer_text, special=False, offsets=offsets, start=before)
    )
    return prompt, with_one_eos(tokenizer, answer, chat=chat, at=before + len(answer_text)), is_prefix


def tokenize_pair(
    tokenizer: Any, prompt_text: str, answer_text: str, *, chat: bool
) -> tuple[list[int], list[int], bool]:
    """The ids of `encode_pair`."""
    prompt, answer, is_prefix = encode_pair(tokenizer, prompt_text, answer_text, chat=chat)
    return prompt.ids, answer.ids, is_prefix


def encode_document(tokenizer: Any, text: str, *, offsets: bool = False) -> Tokens:
    """A whole document, ended by one EOS."""
    tokens = without_eos(tokenizer, encode(tokenizer, text, offsets=offsets))
    return with_one_eos(tokenizer, tokens, chat=False, at=len(text))


def pieces(length: int, longest: int) -> Sequence[tuple[int, int]]:
    """From where to where a document of `length` tokens is cut into consecutive pieces of `longest` at most.

    A lone last token, which would be a target without any context, is left out.
    """
    cuts = [(start, min(start + longest, length)) for start in range(0, length, longest)]
    return cuts[:-1] if len(cuts) > 1 and cuts[-1][1] - cuts[-1][0] < 2 else cuts
