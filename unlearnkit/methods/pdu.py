"""Primal-dual unlearning (PDU, "Constrained Entropic Unlearning", arXiv 2506.05314).

    min over theta of L_f   subject to   L_r <= epsilon,   solved on   L = L_f + alpha (L_r - epsilon)

    L_f = E over answer tokens of (max_v z_v - mean_v z_v)^2             logit margin flattening
    after an optimizer step:   alpha <- max(0, alpha + dual_step (L_r - epsilon))

z are the logits of one answer position of the forget set (`token_mean`). L_f is 0 where all logits are equal,
so the answer's distribution is pushed towards the uniform one; no softmax is in it, so its gradient does not
vanish when the model is sure. L_r is the retain term. alpha is the constraint's dual variable: it begins at
`retain_weight`, stays there for `dual_warmup_epochs`, then rises while the retain loss is above its bound and
falls while it is below. The bound belongs to model and data: take one somewhat above the target model's
retain loss, which the first step's `retain/slack` + epsilon shows. L_f is a square of logits, in the hundreds
at the start, which is why alpha begins at 100.

Logged: `forget/pdu` is L_f; `forget/margin` the mean of max_v z_v - mean_v z_v; `retain/slack` is L_r -
epsilon, negative while the constraint holds; `retain/alpha` is alpha in that step.

Where we differ from the authors' code: theirs takes L_f over prompt and padding too, and updates alpha with
the retain loss of every micro-batch of every process for itself, so that alpha depends on how a batch is
split; here it is the loss of the whole global batch, and alpha is the same everywhere and in every
checkpoint. Their `dual_update: epoch` runs the model over the data once more; ours uses the epoch's steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.logprobs import chunked, wide
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, WeightedSum
from unlearnkit.training.retain import retain_term
from unlearnkit.training.trainer import UnlearnTrainer

logger = logging.getLogger(__name__)

#: When the dual variable may move.
UPDATES = ("step", "epoch")
#: An epoch counter is a quotient of whole numbers.
_ROUNDING = 1e-6


def margin_flattening(logits_NV: Tensor) -> Tensor:
    """(max_v z_v - mean_v z_v)^2 per position, float32: [N, V] -> [N], at least 0.

    Adding a constant to a row changes nothing. Where several tokens share the maximum, they share its
    gradient.
    """
    z_NV = wide(logits_NV)
    return (z_NV.amax(-1) - z_NV.mean(-1)).square()


@dataclass
class PDUConfig(UnlearnConfig):
    """Settings of PDU; the defaults are the published ones for TOFU."""

    retain_weight: float = field(
        default=100.0, metadata={"help": "First value of alpha, the weight of the retain term."}
    )
    epsilon: float = field(
        default=0.3, metadata={"help": "Bound on the retain term, in nats; above the target model's value."}
    )
    dual_step: float = field(
        default=5.0, metadata={"help": "How much alpha moves per nat of violation; 0 keeps it as it is."}
    )
    dual_warmup_epochs: float = field(default=5.0, metadata={"help": "Epochs in which alpha does not move."})
    dual_update: str = field(default="step", metadata={"help": "When alpha moves: after each step or epoch."})

    def __post_init__(self) -> None:
        """Raises RecipeError: a setting with which there is no constraint."""
        for name in ("epsilon", "dual_step", "dual_warmup_epochs", "retain_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise RecipeError(f"training.{name} must not be negative, found {value}")
        if self.dual_update not in UPDATES:
            raise RecipeError(f"training.dual_update is {self.dual_update!r}; use {' or '.join(UPDATES)}")
        if self.retain == "none" or not self.retain_streams:
            raise RecipeError(
                f"pdu bounds the retain term, but with training.retain {self.retain!r} and retain_streams "
                f"{self.retain_streams} there is nothing to bound; use retain: nll (or kl), or another method"
            )
        super().__post_init__()


@dataclass(frozen=True)
class MarginFlattening:
    """The forget term."""

    stream: str = "forget"
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        squares_N = chunked(margin_flattening, step.logits(self.stream))
        loss = step.token_mean(squares_N, self.stream)
        margin = step.token_mean(squares_N.detach().sqrt(), self.stream)
        return LossOutput(loss, {f"{self.stream}/pdu": loss.detach(), f"{self.stream}/margin": margin})


class DualVariable:
    """alpha of one constraint, equal in all processes and kept in checkpoints.

    Args:
        start: alpha in the first step.
        step_size: by how much it moves per unit of L_r - epsilon.
        warmup_epochs: how long it stays as it is.
        update: "step", or "epoch" for one move with the mean over the epoch's steps.
    """

    def __init__(
        self, start: float, *, step_size: float, warmup_epochs: float = 0.0, update: str = "step"
    ) -> None:
        self.start, self.step_size = start, step_size
        self.warmup_epochs, self.update = warmup_epochs, update
        self.begin(None)

    def begin(self, trainer: Any) -> None:
        """As before the first step."""
        self.alpha = torch.tensor(self.start)
        # [sum of L_r - epsilon, steps that had a retain token]: this process's share of the current step, and
        # all of the steps since alpha last moved.
        self._step_2 = torch.zeros(2)
        self._since_2 = torch.zeros(2)

    def alpha_on(self, device: torch.device) -> Tensor:
        """alpha, where it is needed; it stays there."""
        self.alpha = self.alpha.to(device)
        return self.alpha

    def add(self, slack: Tensor, present: Tensor) -> None:
        """A micro-batch's shares of L_r - epsilon, and of the step's retain tokens."""
        share_2 = torch.stack([slack, present])
        self._step_2 = self._step_2.to(share_2.device) + share_2

    def end_step(self, total: Callable[[Tensor], Tensor], epoch: float) -> None:
        """Move alpha, with the loss of the whole global batch; a step without retain rows does not count."""
        step_2 = total(self._step_2)
        self._step_2 = torch.zeros_like(step_2)
        if epoch <= self.warmup_epochs + _ROUNDING:
            return
        self._since_2 = self._since_2.to(step_2.device) + step_2
        if self.update == "step" or abs(epoch - round(epoch)) < _ROUNDING:
            slack, steps = self._since_2.unbind()
            mean = slack / steps.round().clamp(min=1)
            self.alpha = (self.alpha.to(mean.device) + self.step_size * mean).clamp(min=0)
            self._since_2 = torch.zeros_like(step_2)

    def state_dict(self) -> dict[str, Tensor]:
        """alpha, and what an epoch has summed up so far."""
        return {"alpha": self.alpha, "since": self._since_2}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """The reverse."""
        self.begin(None)
        self.alpha, self._since_2 = values["alpha"], values["since"]


@dataclass(frozen=True)
class Constrained:
    """alpha (L - epsilon) for a term L of one stream, with alpha from its state."""

    term: Objective
    epsilon: float
    state: DualVariable = field(compare=False)

    @property
    def needs(self) -> Needs:
        """What the term needs."""
        return self.term.needs

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that the term reads."""
        return self.term.streams

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        (stream,) = self.streams
        out = self.term(step, batch)
        # epsilon is shared out like a mean over tokens, so that it counts once in a step that has any.
        present = (step.num_target_tokens(stream).sum() / step.counts[stream].tokens).to(out.loss)
        slack = out.loss - self.epsilon * present
        alpha = self.state.alpha_on(out.loss.device)
        if torch.is_grad_enabled():
            self.state.add(slack.detach(), present)
        metrics = {f"{stream}/alpha": alpha * present, f"{stream}/slack": slack.detach()}
        return LossOutput(alpha * slack, {**out.metrics, **metrics}, out.owners)


class PDUTrainer(UnlearnTrainer):
    """forget_weight * margin flattening + alpha * (retain term - epsilon), one alpha per retain stream."""

    args: PDUConfig

    def build_objective(self) -> Objective:
        """The Lagrangian."""
        args = self.args
        terms: list[tuple[float, Objective]] = [(args.forget_weight, MarginFlattening())]
        for stream in args.retain_streams:
            term = retain_term(args.retain, stream)
            if term is not None:
                alpha = DualVariable(
                    args.retain_weight, step_size=args.dual_step, warmup_epochs=args.dual_warmup_epochs,
                    update=args.dual_update,
                )  # fmt: skip
                terms.append((1.0, Constrained(term, args.epsilon, alpha)))
        return WeightedSum(tuple(terms))

    def remarks(self, epochs: float) -> list[str]:
        """What to say about a training of that many passes over the data."""
        args = self.args
        if args.dual_step == 0 or epochs > args.dual_warmup_epochs + _ROUNDING:
            return []
        return [
            f"training.dual_warmup_epochs ({args.dual_warmup_epochs:g}) is not below the {epochs:g} epochs "
            f"that are trained, so alpha stays at retain_weight ({args.retain_weight:g}) and nothing is "
            "bounded; lower dual_warmup_epochs"
        ]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and say before if the warm-up will not end."""
        epochs = float(self.args.num_train_epochs)
        if self.args.max_steps > 0:
            a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            epochs = self.args.max_steps / math.ceil(len(self.mix) / a_step)
        for remark in self.remarks(epochs):
            logger.warning(remark)
        return super().train(*args, **kwargs)
