"""SimNPO: simplified Negative Preference Optimization (arXiv 2410.07163).

    L = - (2/beta) E_forget log sigma(beta (nll(y|x) - gamma))
      = (2/beta) E_forget softplus(-beta (nll(y|x) - gamma))

nll(y|x) = - log pi_theta(y|x) / n is the mean over the answer's n tokens, its EOS included; the mean of the
losses is over sequences (`seq_mean_mean`). NPO without a reference model: nll - gamma stands where NPO has n
times less the log-ratio, and lengths do not matter. The gradient is that of E[sg(W) (1/n) log pi] with W = 2
sigma(-beta (nll - gamma)) in (0, 2): it dies away as nll passes the margin gamma. As beta -> 0 it tends to
gradient ascent per token.

Logged: `forget/simnpo` the loss; `forget/weight` mean W; `forget/nll` mean of nll over sequences, which
rises.

Three things are called gamma: the paper's margin is `margin` here; OpenUnlearning's gamma is the weight of
this loss, `forget_weight` here, and its margin is called delta. Defaults: beta 2.5, margin 0 and
forget_weight 0.1375, which belong together: the authors' setting for TOFU forget05 (OpenUnlearning has 4.5, 0
and 0.125). Elsewhere n counts unshifted labels, one too many if the first token is a target, and an answer
that was cut away divides by 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def simnpo_loss(nll_B: Tensor, *, beta: float, margin: float = 0.0) -> Tensor:
    """SimNPO per sequence, in nats: [B] -> [B], at least 0.

    Args:
        nll_B: - log pi_theta(y|x) / n, the mean over the answer's tokens.
        beta: inverse temperature, above 0.
        margin: the paper's gamma, in nats per token.

    Raises:
        ValueError: beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, found {beta}; for the limit beta -> 0 use grad_ascent")
    # - log sigma(u) = softplus(-u) does not overflow
    return 2.0 / beta * softplus(-beta * (nll_B - margin))


@dataclass
class SimNPOConfig(UnlearnConfig):
    """Settings of SimNPO; no reference model is needed unless the retain term asks for one."""

    beta: float = field(
        default=2.5, metadata={"help": "Inverse temperature; small values come close to gradient ascent."}
    )
    margin: float = field(
        default=0.0, metadata={"help": "The paper's gamma: nats per token at which forgetting is enough."}
    )
    forget_weight: float = field(
        default=0.1375, metadata={"help": "Weight of the forget term; other code calls it gamma."}
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: beta is not positive, or the margin is negative."""
        if not 0 < self.beta < math.inf:
            raise RecipeError(
                f"training.beta must be a number above 0, found {self.beta}; for beta -> 0 "
                "use method: grad_ascent"
            )
        if not 0 <= self.margin < math.inf:
            raise RecipeError(
                f"training.margin must be a number of at least 0, found {self.margin}; use 0, and "
                "forget_weight for the weight that others call gamma"
            )
        super().__post_init__()


@dataclass(frozen=True)
class SimNPO:
    """The forget term."""

    beta: float
    margin: float = 0.0
    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        # A sequence without targets has sum 0; `sequence_mean` leaves it out.
        length_B = step.num_target_tokens(self.stream).clamp(min=1)
        nll_B = -step.sequence_logps(self.stream) / length_B
        loss = step.sequence_mean(simnpo_loss(nll_B, beta=self.beta, margin=self.margin), self.stream)
        nll_B = nll_B.detach()
        weight_B = 2 * torch.sigmoid(-self.beta * (nll_B - self.margin))
        metrics = {
            "simnpo": loss.detach(),
            "weight": step.sequence_mean(weight_B, self.stream),
            "nll": step.sequence_mean(nll_B, self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class SimNPOTrainer(UnlearnTrainer):
    """forget_weight * SimNPO + retain_weight * retain term."""

    args: SimNPOConfig

    def build_objective(self) -> Objective:
        """SimNPO plus the retain term of the config."""
        return self.with_retain(SimNPO(self.args.beta, self.args.margin))
