"""Blocks: whole pieces of documents that are trained on together, so that their tokens fill one line.

A piece stays a row of its own, with its own positions and its own targets, so nothing that is computed about
a document crosses its border. Only which pieces meet is decided here, once for all epochs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnkit.data.permutations import permutation

#: Pieces that are sorted and placed together: enough of them to fill blocks well, few enough to stay random.
_WINDOW = 4096


@dataclass(frozen=True)
class Blocks:
    """Which rows stand in which block.

    Args:
        order: row numbers, block after block.
        starts: where each block begins in `order`, and the end of the last.
        fill: share of the blocks' room that is taken by tokens.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    fill: float

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[int]:
        rows: list[int] = self.order[self.starts[index] : self.starts[index + 1]].tolist()
        return rows

    def __str__(self) -> str:
        return f"{len(self):,} blocks, {self.fill:.1%} full"

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"blocks": len(self), "blocks_filled": round(self.fill, 4)}

    def sums(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The sum of a number over the rows of each block."""
        total: NDArray[np.int64] = np.add.reduceat(values[self.order], self.starts[:-1], dtype=np.int64)
        return total


def plan_blocks(lengths: NDArray[Any], max_length: int, seed: int) -> Blocks:
    """Put pieces into blocks of `max_length` tokens at most, each piece into one.

    Pieces are shuffled and cut into windows; in a window each goes, longest first, into the block with the
    least room that still holds it.

    Args:
        lengths: tokens of each piece, none above `max_length`.
        seed: decides which pieces meet.
    """
    shuffled = permutation(len(lengths), seed, "blocks")
    order, counts = [], []
    for start in range(0, len(lengths), _WINDOW):
        window = shuffled[start : start + _WINDOW]
        window = window[np.argsort(-lengths[window].astype(np.int64), kind="stable")]
        block_of, blocks = _best_fit(lengths[window].tolist(), max_length)
        order.append(window[np.argsort(block_of, kind="stable")])
        counts.append(np.bincount(block_of, minlength=blocks))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    fill = float(lengths.sum(dtype=np.int64)) / (max_length * (len(starts) - 1))
    return Blocks(np.concatenate(order), starts, fill)


def _best_fit(lengths: Sequence[int], room: int) -> tuple[list[int], int]:
    """The block of each piece, longest first, and the number of blocks."""
    free: list[tuple[int, int]] = []  # (room left, block), least room first
    block_of, blocks = [], 0
    for length in lengths:
        place = bisect_left(free, (length, -1))
        if place < len(free):
            left, block = free.pop(place)
        else:
            left, block, blocks = room, blocks, blocks + 1
        block_of.append(block)
        if left > length:
            insort(free, (left - length, block))
    return block_of, blocks
