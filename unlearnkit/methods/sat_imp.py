"""SatImp: gradient ascent weighted by saturation and importance (arXiv 2505.11953).

    L = - mean over answer tokens of sg(p_t^beta1 (1 - p_t)^beta2) CE_t,  p_t = pi_theta(y_t | x, y_<t)

sg(.) stops the gradient; the mean is over all target tokens of the global batch (`token_mean`). p^beta1 lets
go of tokens that are forgotten already (saturation); (1 - p)^beta2 passes over tokens that the model is
certain of, grammar for the most part (importance). The weight vanishes at both ends and is largest,
beta1^beta1 beta2^beta2 / (beta1 + beta2)^(beta1 + beta2), at p = beta1 / (beta1 + beta2): 0.067 at p = 5/6
with the defaults, so that `forget_weight` means less here than elsewhere. beta2 = 0 is WGA, both 0 is
gradient ascent. The value of L is no guide, the weights move with it. No reference model.

Logged: `forget/sat_imp` the loss; `forget/weight` mean weight in [0, 1]; `forget/nll` mean negative
log-likelihood per token, which rises.

Defaults: beta1 5, beta2 1. OpenUnlearning's configuration weights forget with 0.1 and retain with 1, its page
of results the other way round; here both are 1. It also keeps a frozen copy of the model that nothing reads,
and computes 1 - p as a difference, which is 0 or a multiple of 6e-8 for tokens that are almost certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def sat_imp_weights(logps_N: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """p_t^beta1 (1 - p_t)^beta2: [N] -> [N] in [0, 1], without gradient."""
    logps_N = logps_N.detach()
    # 1 - e^u = -expm1(u); rounding may leave u a little above 0
    return torch.exp(beta1 * logps_N) * (-torch.expm1(logps_N)).clamp(min=0).pow(beta2)


def sat_imp_loss(logps_N: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """sg(p_t^beta1 (1 - p_t)^beta2) log p_t per target token, in nats: [N] -> [N].

    Args:
        logps_N: log pi_theta of each target token.
        beta1: power of the probability (saturation), at least 0.
        beta2: power of its complement (importance), at least 0.

    Raises:
        ValueError: a power is negative.
    """
    if beta1 < 0 or beta2 < 0:
        raise ValueError(f"beta1 and beta2 must be at least 0, found {beta1} and {beta2}")
    return sat_imp_weights(logps_N, beta1=beta1, beta2=beta2) * logps_N


@dataclass
class SatImpConfig(UnlearnConfig):
    """Settings of SatImp."""

    beta1: float = field(
        default=5.0, metadata={"help": "Power of a token's probability (saturation); 0 switches it off."}
    )
    beta2: float = field(
        default=1.0, metadata={"help": "Power of one minus the probability (importance); 0 is WGA."}
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: a power is negative or not finite."""
        for name, published in (("beta1", 5.0), ("beta2", 1.0)):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(
                    f"training.{name} must be a number of at least 0, found {getattr(self, name)}; use the "
                    f"published {published}, or 0 to leave its factor out"
                )
        super().__post_init__()


@dataclass(frozen=True)
class SatImp:
    """The forget term."""

    beta1: float
    beta2: float
    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logps_N = step.token_logps(self.stream)
        loss_N = sat_imp_loss(logps_N, beta1=self.beta1, beta2=self.beta2)
        weights_N = sat_imp_weights(logps_N, beta1=self.beta1, beta2=self.beta2)
        loss = step.token_mean(loss_N, self.stream)
        metrics = {
            "sat_imp": loss.detach(),
            "weight": step.token_mean(weights_N, self.stream),
            "nll": -step.token_mean(logps_N.detach(), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class SatImpTrainer(UnlearnTrainer):
    """forget_weight * SatImp + retain_weight * retain term."""

    args: SatImpConfig

    def build_objective(self) -> Objective:
        """SatImp plus the retain term of the config."""
        return self.with_retain(SatImp(self.args.beta1, self.args.beta2))
