"""StreamMix: which examples meet in one training item, as a pure function of (index, epoch, seed).

No random state is kept anywhere, so the mixture is the same for any number of processes, for any batch size
and after a resume. Permutations are made by hashing, not by a generator whose stream a library version could
change.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.parts import StreamRows
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import MixSpec

Item = dict[str, list[Any]]


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


@lru_cache(maxsize=64)
def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on `key` alone."""
    order = np.argsort(hashed(n, *key), kind="stable")
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class _Anchored:
    """Every row of the anchor once an epoch; the other streams follow at a ratio."""

    sizes: Mapping[str, int]
    anchor: str
    ratios: Mapping[str, float]
    policy: str
    seed: int

    def __len__(self) -> int:
        return self.sizes[self.anchor]

    def rows(self, index: int, epoch: int) -> dict[str, list[int]]:
        chosen = {self.anchor: [index]}
        for stream, size in self.sizes.items():
            if stream != self.anchor:
                chosen[stream] = [
                    self._partner(stream, size, n, epoch) for n in self._numbers(stream, index, epoch)
                ]
        return chosen

    def _numbers(self, stream: str, index: int, epoch: int) -> range:
        """The running numbers of this item's partners; a fractional ratio gives some items one more."""
        ratio = self.ratios.get(stream, 1.0)
        per_epoch = math.ceil(ratio * len(self) - 1e-9)
        base = epoch * per_epoch if self.policy == "continue" else 0
        first, last = (min(math.ceil(ratio * i - 1e-9), per_epoch) for i in (index, index + 1))
        return range(base + first, base + last)

    def _partner(self, stream: str, size: int, number: int, epoch: int) -> int:
        # A whole pass over the stream is used up before any row of it comes again.
        passes, place = divmod(number, size)
        shuffle = epoch if self.policy == "restart" else 0
        return int(permutation(size, self.seed, "partner", stream, shuffle, passes)[place])


@dataclass(frozen=True)
class _Weighted:
    """One row an item; streams have fixed shares, and no row repeats until its stream is used up."""

    sizes: Mapping[str, int]
    shares: Mapping[str, float]
    epoch_size: int
    policy: str
    seed: int

    def __len__(self) -> int:
        return self.epoch_size

    def _counts(self) -> dict[str, int]:
        """Whole numbers that add up to the epoch size, by the largest remainder."""
        exact = {s: share * self.epoch_size for s, share in self.shares.items()}
        counts = {s: int(x) for s, x in exact.items()}
        for stream in sorted(exact, key=lambda s: counts[s] - exact[s])[
            : self.epoch_size - sum(counts.values())
        ]:
            counts[stream] += 1
        return counts

    def rows(self, index: int, epoch: int) -> dict[str, list[int]]:
        counts = self._counts()
        # `index` is already shuffled by the sampler, so the slots can be laid out one stream after the other.
        for stream, count in counts.items():
            if index < count:
                number = index + (epoch * count if self.policy == "continue" else 0)
                passes, place = divmod(number, self.sizes[stream])
                shuffle = epoch if self.policy == "restart" else 0
                order = permutation(self.sizes[stream], self.seed, "share", stream, shuffle, passes)
                return {stream: [int(order[place])]}
            index -= count
        raise IndexError(index)


def anchor_of(asked: str | None, streams: Sequence[str]) -> str:
    """The stream whose rows an epoch goes through: as asked, else "forget", "pairs", or the first one."""
    if len(streams) == 1:
        return streams[0]
    if asked not in (None, "forget"):
        return str(asked)
    return next((name for name in ("forget", "pairs") if name in streams), streams[0])


def _plan(sizes: Mapping[str, int], spec: MixSpec, seed: int) -> _Anchored | _Weighted:
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
        return _Weighted(sizes, shares, spec.epoch_size or sum(sizes.values()), spec.epoch_policy, seed)
    anchor = anchor_of(spec.anchor, tuple(sizes))
    if anchor not in sizes:
        raise RecipeError(f"data.mix.anchor is {anchor!r}; the streams are {', '.join(sizes)}")
    if any(r <= 0 for r in spec.ratios.values()):
        raise RecipeError(
            f"data.mix ratios must be positive, found {dict(spec.ratios)}; leave a stream out instead"
        )
    return _Anchored(sizes, anchor, spec.ratios, spec.epoch_policy, seed)


class StreamMix:
    """A map-style data set over named streams.

    With an anchor (the default) item i holds row i of the anchor stream and its partners from every other
    stream: `ratios[s]` rows of stream s per anchor row. With weights or a temperature (weights proportional
    to n^(1/T)) an item holds one row of one stream.

    Epoch policy: "continue" goes on through the other streams from epoch to epoch, so that all of their rows
    are met before one comes twice; "restart" shuffles them anew each epoch; "fixed" gives every item the same
    partners always.

    A stream may give several parts (see `data/parts.py`): an item has a key for each part.

    Index n of `mix[n]` is `epoch * len(mix) + i`: the epoch travels inside the index, so workers need no
    state. Index -1 is an empty item, which samplers use to fill up the last global batch.

    Args:
        streams: name -> its rows: a sequence, or StreamRows.
        spec: the recipe's `data.mix`.
        seed: with the index and the epoch it decides every pairing.
    """

    def __init__(
        self, streams: Mapping[str, Sequence[Any] | StreamRows], spec: MixSpec | None = None, *, seed: int = 0
    ) -> None:
        self.streams = {
            name: rows if isinstance(rows, StreamRows) else StreamRows({name: rows})
            for name, rows in streams.items()
        }
        self.seed = seed
        self._plan = _plan({s: len(rows) for s, rows in self.streams.items()}, spec or MixSpec(), seed)

    def __len__(self) -> int:
        return len(self._plan)

    def rows(self, index: int, epoch: int) -> dict[str, list[int]]:
        """Stream name -> row numbers of item `index` in `epoch`."""
        return self._plan.rows(index, epoch)

    def __getitem__(self, n: int) -> Item:
        if n < 0:
            return {}
        epoch, index = divmod(n, len(self))
        item: Item = {}
        for stream, numbers in self.rows(index, epoch).items():
            rows = self.streams[stream]
            item |= {part: [] for part in rows.parts}
            for number in numbers:
                for part, row in rows.at(number, epoch).items():
                    item[part].append(row)
        return item

    def lengths(self, epoch: int) -> NDArray[np.int64]:
        """The longest row (tokens) of each item in `epoch`, for grouping by length."""
        sizes = {s: rows.lengths(epoch) for s, rows in self.streams.items()}
        return np.asarray(
            [
                max((int(sizes[s][r]) for s, rows in self.rows(i, epoch).items() for r in rows), default=0)
                for i in range(len(self))
            ]
        )


class EpochOrder:
    """A sampler whose order is a function of (epoch, seed), cut into global batches before anything is split.

    The rows of one optimizer step are the same for every split of the global batch into processes and
    micro-batches; inside a step they are sorted by length, so that micro-batches hold little padding. The
    last global batch is filled up with -1 (empty items), so that every process takes the same number of steps
    and no row is seen twice.

    Args:
        mix: the data set.
        micro_batch_size: items of one process in one forward pass.
        num_micro_batches: micro-batches in one optimizer step, over all processes and accumulation steps.
        num_processes: processes that take micro-batches in turn.
        strategy: "random", "sequential" or "group_by_length" (steps hold items of similar length).
    """

    def __init__(
        self, mix: StreamMix, *, micro_batch_size: int, num_micro_batches: int, num_processes: int = 1,
        strategy: str = "random", seed: int = 0,
    ) -> None:  # fmt: skip
        self.mix = mix
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = micro_batch_size * num_micro_batches
        self.stride = micro_batch_size * num_processes
        self.strategy = strategy
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The trainer calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.mix) / self.stride) * self.stride

    def tokens_seen(self, steps: int) -> int:
        """Tokens, without padding, of all rows in the first `steps` optimizer steps, over all processes."""
        total, now = 0, self.epoch
        per_epoch = math.ceil(len(self) / self.global_batch_size)
        for epoch in range(math.ceil(steps / per_epoch)):
            self.set_epoch(epoch)
            items = list(self)[: (steps - epoch * per_epoch) * self.global_batch_size]
            total += sum(len(r["input_ids"]) for n in items for rows in self.mix[n].values() for r in rows)
        self.set_epoch(now)
        return total

    def __iter__(self) -> Any:
        n = len(self.mix)
        order = (
            np.arange(n) if self.strategy == "sequential" else permutation(n, self.seed, "order", self.epoch)
        )
        lengths = self.mix.lengths(self.epoch)
        size = self.global_batch_size
        if self.strategy == "group_by_length":
            order = self._grouped(order, lengths, size)
        for start in range(0, n, size):
            step = order[start : start + size]
            if size > self.micro_batch_size and self.strategy != "sequential":
                step = step[np.argsort(-lengths[step], kind="stable")]
            yield from (self.epoch * n + step).tolist()
        yield from [-1] * (len(self) - n)

    def _grouped(self, order: NDArray[np.int64], lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Sort by length inside windows of 50 steps, then shuffle the steps."""
        window = 50 * size
        grouped = np.concatenate(
            [
                w[np.argsort(-lengths[w], kind="stable")]
                for w in np.split(order, range(window, len(order), window))
            ]
        )
        whole = len(grouped) // size * size
        steps = grouped[:whole].reshape(-1, size)[permutation(whole // size, self.seed, "steps", self.epoch)]
        return np.concatenate([steps.reshape(-1), grouped[whole:]])
