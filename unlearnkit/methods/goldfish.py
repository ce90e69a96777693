"""Goldfish loss (arXiv 2406.10209): training that does not memorise.

    L = -1/|G| sum_t G_t log pi_theta(y_t | x, y_<t)        |G| = sum_t G_t        (`token_mean`)

G_t is 0 for one target in k. Such a token is not learned but stays in the context of those that follow. The
same passage has its holes at the same tokens wherever it comes again, so that a model which has seen it often
must still guess there, and cannot recite it. Strategies:

    hash            G_t = 0 iff f(x_{t-h}, ..., x_{t-1}) < 1/k                          (the paper's rule)
    compat          G_t = 0 iff table[x_{t-h+1} * ... * x_t mod 1000003] < 1/k          (the authors' code)
    static          every k-th target of an example
    seeded_random   one target in k, drawn by (goldfish_seed, example_id, place)

f hashes the h tokens before the target, in their order, to [0, 1) in integer arithmetic, which is the same on
every device. The window never reaches beyond the document (or the piece of it) that is trained on, and where
there are fewer than h tokens nothing is dropped. A passage's holes are its own from its (h+1)-th token on.
The holes are made in the labels before there are batches, so a dropped token is no target: it is not counted,
and it has no logits.

Where we differ from the authors: their window ends with the target itself, so after the same h-1 tokens one
continuation in k is never learned while the others are; here a place is learned for every continuation, or
for none. Their product of ids forgets their order, and one id of 0 makes it 0. `compat` does as they did, but
within a document, and special tokens are kept unless `exempt_special` is false.

Logged: `train/nll` per learned token, and `train/kept`, the share of targets that are learned, near 1 - 1/k.

Defaults: k 4 and h 13 (the authors' released models'); learning rate and epochs as in fine-tuning.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnkit.data.token_stats import TokenStats, TokenWeights
from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean
from unlearnkit.training.objective import Objective
from unlearnkit.training.selective import SelectiveConfig, SelectiveNLL
from unlearnkit.training.trainer import UnlearnTrainer

StrategyName = Literal["hash", "static", "seeded_random", "compat"]

#: Bits of a hash that become a number in [0, 1): as many as a float64 holds exactly.
_BITS = 53
#: The authors' table: its length, and the seed that it is drawn from.
_TABLE_LENGTH, _TABLE_SEED = 1_000_003, 2_971_215_073


# ---- Functions on tensors ----------------------------------------------------------------------------------


def splitmix64(x: Tensor) -> Tensor:
    """Mix the bits of int64 numbers, one to one; products and sums wrap modulo 2^64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros from the left; torch's own shift of int64 repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """A whole number modulo 2^64, as int64 writes it."""
    return (value + 2**63) % 2**64 - 2**63


def chained_hash(columns_NH: Tensor, seed: int) -> Tensor:
    """One int64 for each row of int64 numbers, which their order matters to: [N, H] -> [N].

    s_0 = splitmix64(seed), s_j = splitmix64(s_{j-1} xor (x_j + 1)).
    """
    state_N = splitmix64(torch.full_like(columns_NH[:, 0], _signed(seed)))
    for column_N in (columns_NH + 1).unbind(1):
        state_N = splitmix64(state_N ^ column_N)
    return state_N


def is_below(hashes_N: Tensor, share: float) -> Tensor:
    """Whether a hash's top 53 bits, read as a number in [0, 1), are below `share`: [N] -> bool [N].

    Compared as whole numbers, which every device has; scaling by a power of two changes nothing.
    """
    return torch.lt(_shifted(hashes_N, 64 - _BITS), math.ceil(share * 2**_BITS))


def hash_drops(preceding_NH: Tensor, *, k: float, seed: int = 0) -> Tensor:
    """Which targets are dropped, by the h tokens before each of them: [N, h] -> bool [N].

    Args:
        preceding_NH: oldest first; -1 where there is none, in which case nothing is dropped.
        k: one target in k is dropped.
        seed: another one gives other holes.
    """
    return is_below(chained_hash(preceding_NH, seed), 1 / k) & (preceding_NH[:, 0] >= 0)


def text_drops(windows: list[str | None], *, k: float, seed: int = 0) -> Tensor:
    """The same by a text before each target: [N] -> bool [N]. Nothing is dropped where there is none."""
    keys = torch.tensor([_text_key(window or "") for window in windows], dtype=torch.long)
    known = torch.tensor([window is not None for window in windows], dtype=torch.bool)
    return is_below(chained_hash(keys[:, None], seed), 1 / k) & known


def _text_key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def static_drops(places_N: Tensor, *, k: int) -> Tensor:
    """Every k-th target, the k-th first: [N] -> bool [N]."""
    return torch.arange(1, len(places_N) + 1, device=places_N.device) % k == 0


def random_drops(places_N: Tensor, *, example_id: str, k: float, seed: int = 0) -> Tensor:
    """One target in k, drawn by the example's name and the place in it: [N] -> bool [N]."""
    names_N = torch.full_like(places_N, _text_key(example_id))
    return is_below(chained_hash(torch.stack([names_N, places_N], 1), seed), 1 / k)


def compat_drops(preceding_NH: Tensor, targets_N: Tensor, *, k: float) -> Tensor:
    """The authors' hash table over the target and the h-1 tokens before it: [N, h], [N] -> bool [N].

    Their first h-1 shifted targets are never dropped, so there must be h tokens before a target although the
    first of them is not looked at. The product wraps, and its remainder has the sign of the divisor.
    """
    window_NH = torch.cat([preceding_NH[:, 1:], targets_N[:, None]], dim=1)
    entries_N = window_NH.prod(dim=1).remainder(_TABLE_LENGTH)
    dropped_N = hash_table().to(targets_N.device)[entries_N] < 1 / k
    return dropped_N & (preceding_NH[:, 0] >= 0)


@functools.cache
def hash_table() -> Tensor:
    """The authors' table of numbers in [0, 1), float32, drawn on the CPU: other devices draw others."""
    return torch.rand(_TABLE_LENGTH, generator=torch.Generator().manual_seed(_TABLE_SEED))


# ---- The selector ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goldfish:
    """Drops one target in k (see module docstring); for the settings see `GoldfishConfig`.

    Raises:
        RecipeError: settings that cannot be used, alone or together.
    """

    k: float | None = 4.0
    h: int = 13
    strategy: StrategyName = "hash"
    goldfish_seed: int = 0
    normalize: bool = False
    exempt_special: bool = True
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.strategy not in _STRATEGIES:
            raise RecipeError(
                f"training.strategy is {self.strategy!r}{did_you_mean(self.strategy, _STRATEGIES)}"
            )
        if self.k is not None and not self.k >= 2:
            raise RecipeError(
                f"training.k must be at least 2, found {self.k}; one token in k is dropped, so use the "
                "published 4, or null to drop nothing"
            )
        if self.strategy == "static" and not self.drops_nothing and self.every % 1:
            raise RecipeError(
                f"training.k is {self.k}, but strategy static drops every k-th token; use a whole number, or "
                "strategy hash"
            )
        if self.h < 1:
            raise RecipeError(
                f"training.h must be at least 1, found {self.h}; it is the number of tokens that are hashed, "
                "of which the published models take 13"
            )
        if self.normalize and self.strategy != "hash":
            raise RecipeError(
                f"training.normalize levels the text that is hashed, but strategy {self.strategy} hashes no "
                "text; use strategy hash, or normalize: false"
            )

    @property
    def every(self) -> float:
        """k as a number."""
        return math.inf if self.k is None else self.k

    @property
    def drops_nothing(self) -> bool:
        """Whether the loss is the plain one."""
        return self.every == math.inf

    @property
    def reads_text(self) -> bool:
        """Whether words are looked at instead of tokens."""
        return self.normalize and not self.drops_nothing

    def remark(self, longest: int) -> str | None:
        """What to warn of, once the longest example is known to have `longest` tokens."""
        if self.drops_nothing or self.strategy not in _WINDOWED or longest > self.h:
            return None
        return (
            f"the window of training.h={self.h} tokens is not shorter than the longest example ({longest} "
            "tokens), so nothing will be dropped; use a smaller h, or longer documents"
        )

    def __call__(self, stats: TokenStats) -> TokenWeights:
        """Keep all targets but the dropped ones."""
        targets_N = stats.targets
        if self.drops_nothing or not len(targets_N):
            return TokenWeights.keep(torch.ones_like(targets_N, dtype=torch.bool))
        dropped_N = _STRATEGIES[self.strategy](self, stats)
        if self.exempt_special:
            dropped_N = dropped_N & ~stats.special
        return TokenWeights.keep(~dropped_N)


def _hash(own: Goldfish, stats: TokenStats) -> Tensor:
    if own.normalize:
        return text_drops(stats.preceding_words(own.h), k=own.every, seed=own.goldfish_seed)
    return hash_drops(stats.preceding(own.h), k=own.every, seed=own.goldfish_seed)


def _static(own: Goldfish, stats: TokenStats) -> Tensor:
    return static_drops(stats.places, k=int(own.every))


def _seeded_random(own: Goldfish, stats: TokenStats) -> Tensor:
    return random_drops(stats.places, example_id=stats.example_id, k=own.every, seed=own.goldfish_seed)


def _compat(own: Goldfish, stats: TokenStats) -> Tensor:
    return compat_drops(stats.preceding(own.h), stats.targets, k=own.every)


#: Strategy -> which targets are dropped, for a finite k.
_STRATEGIES: dict[str, Callable[[Goldfish, TokenStats], Tensor]] = {
    "hash": _hash,
    "static": _static,
    "seeded_random": _seeded_random,
    "compat": _compat,
}
#: Those that look at the h tokens before.
_WINDOWED = ("hash", "compat")


# ---- The trainer -------------------------------------------------------------------------------------------


@dataclass
class GoldfishConfig(SelectiveConfig):
    """Settings of training with holes."""

    selector_type: ClassVar[type[Any]] = Goldfish

    k: float | None = field(
        default=4.0, metadata={"help": "One token in k is not learned, at least 2; null drops nothing."}
    )
    h: int = field(default=13, metadata={"help": "Tokens (with `normalize`: words) that are hashed."})
    strategy: StrategyName = field(
        default="hash",
        metadata={"help": "What decides: hash, compat (the authors' table), static or seeded_random."},
    )
    goldfish_seed: int = field(
        default=0, metadata={"help": "Another one makes other holes (hash and seeded_random)."}
    )
    normalize: bool = field(
        default=False,
        metadata={"help": "Hash words without case, width and spacing, so that near copies share holes."},
    )
    exempt_special: bool = field(
        default=True, metadata={"help": "Always learn special tokens, such as EOS and the ends of turns."}
    )


class GoldfishTrainer(UnlearnTrainer):
    """Cross-entropy on the streams that the config names, with holes."""

    args: GoldfishConfig

    def build_objective(self) -> Objective:
        """Cross-entropy over the targets that are left."""
        return SelectiveNLL(tuple(self.args.train_streams), self.args.selectors())
