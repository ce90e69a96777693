"""Soft targets made from logits in which the label was lowered: what UNDIAL and CE-U learn from."""

from __future__ import annotations

from torch import Tensor

from unlearnkit.training.logprobs import wide


def lowered(logits_NV: Tensor, targets_N: Tensor, by: float) -> Tensor:
    """A copy, float32 [N, V], in which each row's label lost `by`; infinity takes it out altogether."""
    logits_NV = wide(logits_NV)
    return logits_NV.scatter_add(1, targets_N[:, None], logits_NV.new_full((len(targets_N), 1), -by))


def soft_cross_entropy(logits_NV: Tensor, target_logits_NV: Tensor) -> Tensor:
    """CE(q, pi) = - sum_v q_v log pi_v per position with q = softmax(target logits), float32 [N]; no gradient
    through q."""
    logp = wide(logits_NV).log_softmax(-1)
    q = wide(target_logits_NV.detach()).softmax(-1)
    # A token of target 0 contributes nothing: 0 * (-inf) must not become NaN.
    return -(q * logp.masked_fill(q == 0, 0.0)).sum(-1)
