"""Objectives: small frozen callables `(step, batch) -> LossOutput`, and their weighted sum.

Scaling is settled here once. A term returns its share of the global mean: a sum over its own rows, divided by
the number of sequences or target tokens in the whole global batch (all micro-batches, all processes). Shares
add up, so the loss does not depend on how the global batch was split (METHODS: `seq_sum_mean`, `token_mean`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch
from unlearnkit.data.formats import IGNORE
from unlearnkit.data.parts import stream_of
from unlearnkit.training import hidden, logprobs
from unlearnkit.training.packing import packed_batch

if TYPE_CHECKING:
    from unlearnkit.training.reference import Reference

Batch = Mapping[str, TokenBatch]


class Needs(enum.Flag):
    """What an objective asks of the reference model; the cheapest provider that can give it is used.

    HIDDEN_STATES is said of the policy: of it the term reads the hidden states of its `layers` and nothing
    else, so that the forward pass may end there.
    """

    NOTHING = 0
    REFERENCE_LOGPS = enum.auto()
    REFERENCE_LOGITS = enum.auto()
    REFERENCE_HIDDEN_STATES = enum.auto()
    HIDDEN_STATES = enum.auto()


@dataclass
class LossOutput:
    """A loss (scalar, float32) and detached scalars to log, all shares of the global batch's value.

    A metric belongs to the part before its slash ("retain/nll"); `owners` names it where that is no part
    ("rewards/margins").
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """Anything that turns a step into a loss."""

    @property
    def needs(self) -> Needs:
        """What the reference model must provide."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams (or parts of streams, see `data/parts.py`) that are read; no other is fed to the
        model."""

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        """Compute the loss on one micro-batch."""


class ReadsHiddenStates(Protocol):
    """What a term with HIDDEN_STATES among its needs says besides."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers whose output it reads, counted from 0."""


@dataclass(frozen=True)
class StreamCounts:
    """Sequences and target tokens of one stream in the global batch (scalar tensors, at least 1).

    `candidates` are the target tokens before selectors chose among them; `learned` and `unlearned` make up
    `tokens`.
    """

    sequences: Tensor
    tokens: Tensor
    candidates: Tensor
    learned: Tensor
    unlearned: Tensor


Counts = Mapping[str, StreamCounts]
#: Values [n] of one process -> those of all processes, and where the own ones lie.
Gather = Callable[[Tensor], tuple[Tensor, slice]]


def alone(values: Tensor) -> tuple[Tensor, slice]:
    """`Gather` of a process without others."""
    return values, slice(0, len(values))


def count_streams(batches: list[Batch], streams: tuple[str, ...], device: torch.device | str) -> Tensor:
    """int64 [S, 5]: sequences with a target, targets, candidates, learned and unlearned targets (see
    StreamCounts), per stream over `batches`."""
    rows = []
    for stream in streams:
        parts = [b[stream] for b in batches if stream in b]
        per_row = [logprobs.count_targets(part["labels"]) for part in parts]
        tokens = torch.cat(per_row) if per_row else torch.zeros(0, dtype=torch.long)
        candidates = [
            part["candidates"].sum() if "candidates" in part else own.sum()
            for part, own in zip(parts, per_row, strict=True)
        ]
        total = tokens.sum()
        removed = total.new_tensor(sum(len(part["unlearned"]) for part in parts if "unlearned" in part))
        of_all = torch.stack(candidates).sum() if candidates else total
        rows.append(torch.stack([(tokens > 0).sum(), total, of_all, total - removed, removed]))
    return torch.stack(rows).to(device)


def as_counts(table: Tensor, streams: tuple[str, ...]) -> dict[str, StreamCounts]:
    """Rows of a count table -> counts; zero becomes one, so that an empty stream gives 0 and not NaN."""
    safe = table.clamp(min=1).float()
    return {s: StreamCounts(*safe[i]) for i, s in enumerate(streams)}


class Step:
    """One micro-batch seen by the policy: all its streams in a single forward pass, run when first asked for.

    Args:
        model: the wrapped model in training.
        batch: stream name -> TokenBatch, all padded to one length; packed if the collator says how.
        counts: what to divide by (see module docstring).
        reference: the reference model's answers for this batch.
        unwrapped: the model without DDP or FSDP around it.
        tap: the hidden states that terms ask for (`tap_of`).
        gather: joins a tensor [n] of every process, and says where the own values lie.
        number: optimizer steps done so far.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        counts: Counts,
        reference: Reference | None = None,
        *,
        unwrapped: Any = None,
        tap: hidden.Tap | None = None,
        gather: Gather | None = None,
        number: int = 0,
    ) -> None:
        self.model = model
        self.batch = batch
        self.counts = counts
        self._provider = reference
        self._unwrapped = unwrapped
        self._tap = tap
        self.gather: Gather = gather or alone
        self.number = number

    @cached_property
    def reference(self) -> BoundReference:
        """The reference model, bound to this batch."""
        if self._provider is None:
            raise RuntimeError("this objective asks for a reference model, but its `needs` do not say so")
        return BoundReference(self._provider, self.batch)

    @cached_property
    def _outputs(self) -> hidden.Outputs:
        inputs = packed_batch(self.batch) or fuse(self.batch)
        if self._tap is None:
            return hidden.Outputs(
                logprobs.target_logits(self.model, inputs, unwrapped=self._unwrapped), states={}
            )
        return hidden.forward(self.model, inputs, self._tap, unwrapped=self._unwrapped)

    @property
    def _policy(self) -> logprobs.TargetLogits:
        if self._tap is not None and self._tap.truncate:
            raise RuntimeError("a term asks for logits, but its `needs` say HIDDEN_STATES")
        return self._outputs.logits

    def _by_stream(self, values: Tensor) -> dict[str, Tensor]:
        # A row that only keeps the processes in step (see `fuse`) has no targets, so the sizes always add up.
        sizes = [len(logprobs.positions_of(b)) for b in self.batch.values()]
        return dict(zip(self.batch, torch.split(values, sizes), strict=True))

    @cached_property
    def _logits(self) -> dict[str, Tensor]:
        # Only for terms that ask for logits: the gradient of a split is one more [N, V].
        return self._by_stream(self._policy.logits_NV)

    @cached_property
    def _logps(self) -> dict[str, Tensor]:
        return self._by_stream(logprobs.label_logps(self._policy.logits_NV, self._policy.targets_N))

    @cached_property
    def _networks(self) -> tuple[dict[str, Tensor], ...]:
        return tuple(self._by_stream(logits_NV) for logits_NV in self._policy.networks)

    @cached_property
    def _states(self) -> dict[int, dict[str, Tensor]]:
        return {layer: self._by_stream(h_MD) for layer, h_MD in self._outputs.states.items()}

    def hidden_states(self, stream: str, layer: int) -> Tensor:
        """Output of decoder layer `layer` at the answer's tokens themselves: [M, d] in the model's dtype.

        The term must have HIDDEN_STATES among its `needs` and the layer among its `layers`.
        """
        return self._states[layer][stream]

    def logits(self, stream: str) -> Tensor:
        """The policy's logits at target positions: [N, V] in the model's dtype."""
        return self._logits[stream]

    def network_logits(self, stream: str, place: int) -> Tensor:
        """Logits at target positions of one network of a combination, before they are combined: [N, V]."""
        return self._networks[place][stream]

    def targets(self, stream: str) -> Tensor:
        """Target tokens: int64 [N]."""
        return logprobs.batch_targets(self.batch[stream])

    def token_logps(self, stream: str) -> Tensor:
        """log pi(y_t | x, y_<t) at target positions: float32 [N]."""
        return self._logps[stream]

    def sequence_logps(self, stream: str) -> Tensor:
        """log pi(y | x), summed over the answer: float32 [B]."""
        return logprobs.sum_by_sequence(self.token_logps(stream), self.batch[stream])

    def forget(self) -> None:
        """Let go of the forward pass; what was asked of it is computed anew when asked for again."""
        for name in ("_outputs", "_logits", "_logps", "_networks", "_states"):
            self.__dict__.pop(name, None)

    def unlearned(self, stream: str) -> Tensor | None:
        """Which of the N targets are unlearned: int64 [U]; None where no selector chose any."""
        found: Tensor | None = self.batch[stream].get("unlearned")
        return None if found is None or len(found) == 0 else found

    def num_target_tokens(self, stream: str) -> Tensor:
        """Target tokens per sequence: int64 [B]."""
        return logprobs.count_targets(self.batch[stream]["labels"])

    def sequence_mean(self, values_B: Tensor, stream: str) -> Tensor:
        """This batch's share of the mean over sequences that have a target."""
        has_target = self.num_target_tokens(stream) > 0
        return (values_B * has_target).sum() / self.counts[stream].sequences

    def token_mean(self, values_N: Tensor, stream: str) -> Tensor:
        """This batch's share of the mean over target tokens."""
        return values_N.sum() / self.counts[stream].tokens


def fuse(batch: Batch) -> dict[str, Tensor]:
    """All streams' rows as one batch; a batch without any row becomes one row without targets."""
    parts = list(batch.values())
    keys = [
        k for k in ("input_ids", "attention_mask", "labels", "position_ids") if all(k in b for b in parts)
    ]
    fused = {k: torch.cat([b[k] for b in parts]) for k in keys}  # type: ignore[literal-required]
    rows, length = fused["labels"].shape
    if rows == 0:
        shape, device = (1, max(length, 2)), fused["labels"].device
        fused = {k: torch.zeros(shape, dtype=torch.long, device=device) for k in keys}
        fused["attention_mask"] += 1
        fused["labels"] += IGNORE
        return fused
    before = 0
    positions = []
    for part in parts:
        positions.append(logprobs.positions_of(part) + before * length)
        before += part["labels"].shape[0]
    return {**fused, "target_positions": torch.cat(positions)}


class BoundReference:
    """The reference model's answers about one batch; each stream is asked for once."""

    def __init__(self, provider: Reference, batch: Batch) -> None:
        self._provider = provider
        self._batch = batch
        self._logits: dict[str, Tensor] = {}
        self._logps: dict[str, Tensor] = {}
        self._states: dict[tuple[str, int], Tensor] = {}

    def hidden_states(self, stream: str, layer: int) -> Tensor:
        """Hidden states as in `Step.hidden_states`: [M, d], without gradient."""
        if (stream, layer) not in self._states:
            self._states[stream, layer] = self._provider.hidden_states(self._batch[stream], layer)
        return self._states[stream, layer]

    def logits(self, stream: str) -> Tensor:
        """Logits at target positions: [N, V], without gradient."""
        if stream not in self._logits:
            self._logits[stream] = self._provider.logits(self._batch[stream])
        return self._logits[stream]

    def token_logps(self, stream: str) -> Tensor:
        """Label log-probs at target positions: float32 [N], without gradient."""
        if stream not in self._logps:
            if stream in self._logits:
                targets = logprobs.batch_targets(self._batch[stream])
                self._logps[stream] = logprobs.label_logps(self._logits[stream], targets)
            elif self._provider.live:
                self._ask_with_sisters(stream)
            else:
                self._logps[stream] = self._provider.token_logps(self._batch[stream])
        return self._logps[stream]

    def _ask_with_sisters(self, stream: str) -> None:
        """The parts of one stream (both sides of a pair) are wanted together, so one pass serves them."""
        parts = {name: b for name, b in self._batch.items() if stream_of(name) == stream_of(stream)}
        values_N = self._provider.token_logps(cast("TokenBatch", fuse(parts)))
        sizes = [len(logprobs.positions_of(b)) for b in parts.values()]
        self._logps |= dict(zip(parts, torch.split(values_N, sizes), strict=True))

    def sequence_logps(self, stream: str) -> Tensor:
        """Summed over each answer: float32 [B]."""
        return logprobs.sum_by_sequence(self.token_logps(stream), self._batch[stream])


@dataclass(frozen=True)
class WeightedSum:
    """sum_i weight_i * term_i; metrics of all terms side by side."""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def needs(self) -> Needs:
        """Everything that any term needs."""
        needs = Needs.NOTHING
        for _, term in self.terms:
            needs |= term.needs
        return needs

    @property
    def streams(self) -> tuple[str, ...]:
        """Every stream that any term reads, in order."""
        return tuple(dict.fromkeys(s for _, term in self.terms for s in term.streams))

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        outputs = [(weight, term(step, batch)) for weight, term in self.terms]
        loss = torch.stack([weight * out.loss for weight, out in outputs]).sum()
        metrics: dict[str, Tensor] = {}
        owners: dict[str, str] = {}
        for _, out in outputs:
            metrics |= out.metrics
            owners |= out.owners
        return LossOutput(loss, metrics, owners)


def terms_of(objective: Objective) -> tuple[Objective, ...]:
    """The terms that an objective is composed of, however deep; itself if it is one."""
    if isinstance(objective, WeightedSum):
        return tuple(one for _, term in objective.terms for one in terms_of(term))
    return (objective,)


def tap_of(objective: Objective) -> hidden.Tap | None:
    """The hidden states that the terms ask for, and whether they ask for nothing else; None if for none."""
    terms = terms_of(objective)
    asking = [one for one in terms if Needs.HIDDEN_STATES in one.needs]
    if not asking:
        return None
    layers = sorted({layer for one in asking for layer in cast("ReadsHiddenStates", one).layers})
    return hidden.Tap(tuple(layers), truncate=len(asking) == len(terms))


def reference_streams(objective: Objective) -> tuple[str, ...]:
    """The streams whose terms need reference log-probs."""
    reading = (one for one in terms_of(objective) if Needs.REFERENCE_LOGPS in one.needs)
    return tuple(dict.fromkeys(stream for one in reading for stream in one.streams))
