"""-log(1 - p): what pushes a token's probability down, and has a gradient even where p is 1.

    -log(1 - p_y) = LSE(z) - LSE_{v != y}(z) = softplus(z_y - LSE_{v != y}(z)),    d/dz_y = p_y

Written with a clamp, log(max(1 - p, eps)), it would give no gradient to the tokens that need it most, and
1 - p is a multiple of the dtype's spacing near 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from unlearnkit.training.logprobs import chunked, wide


def unlikelihood(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log(1 - p) of each target token, in nats, at least 0: float32 [N]; differentiable in the logits.

    Args:
        logits_NV: rows that predict the targets.
        targets_N: token ids.
    """
    return chunked(_rows, logits_NV, targets_N)


def _rows(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV, columns = wide(logits_NV), targets_N[:, None]
    others_N = torch.logsumexp(logits_NV.scatter(1, columns, -torch.inf), dim=-1)
    return F.softplus(logits_NV.gather(1, columns)[:, 0] - others_N)
