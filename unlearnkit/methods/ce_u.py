"""Cross-entropy unlearning (arXiv 2503.01224: "CE-U").

    L = mean over answer tokens of CE(q_t, pi_theta),   q_t = sg(softmax(z_t, the label's logit set to -inf))

z_t are the policy's own logits and sg(.) stops the gradient: the model learns what it would say if the label
were impossible. With p = softmax(z) and label y, q_v = p_v / (1 - p_y) for v != y and q_y = 0, so

    CE(q, p) = H(q) - log(1 - p_y),   dL/dz_v = p_v - q_v:  p_y at the label, -p_v p_y / (1 - p_y) elsewhere

The push is strongest while the model is certain of the label (gradient ascent's is 1 - p_y, weakest there)
and dies away as p_y goes to 0. The first `skip_first` answer tokens of each sequence are left out, as in the
paper's footnote: nothing in the answer tells yet what it is about. The mean is over the tokens that are kept
in the global batch. The forget term alone is the method: there is no retain term by default, and no reference
model.

Logged: `forget/ce_u` the loss, `forget/entropy` mean H(q), `forget/unlikelihood` mean -log(1 - p_y): it is
the part that the method lowers to 0, while the entropy may go either way; `forget/nll` mean negative
log-likelihood per token, which rises. The first three are means over the kept tokens.

Elsewhere the kept tokens of one micro-batch are averaged, or NaN is the answer where all answers are of one
token; here such a batch gives 0. A clamped log(1 - softmax) in place of the log-sum-exps would have no
gradient where the model is certain, which is where this loss is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch
from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.distillation import lowered, soft_cross_entropy
from unlearnkit.training.logprobs import chunked, positions_of
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step
from unlearnkit.training.trainer import UnlearnTrainer


def ce_u_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """CE to the policy's own distribution without the label, in nats: [N, V], [N] -> [N], at least 0."""
    return soft_cross_entropy(logits_NV, lowered(logits_NV.detach(), targets_N, torch.inf))


def entropy_without_label(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """H(q), the part of `ce_u_loss` that has no gradient, in nats: [N, V], [N] -> [N]."""
    others_NV = lowered(logits_NV.detach(), targets_N, torch.inf)
    return soft_cross_entropy(others_NV, others_NV)


def after_first(batch: TokenBatch) -> Tensor:
    """bool [N]: False at the first target of each sequence."""
    rows_N = positions_of(batch) // batch["labels"].shape[1]
    keep_N = torch.ones_like(rows_N, dtype=torch.bool)
    keep_N[:1] = False
    keep_N[1:] = rows_N[1:] == rows_N[:-1]
    return keep_N


@dataclass
class CEUConfig(UnlearnConfig):
    """Settings of CE-U."""

    retain: str = field(
        default="none", metadata={"help": "CE-U has no retain term; nll, kl, reverse_kl add one."}
    )
    skip_first: int = field(
        default=1,
        metadata={"help": "Answer tokens left out at the start of each answer: 1 as published, or 0."},
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: skip_first is neither 0 nor 1."""
        if self.skip_first not in (0, 1):
            raise RecipeError(
                f"training.skip_first must be 0 or 1, found {self.skip_first}; use 1, which leaves out "
                "the first answer token as published"
            )
        super().__post_init__()


@dataclass(frozen=True)
class CEU:
    """The forget term."""

    skip_first: int = 1
    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        logits_NV, targets_N = step.logits(self.stream), step.targets(self.stream)
        keep_N = after_first(batch[self.stream]) if self.skip_first else torch.ones_like(targets_N) > 0
        # Each sequence with a target loses one: exact for the global batch, whatever its parts.
        counts = step.counts[self.stream]
        kept = (counts.tokens - self.skip_first * counts.sequences).clamp(min=1)

        def mean(values_N: Tensor) -> Tensor:
            return (values_N * keep_N).sum() / kept

        loss = mean(chunked(ce_u_loss, logits_NV, targets_N))
        with torch.no_grad():
            entropy = mean(chunked(entropy_without_label, logits_NV, targets_N))
        metrics = {
            "ce_u": loss.detach(),
            "entropy": entropy,
            "unlikelihood": loss.detach() - entropy,
            "nll": -step.token_mean(step.token_logps(self.stream).detach(), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


class CEUTrainer(UnlearnTrainer):
    """CE-U, with a retain term if the config names one."""

    args: CEUConfig

    def build_objective(self) -> Objective:
        """`retain` is honoured if somebody sets it; by default there is none."""
        return self.with_retain(CEU(self.args.skip_first))
