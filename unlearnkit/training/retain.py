"""Retain terms: what keeps the rest of the model as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.logprobs import chunked, wide
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step


@dataclass(frozen=True)
class CrossEntropy:
    """Mean negative log-likelihood per target token of one or more streams (`token_mean`)."""

    streams: tuple[str, ...] = ("retain",)
    needs = Needs.NOTHING

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        nll = {s: -step.token_logps(s) for s in self.streams}
        total = torch.stack([step.counts[s].tokens for s in self.streams]).sum() if len(nll) > 1 else None
        shares = [
            values.sum() / (total if total is not None else step.counts[s].tokens)
            for s, values in nll.items()
        ]
        metrics = {f"{s}/nll": step.token_mean(values, s).detach() for s, values in nll.items()}
        return LossOutput(torch.stack(shares).sum(), metrics)


def forward_kl(logits_NV: Tensor, ref_logits_NV: Tensor) -> Tensor:
    """KL(pi_ref || pi_theta) per position, float32 [N]: mass covering, what TOFU and NPO call the KL retain
    loss."""
    logq = torch.log_softmax(wide(logits_NV), dim=-1)
    logp = torch.log_softmax(wide(ref_logits_NV), dim=-1)
    # A token of probability 0 contributes nothing: 0 * (-inf) must not become NaN.
    return (logp.exp() * torch.where(logp == -torch.inf, 0.0, logp - logq)).sum(-1)


def reverse_kl(logits_NV: Tensor, ref_logits_NV: Tensor) -> Tensor:
    """KL(pi_theta || pi_ref) per position, float32 [N]: mode seeking."""
    return forward_kl(ref_logits_NV, logits_NV)


@dataclass(frozen=True)
class KL:
    """Mean KL per answer position between the reference and the policy on one stream (prompt and pads left
    out)."""

    stream: str = "retain"
    direction: Literal["forward", "reverse"] = "forward"
    needs = Needs.REFERENCE_LOGITS

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        fn = forward_kl if self.direction == "forward" else reverse_kl
        values_N = chunked(fn, step.logits(self.stream), step.reference.logits(self.stream))
        loss = step.token_mean(values_N, self.stream)
        name = "kl" if self.direction == "forward" else "reverse_kl"
        return LossOutput(loss, {f"{self.stream}/{name}": loss.detach()})


#: The names that `training.retain` may take.
RETAIN_TERMS = ("nll", "kl", "reverse_kl", "none")


def retain_term(name: str, stream: str = "retain") -> Objective | None:
    """The retain term called `name`, or None for "none".

    Raises:
        RecipeError: an unknown name.
    """
    terms: dict[str, Objective | None] = {
        "nll": CrossEntropy((stream,)),
        "kl": KL(stream, "forward"),
        "reverse_kl": KL(stream, "reverse"),
        "none": None,
    }
    if name not in terms:
        raise RecipeError(f"training.retain is {name!r}; use one of {', '.join(RETAIN_TERMS)}")
    return terms[name]
