"""Items of a StreamMix -> one padded batch per stream; masks come from lengths, never from token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from unlearnkit.data.formats import IGNORE
from unlearnkit.training.logprobs import target_positions
from unlearnkit.training.packing import add_packing


class TokenBatch(TypedDict, total=False):
    """Rows of one stream: int64 [B, T]; `labels` are unshifted, -100 where nothing is learned.

    `target_positions` (int64 [N]) are the flat positions whose logits predict a target (see
    `training/logprobs.py`). `position_ids` are there for left padding only, where they differ from 0..T-1.
    `reference_logps` (float32 [B, T], aligned with `labels`) are there when reference log-probs were computed
    beforehand.

    Where selectors chose among the targets (see `data/token_stats.py`): `candidates` (int64 [B]) are the
    targets of each row before; `unlearned` (int64 [U]) says which of the N targets are unlearned.
    Where the model's numbers decide, and were looked at beforehand, `target_weights` (float32 [N]) say how
    much each target counts, and `target_totals` (float32 [3]) what the weights of the global batch sum up to
    (see `training/deciding.py`).

    Where rows are packed (see `training/packing.py`): `packed_positions` (int64 [N]) are the target positions
    in the packed lines. `packed_lines` (int64 [2, R, L], in the first stream of a batch, for all its streams)
    says of each packed token where it lies in the padded rows of all streams, and its position in its row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    target_positions: Tensor
    position_ids: Tensor
    reference_logps: Tensor
    candidates: Tensor
    unlearned: Tensor
    target_weights: Tensor
    target_totals: Tensor
    packed_positions: Tensor
    packed_lines: Tensor


def pad_rows(
    rows: Sequence[Mapping[str, Any]], length: int, *, pad_id: int, side: str = "right"
) -> TokenBatch:
    """Pad token rows to `length` tokens on the given side."""

    def padded(key: str, fill: float, dtype: torch.dtype) -> Tensor:
        out = torch.full((len(rows), length), fill, dtype=dtype)
        for i, row in enumerate(rows):
            values = torch.as_tensor(row[key], dtype=dtype)
            where = slice(0, len(values)) if side == "right" else slice(length - len(values), length)
            out[i, where] = values
        return out

    batch = TokenBatch(
        input_ids=padded("input_ids", pad_id, torch.long), labels=padded("labels", IGNORE, torch.long)
    )
    sizes = torch.tensor([len(r["input_ids"]) for r in rows], dtype=torch.long).reshape(-1, 1)
    positions = torch.arange(length).reshape(1, -1)
    batch["attention_mask"] = (positions < sizes if side == "right" else positions >= length - sizes).long()
    batch["target_positions"] = target_positions(batch["labels"])
    if side == "left":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if rows and "reference_logps" in rows[0]:
        batch["reference_logps"] = padded("reference_logps", 0.0, torch.float32)
    if rows and "candidates" in rows[0]:
        batch["candidates"] = torch.tensor([row["candidates"] for row in rows])
        marks_N = padded("unlearn", 0.0, torch.long).flatten()[batch["target_positions"] + 1]
        batch["unlearned"] = marks_N.nonzero()[:, 0]
    return batch


@dataclass(frozen=True)
class StreamCollator:
    """Pads every stream of the items to one common length, so that all rows fit into one forward pass.

    Args:
        streams: the names that every batch must have, also when it holds no row of one.
        pad_id: any token id; it is masked by length, so it may equal EOS.
        side: padding side; losses and scores do not depend on it.
        multiple_of: round the length up to a multiple (tensor cores like 8).
        packed: also lay the rows out without padding, for the policy's forward pass (right padding only).
    """

    streams: tuple[str, ...]
    pad_id: int
    side: str = "right"
    multiple_of: int = 1
    packed: bool = False

    def __call__(self, items: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, TokenBatch]:
        rows = {s: [row for item in items for row in item.get(s, ())] for s in self.streams}
        longest = max((len(r["input_ids"]) for stream in rows.values() for r in stream), default=2)
        length = -(-longest // self.multiple_of) * self.multiple_of
        batches = {s: pad_rows(rows[s], length, pad_id=self.pad_id, side=self.side) for s in self.streams}
        if self.packed and self.side == "right":
            add_packing(batches, multiple_of=self.multiple_of)
        return batches
