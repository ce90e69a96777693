"""What selectors that read the model are told of a global batch, and what they decide about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch
from unlearnkit.data.token_rows import IGNORE
from unlearnkit.data.token_stats import Selector, TokenStats, TokenWeights, combined
from unlearnkit.training import token_numbers
from unlearnkit.training.objective import Step

#: One micro-batch, and a stream of it.
Place = tuple[Step, str]


class BatchStats(TokenStats):
    """The model's numbers about the targets of a global batch.

    Args:
        targets: int64 [N].
        numbers: those that the selectors named in `reads`, float32 [N] each.
        number: optimizer steps done so far.
    """

    def __init__(self, targets: Tensor, numbers: Mapping[str, Tensor], number: int) -> None:
        self._targets, self._numbers, self._number = targets, numbers, number

    @property
    def targets(self) -> Tensor:
        """As in TokenStats."""
        return self._targets

    @property
    def logps(self) -> Tensor:
        """As in TokenStats."""
        return self._numbers["logps"] if "logps" in self._numbers else self._unknown("logps")

    @property
    def entropies(self) -> Tensor:
        """As in TokenStats."""
        return self._numbers["entropies"] if "entropies" in self._numbers else self._unknown("entropies")

    @property
    def error_norms(self) -> Tensor:
        """As in TokenStats."""
        known = "error_norms" in self._numbers
        return self._numbers["error_norms"] if known else self._unknown("error_norms")

    @property
    def step(self) -> int:
        """As in TokenStats."""
        return self._number


#: What selectors may read, from a step and a stream: float32 [N], without gradient.
_NUMBERS: dict[str, Callable[[Step, str], Tensor]] = {
    "logps": lambda step, stream: step.token_logps(stream).detach(),
    "entropies": lambda step, stream: token_numbers.entropies(step.logits(stream).detach()),
    "error_norms": lambda step, stream: token_numbers.error_norms(
        step.logits(stream).detach(), step.targets(stream)
    ),
}


@dataclass(frozen=True)
class Seen:
    """What is told of one micro-batch and stream: its M targets that the data let be learned."""

    where_M: Tensor  # noqa: N815
    targets_M: Tensor  # noqa: N815
    numbers: dict[str, Tensor]


@dataclass(frozen=True)
class Decided:
    """The weights of one micro-batch's N targets of a stream, and the sums of the global batch.

    `totals` (float32 [3]) are the weights of all streams of the term, of what this stream unlearns, and of
    what it learns; 1 where there is none, so that nothing is divided by 0.
    """

    weights_N: Tensor  # noqa: N815
    unlearned_U: Tensor  # noqa: N815
    totals: Tensor


def reads(selectors: Sequence[Selector]) -> tuple[str, ...]:
    """The numbers that some of them read."""
    return tuple(dict.fromkeys(name for one in selectors for name in one.reads))


def see(place: Place, selectors: Sequence[Selector]) -> Seen:
    """Ask the model for what the selectors read."""
    step, stream = place
    targets_N = step.targets(stream)
    learnable_N = torch.ones_like(targets_N, dtype=torch.bool)
    if (unlearned_U := step.unlearned(stream)) is not None:
        learnable_N[unlearned_U] = False
    where_M = learnable_N.nonzero()[:, 0]
    numbers = {name: _NUMBERS[name](step, stream)[where_M] for name in reads(selectors)}
    return Seen(where_M, targets_N[where_M], numbers)


def decide(places: Sequence[Place], seen: Sequence[Seen], selectors: Sequence[Selector]) -> list[Decided]:
    """The weights of this process's targets, from what all processes have seen."""
    gather, number = places[0][0].gather, places[0][0].number
    targets, own = gather(torch.cat([one.targets_M for one in seen]))
    numbers = {name: gather(torch.cat([one.numbers[name] for one in seen]))[0] for name in seen[0].numbers}
    weights = combined(selectors, BatchStats(targets, numbers, number))
    sizes = [len(one.where_M) for one in seen]
    learn, unlearn = (torch.split(values[own].float(), sizes) for values in weights)
    parts = [
        _spread(place, one, TokenWeights(*pair))
        for place, one, *pair in zip(places, seen, learn, unlearn, strict=True)
    ]
    totals = _totals(places, parts)
    return [Decided(*part, totals[stream]) for (_, stream), part in zip(places, parts, strict=True)]


def _spread(place: Place, seen: Seen, weights: TokenWeights) -> tuple[Tensor, Tensor]:
    """(weights [N], which of the N targets are unlearned [U]) with what the data say themselves."""
    step, stream = place
    weights_N = torch.ones_like(step.targets(stream), dtype=torch.float32)
    weights_N[seen.where_M] = weights.learn + weights.unlearn
    unlearned_N = torch.zeros_like(weights_N, dtype=torch.bool)
    unlearned_N[seen.where_M] = weights.unlearn > 0
    if (own_U := step.unlearned(stream)) is not None:
        unlearned_N[own_U] = True
    return weights_N, unlearned_N.nonzero()[:, 0]


def _totals(places: Sequence[Place], parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Stream -> `Decided.totals`, over all processes."""
    streams = tuple(dict.fromkeys(stream for _, stream in places))
    rows = torch.zeros(len(streams), 2, device=parts[0][0].device)
    for (_, stream), (weights_N, unlearned_U) in zip(places, parts, strict=True):
        every, unlearned = weights_N.sum(), weights_N[unlearned_U].sum()
        rows[streams.index(stream)] += torch.stack([unlearned, every - unlearned])
    table = places[0][0].gather(rows[None])[0].sum(0)
    sums = torch.cat([table.sum().expand(len(streams), 1), table], dim=1)
    safe = torch.where(sums > 0, sums, 1.0)
    return dict(zip(streams, safe, strict=True))


def note_down(batch: TokenBatch, decided: Decided, *, drop: bool) -> None:
    """Put a decision into its batch.

    Args:
        drop: targets that weigh nothing are targets no more, so no logits of theirs are computed again.
    """
    batch["target_weights"], batch["unlearned"] = decided.weights_N, decided.unlearned_U
    batch["target_totals"] = decided.totals
    if drop:
        _drop(batch, decided.weights_N > 0)


def noted(batch: TokenBatch) -> Decided | None:
    """The decision that was put into a batch, if any."""
    if "target_weights" not in batch:
        return None
    return Decided(batch["target_weights"], batch["unlearned"], batch["target_totals"])


def _drop(batch: TokenBatch, keep_N: Tensor) -> None:
    """Take targets out of a batch."""
    labels_BT = batch["labels"].clone()
    labels_BT.view(-1)[batch["target_positions"][~keep_N] + 1] = IGNORE
    unlearned_N = torch.zeros_like(keep_N)
    unlearned_N[batch["unlearned"]] = True
    batch["labels"] = labels_BT
    batch["unlearned"] = unlearned_N[keep_N].nonzero()[:, 0]
    for key in ("target_positions", "packed_positions", "target_weights"):
        if key in batch:
            values = cast("dict[str, Tensor]", batch)
            values[key] = values[key][keep_N]
