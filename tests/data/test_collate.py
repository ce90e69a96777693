"""Batches: masks come from lengths, whatever the tokens are."""

from __future__ import annotations

import pytest
import torch

from unlearnkit.data.collate import StreamCollator, pad_rows
from unlearnkit.data.formats import IGNORE

EOS = 1  # also the padding token in these tests
ROWS = [
    {"input_ids": [5, EOS, 6, 7, EOS], "labels": [IGNORE, IGNORE, IGNORE, 7, EOS]},
    {"input_ids": [8, EOS], "labels": [IGNORE, EOS]},
    {"input_ids": [EOS, 9, EOS, EOS], "labels": [IGNORE, 9, EOS, EOS]},
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [5, 8])
def test_masks_come_from_lengths(side, length):
    batch = pad_rows(ROWS, length, pad_id=EOS, side=side)
    for i, row in enumerate(ROWS):
        n = len(row["input_ids"])
        place = slice(0, n) if side == "right" else slice(length - n, length)
        assert batch["attention_mask"][i].sum() == n
        assert batch["attention_mask"][i, place].all()
        assert batch["input_ids"][i, place].tolist() == row["input_ids"]
        assert batch["labels"][i, place].tolist() == row["labels"]
        outside = batch["attention_mask"][i] == 0
        assert (batch["input_ids"][i, outside] == EOS).all()
        assert (batch["labels"][i, outside] == IGNORE).all()
        if side == "left":
            assert batch["position_ids"][i, place].tolist() == list(range(n))
    assert ("position_ids" in batch) == (side == "left")
    assert {k: v.dtype for k, v in batch.items()} == dict.fromkeys(batch, torch.long)


@pytest.mark.parametrize("side", ["right", "left"])
def test_target_positions_point_before_each_target(side):
    batch = pad_rows(ROWS, 6, pad_id=EOS, side=side)
    positions = batch["target_positions"]
    expected = [b * 6 + t - 1 for b in range(3) for t in range(1, 6) if batch["labels"][b, t] != IGNORE]
    assert positions.tolist() == expected
    assert batch["labels"].flatten()[positions + 1].tolist() == [7, EOS, EOS, 9, EOS, EOS]


def test_streams_share_one_length_and_may_be_empty():
    items = [{"forget": ROWS[:1], "retain": ROWS[1:]}, {"forget": ROWS[1:2]}, {}]
    batches = StreamCollator(("forget", "retain", "other"), pad_id=EOS)(items)
    assert {name: tuple(b["input_ids"].shape) for name, b in batches.items()} == {
        "forget": (2, 5), "retain": (2, 5), "other": (0, 5),
    }  # fmt: skip
    assert batches["forget"]["input_ids"][1, :2].tolist() == [8, EOS]
    assert batches["other"]["target_positions"].numel() == 0
    assert batches["other"]["attention_mask"].shape == (0, 5)
    nothing = StreamCollator(("forget",), pad_id=EOS)([{}, {}])["forget"]
    assert nothing["input_ids"].shape == (0, 2)


def test_length_is_rounded_up():
    items = [{"forget": ROWS}]
    assert StreamCollator(("forget",), pad_id=0, multiple_of=8)(items)["forget"]["input_ids"].shape == (3, 8)
    assert StreamCollator(("forget",), pad_id=0, multiple_of=5)(items)["forget"]["input_ids"].shape == (3, 5)


def test_reference_logps_stay_with_their_labels():
    rows = [{**row, "reference_logps": [-float(i) for i in range(len(row["labels"]))]} for row in ROWS]
    for side in ("right", "left"):
        batch = pad_rows(rows, 6, pad_id=EOS, side=side)
        at_targets = batch["reference_logps"].flatten()[batch["target_positions"] + 1]
        assert at_targets.tolist() == [-3, -4, -1, -1, -2, -3]
        assert batch["reference_logps"].dtype == torch.float32
