"""Metrics of the optimizer steps since the last log."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class StepMetrics:
    """Sums up every micro-batch's shares; a mean is taken over the steps in which a metric's stream had a
    target.

    A metric belongs to the stream before its slash, "retain/nll" to "retain", if its term names no other. In
    a weighted mixture a step may hold no row of some stream; it must not count as a zero.

    Args:
        streams: the streams of the run, in the order of the count tables.
    """

    def __init__(self, streams: tuple[str, ...]) -> None:
        self.streams = streams
        #: Which streams have had a target in some step so far.
        self.seen = torch.zeros(len(streams), dtype=torch.long)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._steps_with: Tensor | None = None
        self._owners: dict[str, str] = {}

    def begin_step(self, counts: Tensor) -> None:
        """A new optimizer step with the global count table [S, 5] of `objective.count_streams`."""
        has_target = (counts[:, 1] > 0).long()
        self.seen = self.seen.to(has_target.device) | has_target
        self._steps_with = has_target if self._steps_with is None else self._steps_with + has_target
        self._steps += 1

    def add(self, metrics: Mapping[str, Tensor], owners: Mapping[str, str] | None = None) -> None:
        """One micro-batch's shares; `owners` as in LossOutput."""
        self._owners.update(owners or {})
        for name, value in metrics.items():
            share = value.detach().float()
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    @property
    def kept(self) -> Tensor | None:
        """What selectors have kept since the last log, in any stream; None where none is at work."""
        found = [total for name, total in self._sums.items() if name.endswith("/kept")]
        return torch.stack(found).sum() if found else None

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call; `reduce` sums a tensor over all processes."""
        if not self._sums or self._steps_with is None:
            return {}
        names = sorted(self._sums)
        sums = reduce(torch.stack([self._sums[name] for name in names])).tolist()
        steps = dict(zip(self.streams, self._steps_with.tolist(), strict=True))
        owners = [self._owners.get(name, name.partition("/")[0]) for name in names]
        divisors = [steps.get(owner, self._steps) for owner in owners]
        self.clear()
        return {name: total / n for name, total, n in zip(names, sums, divisors, strict=True) if n > 0}
