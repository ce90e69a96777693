"""The logits of several networks as one distribution.

    l(v) = sum_i w_i s_i(v),   s_i = log softmax(z_i)

The first network has weight 1. ULD (arXiv 2406.08607, eq. 2): target 1, assistant -alpha. Offset unlearning
(arXiv 2404.11045): base 1, tuned alpha, untuned -alpha. Inverse value learning (arXiv 2410.21027): base 1,
value network w. Because each network's logits are normalised first, a constant added to any of them changes
nothing.

The filter (ULD, from DoLa) lets the other networks speak about plausible tokens only: v is kept if
s_0(v) >= min(max s_0 + log r, the floor(r V)-th largest s_0). What becomes of the others depends on the
question. In generation they are `removed` (-inf). A likelihood must not be infinite, so there the other
networks have no opinion about them: `neutral` sets s_i(v) = -log V, as if they were uniform.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

#: What becomes of tokens that the filter leaves out.
FILTERED = ("neutral", "removed")


def kept_tokens(logps: Tensor, rate: float) -> Tensor:
    """Which tokens the filter keeps: bool [..., V]; always the likeliest one, and at least floor(rate V).

    Args:
        logps: log-probs of the first network, float32 [..., V].
        rate: r, in (0, 1); the smaller, the more tokens are compared by their probability alone.
    """
    threshold = logps.amax(-1, keepdim=True) + math.log(rate)
    at_least = int(rate * logps.shape[-1])
    if at_least > 0:
        smallest = logps.topk(at_least, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        threshold = torch.minimum(threshold, smallest)
    return ~(logps < threshold)  # NaN is kept, so that it shows


def combine(
    logits: Sequence[Tensor], weights: Sequence[float], *, filter_rate: float | None = None,
    filtered: str = "neutral",
) -> Tensor:  # fmt: skip
    """The formula above: as many [..., V] as weights -> float32 [..., V] (not normalised).

    Args:
        logits: of each network at the same positions, in any dtype.
        weights: w_i; the first is 1.
        filter_rate: r; None compares all tokens.
        filtered: "neutral" for likelihoods, "removed" for generation.

    Raises:
        ValueError: another number of networks than of weights, different vocabularies, or an unknown
            `filtered`.
    """
    (combined,) = combine_each(logits, [weights], filter_rate=filter_rate, filtered=filtered)
    return combined


def combine_each(
    logits: Sequence[Tensor], several: Iterable[Sequence[float]], *, filter_rate: float | None = None,
    filtered: str = "neutral",
) -> Iterator[Tensor]:  # fmt: skip
    """As `combine`, with one weighting after another; what they have in common is computed once."""
    if len(widths := {z.shape[-1] for z in logits}) > 1:
        raise ValueError(
            f"the networks' vocabularies have {' and '.join(map(str, sorted(widths)))} tokens; only networks "
            "with one vocabulary can be combined"
        )
    if filtered not in FILTERED:
        raise ValueError(f"filtered is {filtered!r}; use {' or '.join(FILTERED)}")
    first, *others = (torch.log_softmax(_wide(z), dim=-1) for z in logits)
    # A token that another network rules out (a padded row of its vocabulary): it has no opinion about it.
    nothing = -math.log(first.shape[-1])
    others = [logps.masked_fill(logps == -math.inf, nothing) for logps in others]
    kept = kept_tokens(first.detach(), filter_rate) if filter_rate else None
    for weights in several:
        if len(logits) != len(weights):
            raise ValueError(f"{len(logits)} networks have {len(weights)} weights; give one weight for each")
        combined = first * weights[0] if weights[0] != 1 else first
        for logps, weight in zip(others, weights[1:], strict=True):
            if weight:
                combined = combined + weight * logps
        if kept is None:
            yield combined
        elif filtered == "removed":
            yield combined.masked_fill(~kept, -math.inf)
        else:
            yield torch.where(kept, combined, first + sum(weights[1:]) * nothing)


def _wide(z: Tensor) -> Tensor:
    """float32, or float64 if it is that already."""
    return z if z.dtype == torch.float64 else z.float()
