"""Pieces of documents are put into blocks: each once, none too long, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.blocks import plan_blocks
from unlearnkit.data.mixing import StreamMix
from unlearnkit.data.parts import StreamRows


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=200), seed=st.integers(0, 2**40))
def test_every_piece_stands_in_one_block_that_holds_it(lengths, seed):
    blocks = plan_blocks(np.asarray(lengths, dtype=np.int32), 30, seed)
    held = [blocks[i] for i in range(len(blocks))]
    assert sorted(row for block in held for row in block) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in block) for block in held]
    assert all(block for block in held)
    assert max(sums) <= 30
    assert blocks.sums(np.asarray(lengths, dtype=np.int32)).tolist() == sums
    assert blocks.fill == pytest.approx(sum(lengths) / (30 * len(blocks)))
    again = plan_blocks(np.asarray(lengths), 30, seed)
    assert [again[i] for i in range(len(again))] == held


def test_by_hand():
    """Longest first, each where the least room is left that holds it: 7+3, 6+4, 5+2+2."""
    blocks = plan_blocks(np.asarray([2, 7, 4, 6, 3, 5, 2]), 10, 0)
    held = [[[2, 7, 4, 6, 3, 5, 2][row] for row in blocks[i]] for i in range(3)]
    assert sorted(map(sorted, held)) == [[2, 2, 5], [3, 7], [4, 6]]
    assert blocks.fill == 29 / 30


def test_another_seed_lets_others_meet():
    lengths = np.full(1000, 10)
    one, other = (plan_blocks(lengths, 50, seed) for seed in (0, 1))
    assert len(one) == len(other) == 200
    assert one.fill == 1.0
    assert one[0] != other[0]


def test_many_short_pieces_fill_their_blocks():
    """Also across windows, each of which leaves only its last blocks open."""
    lengths = np.random.default_rng(0).integers(5, 200, 20_000)
    assert plan_blocks(lengths, 512, 0).fill > 0.99


def test_an_item_of_blocks_gives_several_rows():
    rows = [{"row": i, "input_ids": [0] * n} for i, n in enumerate((4, 6, 5, 5, 9))]
    blocks = plan_blocks(np.asarray([4, 6, 5, 5, 9]), 10, 0)
    mix = StreamMix({"train": StreamRows({"train": rows}, blocks=blocks)})
    assert len(mix) == 3
    items = [[row["row"] for row in mix[i]["train"]] for i in range(3)]
    assert sorted(sorted(item) for item in items) == [[0, 1], [2, 3], [4]]
    assert sorted(mix.lengths(0).tolist()) == [9, 10, 10]
    assert mix.tokens(0, np.arange(3)) == 29
