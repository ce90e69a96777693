"""Gradient ascent on the forget set (the oldest baseline; arXiv 2401.06121, section 4).

    L = - mean over answer tokens of CE = + mean log pi_theta(y_t | x, y_<t)

The mean is over all target tokens of the global batch (`token_mean`), as in TOFU's code. It has no lower
bound: it must be stopped early, and utility must be reported beside it. No retain term and no reference
model.

Logged: `forget/nll` mean negative log-likelihood per token, which rises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def grad_ascent_loss(logps_N: Tensor) -> Tensor:
    """log pi of each target token, in nats: [N] -> [N]; minimising it makes the tokens unlikely."""
    return logps_N


@dataclass
class GradAscentConfig(UnlearnConfig):
    """Settings of gradient ascent; few epochs, for it does not stop by itself."""

    retain: str = field(
        default="none", metadata={"help": "Gradient ascent has no retain term; grad_diff is the one with."}
    )
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the forget set."})


@dataclass(frozen=True)
class GradAscent:
    """The forget term."""

    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logps_N = step.token_logps(self.stream)
        loss = step.token_mean(grad_ascent_loss(logps_N), self.stream)
        return LossOutput(loss, {f"{self.stream}/nll": -loss.detach()})


class GradAscentTrainer(UnlearnTrainer):
    """Minus the cross-entropy of the forget set."""

    args: GradAscentConfig

    def build_objective(self) -> Objective:
        """`retain` is honoured if somebody sets it; by default there is none."""
        return self.with_retain(GradAscent())
