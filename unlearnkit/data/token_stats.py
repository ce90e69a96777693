"""Which target tokens are learned: statistics of tokens in, a weight for each token out.

A selector looks at N target tokens and says how much each of them is learned, and how much it is unlearned.
One that needs no model is a mask of the data: it is applied once, to each example, before batches are made,
so that tokens which are not learned are no targets at all: they are not counted, and no logits are computed
for them. One that reads numbers of the model sees those of the whole global batch (`training/selective.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor

from unlearnkit.data.cells import levelled
from unlearnkit.data.spans import Span, token_risks

if TYPE_CHECKING:
    from unlearnkit.data.encoding import Tokens


class TokenWeights(NamedTuple):
    """Per target token, float32 [N] in [0, 1]: the weights of -log p and of -log(1 - p)."""

    learn: Tensor
    unlearn: Tensor

    @classmethod
    def keep(cls, keep_N: Tensor) -> TokenWeights:
        """Learn where `keep_N` is true, and nothing elsewhere."""
        return cls(keep_N.float(), torch.zeros(len(keep_N), device=keep_N.device))

    def both(self, other: TokenWeights) -> TokenWeights:
        """What is left when two selectors decide: learned if both learn it, unlearned if one unlearns it.

        Nothing is learned and unlearned at once: to unlearn is the stronger wish.
        """
        unlearn = torch.maximum(self.unlearn, other.unlearn)
        return TokenWeights(self.learn * other.learn * (unlearn == 0), unlearn)


class TokenStats:
    """What is known about N target tokens, computed when first asked for, without gradient.

    An example that is not yet in a batch knows its text and tokens; a batch that went through the model knows
    the model's numbers. Asking one for what the other knows is a mistake of the selector.

    Raises:
        RuntimeError: for every number that is not known here.
    """

    def _unknown(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"a selector asks for {name}, which is not known where it is applied; selectors that read the "
            "model's numbers name them in `reads`, and read nothing of the text"
        )

    @property
    def targets(self) -> Tensor:
        """The target tokens: int64 [N]."""
        self._unknown("targets")

    # ---- Of one example ------------------------------------------------------------------------------------

    @property
    def example_id(self) -> str:
        """The example's name."""
        self._unknown("example_id")

    @property
    def places(self) -> Tensor:
        """Each target's place among the example's tokens, the first of which is 0: int64 [N]."""
        self._unknown("places")

    @property
    def special(self) -> Tensor:
        """Whether a target is one of the tokenizer's special tokens (EOS, turn markers): bool [N]."""
        self._unknown("special")

    @property
    def risks(self) -> list[str]:
        """The risk class of the span that each target lies in, "" for none: [N]."""
        self._unknown("risks")

    def preceding(self, h: int) -> Tensor:
        """The h tokens before each target, oldest first; -1 before the document's beginning: int64 [N, h]."""
        self._unknown("preceding")

    def preceding_words(self, h: int) -> list[str | None]:
        """The h whole words before each target's first character, and what of its own word stands before it.

        Case, width and spacing are levelled. None where there are fewer words.
        """
        self._unknown("preceding_words")

    # ---- Of the model --------------------------------------------------------------------------------------

    @property
    def logps(self) -> Tensor:
        """log p of each target: float32 [N]."""
        self._unknown("logps")

    @property
    def entropies(self) -> Tensor:
        """Entropy of the model's distribution at each target, in nats: float32 [N]."""
        self._unknown("entropies")

    @property
    def error_norms(self) -> Tensor:
        """Euclidean distance of the distribution from the target's own, in [0, sqrt 2]: float32 [N]."""
        self._unknown("error_norms")

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""
        self._unknown("step")


@runtime_checkable
class Selector(Protocol):
    """Says which tokens are learned; a frozen dataclass whose fields are its settings.

    Optional attributes: `unlearns` (bool), that some of its weights may unlearn; `reads_text` (bool), that
    risks or words are read, for which a tokenizer must tell where its tokens stand in the text; `check(data,
    where)`, which raises DataError for rows that it cannot work on, before a model is loaded;
    `remark(longest)`, a sentence to warn with once the examples are tokenised, of which the longest has
    `longest` tokens, or None; `remark_risks(risks)`, the same of the risk classes that targets have; `state`
    (see `training/state.py`).
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Which of the model's numbers are read ("logps", "entropies", "error_norms"); () for none."""

    def __call__(self, stats: TokenStats) -> TokenWeights:
        """The weights of the N target tokens."""


class ExampleStats(TokenStats):
    """What is known about the targets of one example.

    Args:
        example_id: its name.
        tokens: all of its tokens, with their places in `text` if somebody reads the text.
        labels: unshifted, -100 where there is no target.
        special_ids: the tokenizer's special tokens.
        text: what was tokenised.
        spans: risky stretches of the text.
    """

    def __init__(
        self, example_id: str, tokens: Tokens, labels: Sequence[int], special_ids: Iterable[int],
        text: str = "", spans: Sequence[Span] = (),
    ) -> None:  # fmt: skip
        self._example_id = example_id
        self._tokens = tokens
        self._special_ids = frozenset(special_ids)
        self._text, self._spans = text, spans
        self._where = [place for place in range(1, len(labels)) if labels[place] >= 0]

    @property
    def targets(self) -> Tensor:
        """As in TokenStats."""
        return self._ids[self.places]

    @property
    def example_id(self) -> str:
        """As in TokenStats."""
        return self._example_id

    @cached_property
    def places(self) -> Tensor:
        """As in TokenStats."""
        return torch.tensor(self._where, dtype=torch.long)

    @cached_property
    def special(self) -> Tensor:
        """As in TokenStats."""
        return torch.tensor([self._tokens.ids[place] in self._special_ids for place in self._where]).bool()

    @cached_property
    def risks(self) -> list[str]:
        """As in TokenStats."""
        risks = token_risks(self._text, self._offsets, self._spans)
        return [risks[place] for place in self._where]

    @property
    def knows_risks(self) -> bool:
        """Whether somebody has asked for the risks."""
        return "risks" in vars(self)

    def preceding(self, h: int) -> Tensor:
        """As in TokenStats."""
        before = torch.full((h,), -1, dtype=torch.long)
        return torch.cat([before, self._ids]).unfold(0, h, 1)[self.places]

    def preceding_words(self, h: int) -> list[str | None]:
        """As in TokenStats."""
        offsets = self._offsets
        begin = _word_start(self._text, offsets[0][0] if offsets else 0)
        words = _words(self._text, begin)
        found: list[str | None] = []
        for place in self._where:
            start = offsets[place][0]
            while start < offsets[place][1] and self._text[start].isspace():
                start += 1  # a token may begin with the space before its word
            number = _whole_words(words, start)
            if number < h:
                found.append(None)
                continue
            own = words[number] if number < len(words) else None
            begun = levelled(self._text[own[0] : start]) if own is not None and own[0] < start else ""
            found.append(" ".join([*(word for _, _, word in words[number - h : number]), begun]))
        return found

    @cached_property
    def _ids(self) -> Tensor:
        return torch.tensor(self._tokens.ids, dtype=torch.long)

    @property
    def _offsets(self) -> Sequence[tuple[int, int]]:
        if self._tokens.offsets is None:
            raise RuntimeError("a selector reads the text, but its `reads_text` does not say so")
        return self._tokens.offsets


def _word_start(text: str, place: int) -> int:
    """Where the first whole word at or after a place begins: a piece may begin inside of one."""
    while 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace():
        place += 1
    return place


def _words(text: str, begin: int) -> list[tuple[int, int, str]]:
    """(start, end, levelled) of everything between white space from `begin` on."""
    words, place = [], begin
    for piece in text[begin:].split():
        start = text.index(piece, place)
        place = start + len(piece)
        words.append((start, place, levelled(piece)))
    return words


def _whole_words(words: Sequence[tuple[int, int, str]], start: int) -> int:
    """How many of the words end at or before a place in the text."""
    low, high = 0, len(words)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if words[middle][1] <= start else (low, middle)
    return low


def combined(selectors: Sequence[Selector], stats: TokenStats) -> TokenWeights:
    """What selectors decide together; all targets are learned where there is none."""
    everything = TokenWeights.keep(torch.ones_like(stats.targets))
    return reduce(TokenWeights.both, (selector(stats) for selector in selectors), everything)


def of_the_data(selectors: Iterable[Selector]) -> tuple[Selector, ...]:
    """Those that read nothing of the model."""
    return tuple(one for one in selectors if not one.reads)


def of_the_model(selectors: Iterable[Selector]) -> tuple[Selector, ...]:
    """Those that read the model's numbers."""
    return tuple(one for one in selectors if one.reads)


def reads_text(selectors: Iterable[Selector]) -> bool:
    """Whether one of them asks where tokens stand in the text."""
    return any(getattr(one, "reads_text", False) for one in selectors)


def check_selectors(selectors: Iterable[Selector], data: Any, where: str) -> None:
    """What can be known of rows before they are tokenised.

    Raises:
        DataError: a selector cannot work on them.
    """
    for one in selectors:
        if callable(check := getattr(one, "check", None)):
            check(data, where)
