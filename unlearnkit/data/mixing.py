"""StreamMix: which examples meet in one training item, as a pure function of (index, epoch, seed).

No random state is kept anywhere, so the mixture is the same for any number of processes, for any batch size
and after a resume. Permutations are made by hashing, not by a generator whose stream a library version could
change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.pairing import Weighted, plan_of
from unlearnkit.data.parts import StreamRows
from unlearnkit.data.permutations import permutation
from unlearnkit.recipe import MixSpec

Item = dict[str, list[Any]]


#: Items that are looked at together when tokens are counted.
_MANY = 1 << 16


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
        self._plan = plan_of({s: len(rows) for s, rows in self.streams.items()}, spec or MixSpec(), seed)

    def __len__(self) -> int:
        return len(self._plan)

    @property
    def shares(self) -> dict[str, int]:
        """Items of an epoch by stream where an item holds one row of one stream; else empty."""
        return self._plan.counts if isinstance(self._plan, Weighted) else {}

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
                for part, found in rows.at(number, epoch).items():
                    item[part] += found
        return item

    def lengths(self, epoch: int, items: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The longest row (tokens; of a block its tokens) of each item in `epoch`, for grouping by length.

        Args:
            items: only these.
        """
        items = np.arange(len(self)) if items is None else items
        longest = np.zeros(len(items), dtype=np.int64)
        for stream, (which, rows) in self._plan.many(items, epoch).items():
            np.maximum.at(longest, which, self.streams[stream].lengths(epoch, rows))
        return longest

    def tokens(self, epoch: int, items: NDArray[np.int64]) -> int:
        """Tokens, without padding, of all rows of some items in `epoch`; no row is read for it."""
        return sum(
            int(self.streams[stream].tokens(epoch, rows).sum())
            for start in range(0, len(items), _MANY)
            for stream, (_, rows) in self._plan.many(items[start : start + _MANY], epoch).items()
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
        per_epoch = math.ceil(len(self) / self.global_batch_size)
        total = 0
        for epoch in range(math.ceil(steps / per_epoch)):
            left = (steps - epoch * per_epoch) * self.global_batch_size
            # Of a whole epoch the order does not matter.
            items = np.arange(len(self.mix)) if left >= len(self.mix) else self._order(epoch)[:left]
            total += self.mix.tokens(epoch, items)
        return total

    def __iter__(self) -> Iterator[int]:
        n, size = len(self.mix), self.global_batch_size
        order = self._order(self.epoch)
        for start in range(0, n, size):
            step = order[start : start + size]
            if size > self.micro_batch_size and self.strategy != "sequential":
                step = step[np.argsort(-self.mix.lengths(self.epoch, step), kind="stable")]
            yield from (self.epoch * n + step).tolist()
        yield from [-1] * (len(self) - n)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The items of an epoch, step after step."""
        n = len(self.mix)
        if self.strategy == "sequential":
            return np.arange(n)
        order = permutation(n, self.seed, "order", epoch)
        return self._grouped(order, epoch) if self.strategy == "group_by_length" else order

    def _grouped(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sort by length inside windows of 50 steps, then shuffle the steps."""
        lengths, size = self.mix.lengths(epoch), self.global_batch_size
        window = 50 * size
        grouped = np.concatenate(
            [
                w[np.argsort(-lengths[w], kind="stable")]
                for w in np.split(order, range(window, len(order), window))
            ]
        )
        whole = len(grouped) // size * size
        steps = grouped[:whole].reshape(-1, size)[permutation(whole // size, self.seed, "steps", epoch)]
        return np.concatenate([steps.reshape(-1), grouped[whole:]])
