"""A global batch whose logits are the parameters, and what a selector makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.training.deciding import BatchStats
from unlearnkit.training.objective import LossOutput, Step, as_counts, count_streams
from unlearnkit.training.selective import SelectiveNLL

V = 9


class Logits(torch.nn.Module):
    """Logits [B, T, V] that are parameters, whatever the input."""

    def __init__(self, shape: tuple[int, int], *, scale: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        values = scale * torch.randn(*shape, V, generator=generator, dtype=torch.float64)
        self.table = torch.nn.Parameter(values)

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.table)


def three_rows() -> Any:
    """Nine targets: documents of 6, 3 and 4 tokens with one prompt token in the last."""
    rows = [(4, 1, 2, 8, 3, 5), (6, 7, 1), (2, 2, 5, 4)]
    labels = [list(row) for row in rows]
    labels[2][1] = IGNORE
    collate = StreamCollator(("train",), pad_id=0)
    return collate(
        [{"train": [{"input_ids": list(r), "labels": one}]} for r, one in zip(rows, labels, strict=True)]
    )


def run(model: torch.nn.Module, batch: Any, *selectors: Any, number: int = 0) -> tuple[LossOutput, Any]:
    """The term and the gradient of its loss in the logits."""
    counts = as_counts(count_streams([batch], ("train",), "cpu"), ("train",))
    out = SelectiveNLL(selectors=selectors)(Step(model, batch, counts, number=number), batch)
    [gradient] = torch.autograd.grad(out.loss, [model.table])
    return out, gradient


def stats(*, step: int = 0, **numbers: Any) -> BatchStats:
    """What a selector is told of the model."""
    found = {name: torch.as_tensor(values) for name, values in numbers.items()}
    length = len(next(iter(found.values())))
    return BatchStats(torch.arange(length), found, step)


def kept(selector: Any, told: BatchStats) -> list[int]:
    """Which tokens it learns."""
    weights = selector(told)
    assert weights.learn.dtype == weights.unlearn.dtype == torch.float32
    assert not weights.unlearn.any()
    return weights.learn.nonzero()[:, 0].tolist()
