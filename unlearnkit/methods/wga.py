"""Weighted gradient ascent (arXiv 2502.19301: "WGA").

    L = - mean over answer tokens of sg(p_t^beta) CE_t = mean of sg(p_t^beta) log p_t

p_t = pi_theta(y_t | x, y_<t) and sg(.) stops the gradient; the mean is over all target tokens of the global
batch (`token_mean`). beta = 0 is gradient ascent. For beta > 0 a token that is forgotten is left alone,
because grad L is that of mean p_t^beta / beta: what falls is the mean probability (beta = 1), which has a
floor, where gradient ascent has none. The value of L itself is no guide: p log p is smallest at p = 1/e and
returns to 0 as p does. No reference model.

Logged: `forget/wga` the loss; `forget/weight` mean p_t^beta in [0, 1], which falls; `forget/nll` mean
negative log-likelihood per token, which rises and levels off.

Defaults: beta 1, both weights 1, learning rate 1e-5, 5 epochs (OpenUnlearning's). Other implementations
average per micro-batch, which weights a short batch's tokens more; here the mean is over the global batch.
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


def wga_weights(logps_N: Tensor, *, beta: float) -> Tensor:
    """p_t^beta: [N] -> [N] in [0, 1], without gradient."""
    return torch.exp(beta * logps_N.detach())


def wga_loss(logps_N: Tensor, *, beta: float) -> Tensor:
    """sg(p_t^beta) log p_t per target token, in nats: [N] -> [N].

    Args:
        logps_N: log pi_theta of each target token.
        beta: how much less a token counts once it is unlikely, at least 0.

    Raises:
        ValueError: beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, found {beta}; 0 is gradient ascent")
    return wga_weights(logps_N, beta=beta) * logps_N


@dataclass
class WGAConfig(UnlearnConfig):
    """Settings of weighted gradient ascent."""

    beta: float = field(
        default=1.0, metadata={"help": "Power of a token's probability in its weight; 0 is gradient ascent."}
    )
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the anchor stream."})

    def __post_init__(self) -> None:
        """Raises RecipeError: beta is negative or not finite."""
        if not 0 <= self.beta < math.inf:
            raise RecipeError(
                f"training.beta must be a number of at least 0, found {self.beta}; "
                "use the published 1.0, or 0 for gradient ascent"
            )
        super().__post_init__()


@dataclass(frozen=True)
class WGA:
    """The forget term."""

    beta: float
    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logps_N = step.token_logps(self.stream)
        loss = step.token_mean(wga_loss(logps_N, beta=self.beta), self.stream)
        metrics = {
            "wga": loss.detach(),
            "weight": step.token_mean(wga_weights(logps_N, beta=self.beta), self.stream),
            "nll": -step.token_mean(logps_N.detach(), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class WGATrainer(UnlearnTrainer):
    """forget_weight * WGA + retain_weight * retain term."""

    args: WGAConfig

    def build_objective(self) -> Objective:
        """WGA plus the retain term of the config."""
        return self.with_retain(WGA(self.args.beta))
