"""Negative Preference Optimization (arXiv 2404.05868, eq. 3).

    L = (2/beta) E_forget log(1 + (pi_theta(y|x) / pi_ref(y|x))^beta)
      = (2/beta) E_forget softplus(beta log(pi_theta(y|x) / pi_ref(y|x)))

log pi(y|x) is the sum over the answer's tokens, its EOS included; the mean is over sequences
(`seq_sum_mean`). At theta = ref the value is 2 ln 2 / beta and the gradient is gradient ascent's; as beta ->
0 the gradient tends to gradient ascent's everywhere (it is *not* the limit of large beta). The weight of an
example's gradient is W = 2 sigma(beta log(pi_theta / pi_ref)) in (0, 2): it dies away as the example is
forgotten.

Logged: `forget/npo` the loss; `forget/log_ratio` mean log(pi_theta / pi_ref), negative once forgetting;
`forget/weight` mean W, 1 at the start, 0 when nothing is left to push.

The authors' code agrees with this file. Its class default beta is 1.0; every published run uses 0.1, the
default here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def npo_loss(logps_B: Tensor, ref_logps_B: Tensor, *, beta: float) -> Tensor:
    """NPO per sequence, in nats: [B] -> [B], at least 0.

    Args:
        logps_B: log pi_theta(y|x), summed over the answer.
        ref_logps_B: log pi_ref(y|x), summed over the same tokens.
        beta: inverse temperature, above 0.

    Raises:
        ValueError: beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, found {beta}; for the limit beta -> 0 use grad_ascent")
    # eq. 3; softplus(u) = log(1 + e^u) does not overflow
    return 2.0 / beta * softplus(beta * (logps_B - ref_logps_B))


@dataclass
class NPOConfig(UnlearnConfig):
    """Settings of NPO; with `retain: nll` it is the paper's NPO+RT, with `retain: kl` its NPO+KL."""

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature; small values come close to gradient ascent."}
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: beta is not positive."""
        if self.beta <= 0:
            raise RecipeError(
                f"training.beta must be above 0, found {self.beta}; for beta -> 0 use method: grad_ascent"
            )
        super().__post_init__()


@dataclass(frozen=True)
class NPO:
    """The forget term."""

    beta: float
    stream: str = "forget"
    needs = Needs.REFERENCE_LOGPS

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logps_B, ref_logps_B = step.sequence_logps(self.stream), step.reference.sequence_logps(self.stream)
        loss = step.sequence_mean(npo_loss(logps_B, ref_logps_B, beta=self.beta), self.stream)
        log_ratio_B = (logps_B - ref_logps_B).detach()
        metrics = {
            "npo": loss.detach(),
            "log_ratio": step.sequence_mean(log_ratio_B, self.stream),
            "weight": step.sequence_mean(2 * torch.sigmoid(self.beta * log_ratio_B), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class NPOTrainer(UnlearnTrainer):
    """forget_weight * NPO + retain_weight * retain term."""

    args: NPOConfig

    def build_objective(self) -> Objective:
        """The paper's eq. 3 plus the retain term of the config."""
        return self.with_retain(NPO(self.args.beta))
