"""Numbers of a distribution at each target position, beside the target's log-prob: entropy and error norm.

Like all of `logprobs.py`: float32 (float64 for float64 logits), whatever the model's dtype, and in chunks of
positions, so that nothing of the logits' size is held. They describe tokens, so no gradient goes through
them. Legend of shapes: N target positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unlearnkit.training.logprobs import STATISTICS_CHUNK, wide

#: exp of it is 0 in any dtype.
_NOTHING = -1000.0


@torch.no_grad()
def entropies(logits_NV: Tensor, *, chunk: int = STATISTICS_CHUNK) -> Tensor:
    """H_t = -sum_v p_v log p_v in nats, in [0, log V]: [N, V] -> [N]."""
    return _by_chunk(_entropy, logits_NV, chunk=chunk)


@torch.no_grad()
def error_norms(logits_NV: Tensor, targets_N: Tensor, *, chunk: int = STATISTICS_CHUNK) -> Tensor:
    """e_t = ||p - onehot(y_t)||_2, in [0, sqrt 2]: [N, V], [N] -> [N].

    That is sqrt(sum_v p_v^2 - 2 p_y + 1); summed over the other tokens, with sum_{v != y} p_v for 1 - p_y, it
    has no difference of large numbers in it: it is right to the last digits where p_y is nearly 1, and its
    square is never negative.
    """
    return _by_chunk(_error_norm, logits_NV, targets_N, chunk=chunk)


def _by_chunk(fn: Callable[..., Tensor], *rows: Tensor, chunk: int) -> Tensor:
    starts = range(0, max(len(rows[0]), 1), chunk)
    return torch.cat([fn(*(x[i : i + chunk] for x in rows)) for i in starts])


def _below_best(logits: Tensor) -> Tensor:
    """z - max z, a new tensor; a logit of -inf becomes one whose exp is 0."""
    z = wide(logits)
    return (z - z.amax(-1, keepdim=True)).clamp_(min=_NOTHING)


def _entropy(logits: Tensor) -> Tensor:
    # log p = s - log Z with s = z - max z and Z = sum exp s, so H = log Z - sum p s: two terms that are >= 0.
    s = _below_best(logits)
    weights = s.exp()
    total = weights.sum(-1)
    entropy: Tensor = total.log() - torch.linalg.vecdot(weights, s) / total
    return entropy


def _error_norm(logits: Tensor, targets: Tensor) -> Tensor:
    weights = _below_best(logits).exp_()
    own = weights.gather(1, targets[:, None])[:, 0]
    others = weights.scatter_(1, targets[:, None], 0.0).sum(-1)
    norm = torch.hypot(others, torch.linalg.vector_norm(weights, dim=-1)) / (own + others)
    return norm.clamp(max=math.sqrt(2))
