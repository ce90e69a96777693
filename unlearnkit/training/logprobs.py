"""Log-probabilities of labels: the only shift, gather and -100 code of the library.

Legend of shapes: B sequences, T tokens, V vocabulary, N target positions of a batch (its labels that are not
-100, row by row). Row t of the logits predicts token t + 1, so target positions are found on the shifted
labels, once, here. Everything returned is float32 (float64 for float64 logits), whatever the model's dtype,
and is computed in chunks of positions, so that no float32 copy of all logits ever exists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unlearnkit.data.formats import IGNORE as IGNORE

#: Positions whose float32 log-softmax is held at once.
CHUNK = 512
#: The same where several passes over them follow each other: few enough to stay in a CPU's cache.
STATISTICS_CHUNK = 128
#: exp of it is 0 in any dtype.
_NOTHING = -1000.0


def target_mask(labels_BT: Tensor) -> Tensor:
    """bool [B, T]: True at position t if token t + 1 is a target."""
    mask = torch.zeros_like(labels_BT, dtype=torch.bool)
    mask[:, :-1] = labels_BT[:, 1:] != IGNORE
    return mask


def targets(labels_BT: Tensor) -> Tensor:
    """int64 [N]: the target tokens, in the order of `target_mask`."""
    shifted = labels_BT[:, 1:]
    return shifted[shifted != IGNORE]


def target_positions(labels_BT: Tensor) -> Tensor:
    """int64 [N]: flat positions b * T + t whose row predicts a target; collators find them beforehand."""
    return target_mask(labels_BT).flatten().nonzero()[:, 0]


def positions_of(batch: Mapping[str, Any]) -> Tensor:
    """A batch's target positions; those that its collator found on the CPU cost no device synchronisation."""
    known: Tensor | None = batch.get("target_positions")
    return known if known is not None else target_positions(batch["labels"])


def batch_targets(batch: Mapping[str, Any]) -> Tensor:
    """int64 [N]: the target tokens of a batch."""
    labels_BT: Tensor = batch["labels"]
    return labels_BT.flatten()[positions_of(batch) + 1]


def count_targets(labels_BT: Tensor) -> Tensor:
    """int64 [B]: target tokens per sequence."""
    return (labels_BT[:, 1:] != IGNORE).sum(1)


def wide(x: Tensor) -> Tensor:
    """float32, or float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


class _LabelLogps(torch.autograd.Function):
    """log softmax(logits)[target] per row; remembers the logits and one log-sum-exp per row."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        picked_N = wide(logits_NV.gather(1, targets_N[:, None])[:, 0])
        lse_N = torch.empty_like(picked_N)
        for i in range(0, logits_NV.shape[0], chunk):
            lse_N[i : i + chunk] = torch.logsumexp(wide(logits_NV[i : i + chunk]), dim=-1)
        ctx.save_for_backward(logits_NV, targets_N, lse_N)
        ctx.chunk = chunk
        return picked_N - lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        # d logp_y / d z_v = 1[v = y] - softmax(z)_v
        logits_NV, targets_N, lse_N = ctx.saved_tensors
        out_NV = torch.empty_like(logits_NV)
        for i in range(0, logits_NV.shape[0], ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            p = torch.exp(wide(logits_NV[rows]) - lse_N[rows, None]).mul_(-grad_N[rows, None])
            p.scatter_add_(1, targets_N[rows, None], grad_N[rows, None])
            out_NV[rows] = p
        return out_NV, None, None


def label_logps(logits_NV: Tensor, targets_N: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Log-prob of the target at each position: float32 [N]."""
    result: Tensor = _LabelLogps.apply(logits_NV, targets_N, chunk)  # type: ignore[no-untyped-call]
    return result


def token_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-prob of every label, float32 [B, T], aligned with `labels`; 0 where there is no target.

    Args:
        logits_BTV: unshifted logits of a causal model.
        labels_BT: unshifted labels, -100 where there is no target.
    """
    mask_BT = target_mask(labels_BT)
    values_N = label_logps(logits_BTV[mask_BT], targets(labels_BT))
    out_BT = values_N.new_zeros(labels_BT.shape)
    return out_BT.masked_scatter(mask_BT.roll(1, dims=1), values_N)


def sequence_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """log pi(y | x): summed log-prob of each sequence's labels, float32 [B]."""
    return token_logps(logits_BTV, labels_BT).sum(1)


def sum_by_sequence(values_N: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Sum values at target positions per sequence: [N] -> [B]."""
    rows, length = batch["labels"].shape
    return values_N.new_zeros(rows).index_add(0, positions_of(batch) // length, values_N)


class ScoredTokens(NamedTuple):
    """Per target position, float32 [N] (`hits` bool [N]).

    mean and variance are those of log p over the vocabulary under p itself: mu = sum p log p,
    var = sum p (log p)^2 - mu^2 (Min-K%++, arXiv 2404.02936).
    """

    logps: Tensor
    hits: Tensor
    means: Tensor
    variances: Tensor


@torch.no_grad()
def token_statistics(logits_NV: Tensor, targets_N: Tensor, *, chunk: int = STATISTICS_CHUNK) -> ScoredTokens:
    """Everything that token-level metrics ask of one scoring pass."""
    parts = []
    for i in range(0, max(logits_NV.shape[0], 1), chunk):
        logits, target = wide(logits_NV[i : i + chunk]), targets_N[i : i + chunk]
        best, place = logits.max(-1)
        # log p = s - log Z with s = z - max z and Z = sum exp s: mean and variance are those of s, moved.
        s = logits - best[:, None]
        picked = s.gather(1, target[:, None])[:, 0]
        # A logit of -inf has p = 0 and contributes nothing: 0 * inf must not become NaN.
        weights = s.clamp_(min=_NOTHING).exp()
        total = weights.sum(-1)
        mean = torch.linalg.vecdot(weights, s) / total
        variance = torch.linalg.vecdot(weights, s.sub_(mean[:, None]).square_()) / total
        log_total = total.log()
        parts.append((picked - log_total, place == target, mean - log_total, variance))
    return ScoredTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _Chunked(torch.autograd.Function):
    """A function of rows, computed chunk by chunk, and once more in the backward pass."""

    @staticmethod
    def forward(ctx: Any, fn: Callable[..., Tensor], chunk: int, logits: Tensor, *others: Tensor) -> Tensor:
        ctx.fn, ctx.chunk = fn, chunk
        ctx.save_for_backward(logits, *others)
        pieces = [
            fn(*(x[i : i + chunk] for x in (logits, *others))) for i in range(0, max(len(logits), 1), chunk)
        ]
        return torch.cat(pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, *others = ctx.saved_tensors
        out = torch.empty_like(logits)
        for i in range(0, len(logits), ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            with torch.enable_grad():
                piece = logits[rows].detach().requires_grad_()
                value = ctx.fn(piece, *(x[rows] for x in others))
            out[rows] = torch.autograd.grad(value, piece, grad[rows])[0]
        return (None, None, out, *([None] * len(others)))


def chunked(fn: Callable[..., Tensor], logits: Tensor, *others: Tensor, chunk: int = CHUNK) -> Tensor:
    """`fn(logits, *others)` for a function that treats each row by itself; differentiable in `logits` alone.

    Args:
        fn: maps [n, V] logits (and tensors with n rows) to [n] values.
    """
    result: Tensor = _Chunked.apply(fn, chunk, logits, *others)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class TargetLogits:
    """Logits at a batch's target positions only; of networks that are combined, each one's where asked."""

    logits_NV: Tensor  # noqa: N815
    targets_N: Tensor  # noqa: N815
    networks: tuple[Tensor, ...] = ()


@contextmanager
def _select_before_head(model: Any, positions_N: Tensor, shape: torch.Size) -> Iterator[list[bool]]:
    """Let the LM heads see target positions only; yields a list that is filled when a head was reached."""
    done: list[bool] = []
    heads = output_heads(model)

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor) and args[0].dim() == 3 and args[0].shape[:2] == shape:
            done.append(True)
            return (args[0].flatten(0, 1)[positions_N], *args[1:])
        return None

    handles = [head.register_forward_pre_hook(select) for head in heads]
    try:
        yield done
    finally:
        for handle in handles:
            handle.remove()


def output_heads(model: Any) -> list[Any]:
    """A model's LM head, or those of the networks that it combines; empty where none can be reached."""
    if callable(several := getattr(model, "output_heads", None)):
        return [head for head in several() if head is not None]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [] if head is None else [head]


def understood(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function takes: a model that keeps no cache need not know of it."""
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return options
    names = {one.name for one in parameters}
    return {name: value for name, value in options.items() if name in names}


def target_logits(
    model: Any, batch: Mapping[str, Any], *, unwrapped: Any = None, **options: Any
) -> TargetLogits:
    """One forward pass whose LM head computes nothing but the target positions.

    Works through DDP, FSDP and PEFT wrappers, because the model is called whole: a pre-hook on the output
    embedding picks the rows. A model without a reachable head computes all logits, from which the rows are
    taken.

    Args:
        model: the (wrapped) model to call.
        batch: `input_ids`, `labels`, `attention_mask` (not if packed) and `position_ids` (for left padding
        and if packed), each [B, T].
        unwrapped: the model whose head is hooked, if `model` hides it.
        options: passed on to the model (`past_key_values`, say; with `return_networks` the logits of each
        network of a combined model are given instead of the combination, and the first one's stand for it).
    """
    positions_N = positions_of(batch)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    hooked = model if unwrapped is None else unwrapped
    with _select_before_head(hooked, positions_N, batch["labels"].shape) as selected:
        output = model(
            **inputs, **understood(getattr(model, "forward", model), {"use_cache": False, **options})
        )
    if (networks := getattr(output, "network_logits", None)) is not None:
        return TargetLogits(
            networks[0] if output.logits is None else output.logits, batch_targets(batch), networks
        )
    if selected:
        return TargetLogits(output.logits, batch_targets(batch))
    length = batch["labels"].shape[1]
    if output.logits.shape[1] < length:
        raise ValueError(f"the model gives logits for {output.logits.shape[1]} of {length} positions")
    # Prompt tuning puts tokens of its own before the sequence: the last positions are ours.
    logits_BTV = output.logits[:, -length:]
    return TargetLogits(logits_BTV.flatten(0, 1)[positions_N], batch_targets(batch))
