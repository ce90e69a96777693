"""Choices that are pure functions of their keys: no random state, no stream that could change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

Draw = Callable[[str, Sequence[str]], str]
"""`draw(slot, values)`: one of `values`, for the attribute called `slot`."""


def number(*keys: object) -> int:
    """A 64-bit hash of `keys`, each written as text."""
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def pick(values: Sequence[str], *keys: object) -> str:
    """One of `values`, chosen by `keys`."""
    return values[number(*keys) % len(values)]


def shuffled(count: int, *keys: object) -> tuple[int, ...]:
    """The indices below `count` in an order given by `keys`."""
    return tuple(sorted(range(count), key=lambda index: (number(*keys, index), index)))


@lru_cache(maxsize=4096)
def _deck(count: int, seed: int, slot: str, attempt: int, deal: int) -> tuple[int, ...]:
    return shuffled(count, seed, "deck", slot, attempt, deal)


def dealer(seed: int, index: int, attempts: Mapping[str, int]) -> Draw:
    """Draws for author `index`: no value comes twice in an attribute before every value has come once.

    A slot that had to be drawn again (`attempts[slot]` times) gets its card from another deck.
    """

    def draw(slot: str, values: Sequence[str]) -> str:
        deal, place = divmod(index, len(values))
        return values[_deck(len(values), seed, slot, attempts.get(slot, 0), deal)[place]]

    return draw


def picker(*keys: object) -> Draw:
    """Independent draws, for values that need not differ from those of other authors."""
    return lambda slot, values: pick(values, *keys, slot)
