"""Which rows meet in one item of a mixture, by an anchor with ratios or by weights.

Everything here is a pure function of (index, epoch, seed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.permutations import permutation
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import MixSpec

#: For some items and one stream: which of the items, and which row of the stream, one entry a row.
Places = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Anchored:
    """Every row of the anchor once an epoch; the other streams follow at a ratio."""

    sizes: Mapping[str, int]
    anchor: str
    ratios: Mapping[str, float]
    policy: str
    seed: int

    def __len__(self) -> int:
        return self.sizes[self.anchor]

    def rows(self, index: int, epoch: int) -> dict[str, list[int]]:
        """Stream -> row numbers of one item."""
        chosen = {self.anchor: [index]}
        for stream, size in self.sizes.items():
            if stream != self.anchor:
                chosen[stream] = [
                    self._partner(stream, size, n, epoch) for n in self._numbers(stream, index, epoch)
                ]
        return chosen

    def many(self, items: NDArray[np.int64], epoch: int) -> dict[str, Places]:
        """`rows` of several items at once."""
        chosen = {self.anchor: (np.arange(len(items)), items)}
        for stream, size in self.sizes.items():
            if stream == self.anchor:
                continue
            ratio, per_epoch, base = self._share(stream, epoch)
            first, last = (
                np.minimum(np.ceil(ratio * i - 1e-9), per_epoch).astype(np.int64) for i in (items, items + 1)
            )
            counts = last - first
            which = np.repeat(np.arange(len(items)), counts)
            within = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
            chosen[stream] = (
                which,
                _many_rows(base + first[which] + within, size, partial(self._order, stream, epoch)),
            )
        return chosen

    def _share(self, stream: str, epoch: int) -> tuple[float, int, int]:
        """Rows per item, rows per epoch, and how many were used up before this epoch."""
        ratio = self.ratios.get(stream, 1.0)
        per_epoch = math.ceil(ratio * len(self) - 1e-9)
        return ratio, per_epoch, epoch * per_epoch if self.policy == "continue" else 0

    def _numbers(self, stream: str, index: int, epoch: int) -> range:
        """The running numbers of this item's partners; a fractional ratio gives some items one more."""
        ratio, per_epoch, base = self._share(stream, epoch)
        first, last = (min(math.ceil(ratio * i - 1e-9), per_epoch) for i in (index, index + 1))
        return range(base + first, base + last)

    def _partner(self, stream: str, size: int, number: int, epoch: int) -> int:
        # A whole pass over the stream is used up before any row of it comes again.
        passes, place = divmod(number, size)
        return int(self._order(stream, epoch, passes)[place])

    def _order(self, stream: str, epoch: int, passes: int) -> NDArray[np.int64]:
        shuffle = epoch if self.policy == "restart" else 0
        return permutation(self.sizes[stream], self.seed, "partner", stream, shuffle, passes)


@dataclass(frozen=True)
class Weighted:
    """One row an item; streams have fixed shares, and no row repeats until its stream is used up."""

    sizes: Mapping[str, int]
    shares: Mapping[str, float]
    epoch_size: int
    policy: str
    seed: int

    def __len__(self) -> int:
        return self.epoch_size

    @cached_property
    def counts(self) -> dict[str, int]:
        """Whole numbers that add up to the epoch size, by the largest remainder."""
        exact = {s: share * self.epoch_size for s, share in self.shares.items()}
        counts = {s: int(x) for s, x in exact.items()}
        for stream in sorted(exact, key=lambda s: counts[s] - exact[s])[
            : self.epoch_size - sum(counts.values())
        ]:
            counts[stream] += 1
        return counts

    def rows(self, index: int, epoch: int) -> dict[str, list[int]]:
        """Stream -> row number of one item."""
        # `index` is already shuffled by the sampler, so the slots can be laid out one stream after the other.
        for stream, count in self.counts.items():
            if index < count:
                number = index + (epoch * count if self.policy == "continue" else 0)
                passes, place = divmod(number, self.sizes[stream])
                return {stream: [int(self._order(stream, epoch, passes)[place])]}
            index -= count
        raise IndexError(index)

    def many(self, items: NDArray[np.int64], epoch: int) -> dict[str, Places]:
        """`rows` of several items at once."""
        chosen, before = {}, 0
        for stream, count in self.counts.items():
            which = np.flatnonzero((before <= items) & (items < before + count))
            numbers = items[which] - before + (epoch * count if self.policy == "continue" else 0)
            chosen[stream] = (
                which,
                _many_rows(numbers, self.sizes[stream], partial(self._order, stream, epoch)),
            )
            before += count
        return chosen

    def _order(self, stream: str, epoch: int, passes: int) -> NDArray[np.int64]:
        shuffle = epoch if self.policy == "restart" else 0
        return permutation(self.sizes[stream], self.seed, "share", stream, shuffle, passes)


def _many_rows(
    numbers: NDArray[np.int64], size: int, order: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The rows that stand at some running numbers, where `order` shuffles each pass over `size` rows."""
    rows = np.empty_like(numbers)
    passes, places = np.divmod(numbers, size)
    for one in np.unique(passes):
        here = passes == one
        rows[here] = order(int(one))[places[here]]
    return rows


def anchor_of(asked: str | None, streams: Sequence[str]) -> str:
    """The stream whose rows an epoch goes through: as asked, else "forget", "pairs", or the first one."""
    if len(streams) == 1:
        return streams[0]
    if asked not in (None, "forget"):
        return str(asked)
    return next((name for name in ("forget", "pairs") if name in streams), streams[0])


def plan_of(sizes: Mapping[str, int], spec: MixSpec, seed: int) -> Anchored | Weighted:
    """How the streams meet.

    Args:
        sizes: stream -> its rows.

    Raises:
        RecipeError: a mix that makes no sense for them.
    """
    unknown = [s for s in [*spec.ratios, *(spec.weights or {})] if s not in sizes]
    if unknown:
        raise RecipeError(f"data.mix names the stream {unknown[0]!r}; the streams are {', '.join(sizes)}")
    if spec.weights is not None and spec.temperature is not None:
        raise RecipeError("data.mix has both weights and a temperature; keep one of them")
    if spec.weights is not None or spec.temperature is not None:
        if spec.weights is not None:
            weights = {s: float(spec.weights.get(s, 0.0)) for s in sizes}
        else:
            if not spec.temperature or spec.temperature < 0:
                raise RecipeError(f"data.mix.temperature must be positive, found {spec.temperature}")
            largest = max(sizes.values())  # as a share of the largest, so that no power overflows
            weights = {s: (n / largest) ** (1.0 / spec.temperature) for s, n in sizes.items()}
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise RecipeError(
                f"data.mix.weights must not be negative or all zero, found {dict(weights)}; "
                "give each stream a share"
            )
        shares = {s: w / total for s, w in weights.items() if w > 0}
        return Weighted(sizes, shares, spec.epoch_size or sum(sizes.values()), spec.epoch_policy, seed)
    anchor = anchor_of(spec.anchor, tuple(sizes))
    if anchor not in sizes:
        raise RecipeError(f"data.mix.anchor is {anchor!r}; the streams are {', '.join(sizes)}")
    if any(r <= 0 for r in spec.ratios.values()):
        raise RecipeError(
            f"data.mix ratios must be positive, found {dict(spec.ratios)}; leave a stream out instead"
        )
    return Anchored(sizes, anchor, spec.ratios, spec.epoch_policy, seed)
