"""UNDIAL: self-distillation with adjusted logits (arXiv 2402.10052).

    L = mean over answer tokens of CE(softmax(z_teacher - beta e_y), pi_theta)

z_teacher are the reference model's logits (it is the target model, frozen) and e_y is 1 at the label y: the
model learns what its former self would say if the true token were e^beta times less likely. Nothing is
maximised, the target is fixed, and the loss has a floor, the target's entropy. With teacher probability t of
the label, the target gives it t e^-beta / (1 - t + t e^-beta). The mean is over all target tokens of the
global batch (`token_mean`). beta = 0 asks for the teacher itself: no gradient at the start.

Logged: `forget/undial` the loss; `forget/target_kl` mean KL(target || pi_theta), which falls to 0;
`forget/nll` mean negative log-likelihood per token, which rises.

Defaults: beta 10, learning rate 1e-4, 10 epochs (OpenUnlearning's; the paper has beta 3, 10 and 30 with LoRA
of rank 8). Both train without a retain term, `retain: none`; here it is nll as for every method that has a
retain set beside it. OpenUnlearning lowers a token at every position of the sequence, with -100 as an index
where there is no label (the hundredth token from the end of the vocabulary), and averages over prompt and
padding as well; here only answer positions exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.distillation import lowered, soft_cross_entropy
from unlearnkit.training.logprobs import chunked
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def undial_loss(logits_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, *, beta: float) -> Tensor:
    """CE to the teacher with the label lowered, in nats: [N, V], [N, V], [N] -> [N], at least 0.

    Args:
        logits_NV: the policy's logits at answer positions.
        teacher_NV: the reference model's logits at the same positions.
        targets_N: the labels, all of them tokens.
        beta: what the label's logit loses, at least 0.

    Raises:
        ValueError: beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, found {beta}; a negative one would teach the label")
    return soft_cross_entropy(logits_NV, lowered(teacher_NV, targets_N, beta))


def target_entropy(teacher_NV: Tensor, targets_N: Tensor, *, beta: float) -> Tensor:
    """H(target), the floor of `undial_loss`, in nats: [N, V], [N] -> [N]."""
    target_NV = lowered(teacher_NV, targets_N, beta)
    return soft_cross_entropy(target_NV, target_NV)


@dataclass
class UNDIALConfig(UnlearnConfig):
    """Settings of UNDIAL; `retain: none` is the published method, which needs the forget set alone."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (AdamW)."})
    beta: float = field(default=10.0, metadata={"help": "What the true token's logit loses in the target."})

    def __post_init__(self) -> None:
        """Raises RecipeError: beta is not positive or not finite."""
        if not 0 < self.beta < math.inf:
            raise RecipeError(
                f"training.beta must be a number above 0, found {self.beta}; "
                "use 10, or 3 for a gentler target"
            )
        super().__post_init__()


@dataclass(frozen=True)
class UNDIAL:
    """The forget term."""

    beta: float
    stream: str = "forget"
    needs = Needs.REFERENCE_LOGITS

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logits_NV, targets_N = step.logits(self.stream), step.targets(self.stream)
        teacher_NV = step.reference.logits(self.stream)

        def per_token(logits: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
            return undial_loss(logits, teacher, targets, beta=self.beta)

        def floor(teacher: Tensor, targets: Tensor) -> Tensor:
            return target_entropy(teacher, targets, beta=self.beta)

        loss = step.token_mean(chunked(per_token, logits_NV, teacher_NV, targets_N), self.stream)
        with torch.no_grad():
            entropy = step.token_mean(chunked(floor, teacher_NV, targets_N), self.stream)
        metrics = {
            "undial": loss.detach(),
            "target_kl": loss.detach() - entropy,
            "nll": -step.token_mean(step.token_logps(self.stream).detach(), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class UNDIALTrainer(UnlearnTrainer):
    """forget_weight * UNDIAL + retain_weight * retain term."""

    args: UNDIALConfig

    def build_objective(self) -> Objective:
        """UNDIAL plus the retain term of the config."""
        return self.with_retain(UNDIAL(self.args.beta))
