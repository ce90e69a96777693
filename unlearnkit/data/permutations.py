"""Permutations made by hashing: functions of a key alone, which no library version changes."""

from __future__ import annotations

import zlib
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

#: At most this many permutations are remembered, and at most this many numbers (8 bytes each) together; but
#: always the last few, because one item of a mixture asks for one of each stream.
_MOST, _MOST_NUMBERS, _ALWAYS = 64, 1 << 25, 4
_remembered: OrderedDict[tuple[int | str, ...], NDArray[np.int64]] = OrderedDict()


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood's 64-bit mixer (OOPSLA 2014): a bijection that scrambles every bit."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashed(n: int, *key: int | str) -> NDArray[np.uint64]:
    """n pseudo-random 64-bit numbers that depend on `key` alone."""
    state = np.uint64(0)
    for part in key:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part & 0xFFFFFFFFFFFFFFFF
        state = _splitmix64(np.asarray([state ^ np.uint64(number)], dtype=np.uint64))[0]
    return _splitmix64(np.arange(n, dtype=np.uint64) ^ state)


def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on `key` alone."""
    name = (n, *key)
    if (known := _remembered.get(name)) is not None:
        _remembered.move_to_end(name)
        return known
    order = np.argsort(hashed(n, *key), kind="stable")
    order.setflags(write=False)
    _remembered[name] = order
    while len(_remembered) > _MOST or (
        len(_remembered) > _ALWAYS and sum(map(len, _remembered.values())) > _MOST_NUMBERS
    ):
        _remembered.popitem(last=False)
    return order
