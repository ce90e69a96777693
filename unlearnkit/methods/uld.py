"""ULD: unlearning from logit difference with a small assistant (arXiv 2406.08607).

    min_phi  E_{D'_f} CE(y, p_a)  +  beta E_{D'_r} KL(U || p_a)          (eqs. 3 to 5)
    log p  =  log p_theta - alpha log p_a  + const                        (eq. 2)

The assistant a learns the opposite of what is wanted: to know D'_f, the forget set with paraphrases, and to
be uniform on D'_r, the retain set with wrong answers to the forget questions. Subtracted from the target
model theta it takes out what it knows, and elsewhere nothing, because a uniform distribution subtracts the
same from every token. The target is never changed and not needed during training. KL(U || p) = -log V -
1/V sum_v log p(v) is the paper's CE(U, p) less log V, so that 0 means uniform. Both means are over all answer
tokens of the global batch, those of all their streams together (`token_mean`).

The assistant is the target's embeddings, first K layers, final norm and LM head, all frozen, with LoRA on the
layers. Only the adapter is trained, and only K layers are computed. Under a frozen RMSNorm the last hidden
state has a fixed length, and a head whose smallest singular value is far from 0 then cannot be uniform for
any hidden state; narrow models are so. `train_norm` trains the norm's weight as well: with a channel that
drowns the others and whose own weight is 0, all logits are.

Logged: `forget/nll` (and that of each stream with paraphrases), which must fall far below log V before the
pair is worth anything; `retain/uniform` (and that of each other stream), the KL to uniform, which must stay
near 0.

Defaults are the paper's for TOFU: K a quarter of the layers, LoRA of rank 32 with alpha 32, learning rate
1e-3, weight decay 0.01, 10 epochs, beta 6.5; served with alpha 0.75 and a filter of 0.01. Where we differ
from the authors' code: its uniform term is the mean over all positions, prompt and padding included, through
a softmax and a logarithm that overflow; it never teaches the EOS where padding has the same id; and its
likelihoods subtract raw logits, so that they move with a constant added to the assistant's (see
`models/combined/combination.py`).
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.models.assistant import (
    build_assistant,
    default_lora,
    final_norm,
    refuse_depth,
    refuse_tied_adapter,
)
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.logprobs import chunked, wide
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, WeightedSum
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.served import WithTarget
from unlearnkit.training.trainer import UnlearnTrainer

logger = logging.getLogger(__name__)

#: What the paper serves TOFU's pair with.
ALPHA, TOP_LOGIT_FILTER = 0.75, 0.01
#: From that KL to uniform on, in nats, it is said that the assistant knows too much.
_UNIFORM = 0.5
_NO_AUGMENTATION = (
    "the assistant is trained without paraphrases of the forget set and without wrong answers to it; in the "
    "paper's ablation (TOFU, forget10) forget quality falls from 0.52 to 1e-7 and utility from 0.62 to 0.53 "
    "without them; give a stream of each (docs/augmentation.md) and name them in training.remember_streams "
    "and training.perturbed_streams"
)


def uniform_kl(logits_NV: Tensor) -> Tensor:
    """KL(U || p) per position, in nats: [N, V] -> float32 [N]; 0 where all tokens are equally likely.

    = log sum_v exp z_v - mean_v z_v - log V, which is finite for any finite logits.
    """
    z_NV = wide(logits_NV)
    return torch.logsumexp(z_NV, dim=-1) - z_NV.mean(-1) - math.log(z_NV.shape[-1])


@dataclass
class ULDConfig(UnlearnConfig):
    """Settings of ULD's assistant; how strongly it is subtracted is said where the pair is served."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (AdamW)."})
    num_layers: int | None = field(
        default=None, metadata={"help": "Layers of the assistant; default: a quarter of the target's."}
    )
    train_norm: bool = field(
        default=False,
        metadata={"help": "Train the final norm too: a narrow model cannot be uniform under a frozen one."},
    )
    remember_streams: list[str] = field(
        default_factory=lambda: ["forget"],
        metadata={"help": "What the assistant learns: the forget set, and paraphrases of it."},
    )
    perturbed_streams: list[str] = field(
        default_factory=list,
        metadata={"help": "Wrong answers to forget questions, which it must not know either."},
    )
    retain: str = field(
        default="uniform", metadata={"help": "What it learns of the rest: uniform (nothing), or none."}
    )
    retain_weight: float = field(default=6.5, metadata={"help": "beta, the weight of the uniform term."})

    def __post_init__(self) -> None:
        """Raises RecipeError: a value that cannot work with any model."""
        if self.retain not in ("uniform", "none"):
            raise RecipeError(
                f"training.retain is {self.retain!r}; ULD's assistant learns uniform (to know nothing of the "
                "retain set) or none"
            )
        if self.num_layers is not None and self.num_layers < 1:
            raise RecipeError(
                f"training.num_layers is {self.num_layers}; the assistant needs 1 layer of the target or more"
            )
        if not 0 <= self.retain_weight < math.inf:
            raise RecipeError(
                f"training.retain_weight must not be negative, found {self.retain_weight}; the paper's is 6.5"
            )
        if not self.remember_streams:
            raise RecipeError(
                "training.remember_streams is empty, so the assistant would learn nothing; name forget"
            )
        if twice := set(self.remember_streams) & {*self.retain_streams, *self.perturbed_streams}:
            raise RecipeError(
                f"the stream {min(twice)!r} is to be remembered by the assistant and unknown to it; name it "
                "in one of training.remember_streams, retain_streams and perturbed_streams"
            )
        super().__post_init__()

    @property
    def forgotten_streams(self) -> tuple[str, ...]:
        """What the pair will not know."""
        return tuple(self.remember_streams)

    @property
    def wrong_answer_streams(self) -> tuple[str, ...]:
        """Other answers to the same questions."""
        return tuple(self.perturbed_streams)


@dataclass(frozen=True)
class Uninformative:
    """Mean KL to the uniform distribution per answer token of all streams together."""

    streams: tuple[str, ...]
    needs = Needs.NOTHING

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        values = {stream: chunked(uniform_kl, step.logits(stream)) for stream in self.streams}
        tokens = torch.stack([step.counts[stream].tokens for stream in self.streams]).sum()
        loss = torch.stack([values_N.sum() for values_N in values.values()]).sum() / tokens
        metrics = {f"{s}/uniform": step.token_mean(values_N, s).detach() for s, values_N in values.items()}
        return LossOutput(loss, metrics)


class ULDTrainer(UnlearnTrainer):
    """forget_weight * CE on what is remembered + retain_weight * KL to uniform on the rest.

    `trainer.model` is the assistant; `trainer.unlearned_model()` and what `save_model` writes is the pair.
    """

    args: ULDConfig
    served_kind = "uld"

    def build_objective(self) -> Objective:
        """The paper's eqs. 3 to 5."""
        args = self.args
        terms: list[tuple[float, Objective]] = [
            (args.forget_weight, CrossEntropy(tuple(args.remember_streams)))
        ]
        uninformed = (*args.retain_streams, *args.perturbed_streams)
        if args.retain == "uniform" and args.retain_weight and uninformed:
            terms.append((args.retain_weight, Uninformative(uninformed)))
        return WeightedSum(tuple(terms))

    def choose_layers(self, count: int) -> int:
        """The assistant's number of layers, for a target of `count` layers."""
        return refuse_depth(self.args.num_layers, count)

    def serving_defaults(self) -> dict[str, float | None]:
        """The paper's alpha and filter."""
        return {"alpha": ALPHA, "top_logit_filter": TOP_LOGIT_FILTER}

    def default_adapter(self) -> Any:
        """The paper's LoRA; an assistant is never trained without an adapter."""
        return default_lora()

    def put_adapter(self, model: Any, peft_config: Any) -> Any:
        """LoRA on the layers, and a copy of the final norm that is trained where the config says so."""
        if self.args.train_norm:
            peft_config = copy.copy(peft_config)
            peft_config.modules_to_save = [*(peft_config.modules_to_save or ()), final_norm(model)]
        policy = super().put_adapter(model, peft_config)
        refuse_tied_adapter(policy)
        return policy

    def build_policy(self, model: Any) -> Any:
        """The assistant; the target is let go of where it can be loaded again."""
        assistant = build_assistant(model, self.args.num_layers, lora=None)
        self.served = WithTarget(model, assistant, alpha=ALPHA, top_logit_filter=TOP_LOGIT_FILTER)
        return assistant

    def remarks(self, epochs: float) -> list[str]:
        """What to say before a training."""
        augmented = len(self.args.remember_streams) > 1 or self.args.perturbed_streams
        return [] if augmented else [_NO_AUGMENTATION]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and warn before where the forget set stands alone."""
        for remark in self.remarks(self.args.num_train_epochs):
            logger.warning(remark)
        result = super().train(*args, **kwargs)
        self._say_if_not_uniform()
        return result

    def _say_if_not_uniform(self) -> None:
        """What the assistant says about everything is subtracted from everything."""
        found = [entry for entry in self.state.log_history if any(k.endswith("/uniform") for k in entry)][
            -10:
        ]
        for stream in (*self.args.retain_streams, *self.args.perturbed_streams):
            values = [entry[f"{stream}/uniform"] for entry in found if f"{stream}/uniform" in entry]
            if values and (mean := sum(values) / len(values)) > _UNIFORM:
                logger.warning(
                    "the assistant is not uniform on %s (KL %.2g nats, 0 is uniform), so that subtracting it "
                    "also changes what must stay; train longer or with a higher learning rate, or set "
                    "training.train_norm: true",
                    stream,
                    mean,
                )
