"""Representation misdirection for unlearning, RMU (arXiv 2403.03218).

    L = E_forget 1/s |h(x)_t - c u|^2  +  alpha E_retain 1/s |h(x)_t - h_ref(x)_t|^2

h is the output of decoder layer `layer` at an answer's token t (not at its predecessor), and the means are
over all answer tokens of the global batch (`token_mean`). With `steering_scale: activation` lengths are
measured in m, the mean of |h| over the forget set before training: c = `steering` * m, s = m^2. With
`absolute` they are the paper's: c = `steering`, and s = d, the width of h. u is a random direction of the
positive orthant: u = r / |r| with r ~ U[0, 1]^d. The activations of what must be forgotten are steered
towards c u, far from anything that the layers above know how to read; those of what must stay are held where
the reference model has them. Only a few matrices are trained: by default the MLPs' output projections of that
layer and the two below it, or with LoRA the adapters of these layers.

Neither pass computes a layer above `layer` or a logit, if the retain term is `hidden`. With another retain
term one whole pass serves both.

Logged: `forget/rmu` and `retain/hidden` are the two means, before weights; `forget/activation_norm` the mean
of |h|, which goes to c; `forget/cosine` the mean of cos(h, u), which goes to 1.

Where we differ from the authors' code. Matrices are found by name, theirs by their number among a layer's
parameters, which is another matrix in another architecture. By default c is in units of the model: an
absolute 6.5 is far away for activations of norm 1, and next to nothing for those of norm 50. s does not move
the balance of the two terms; their alpha is 1200, with few steps at a small learning rate. Means are over
answer tokens, theirs over all positions, padding included. One u is used for the whole run, as in their code
for one topic: a new one for every batch would steer towards the mean of all of them, which is the same
direction for every seed. u comes from a generator of its own, is the same in every process and lies in every
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unlearnkit.errors import RecipeError
from unlearnkit.training import hidden
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.logprobs import wide
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, WeightedSum, fuse
from unlearnkit.training.parameters import choose_by_name, steered_layer, trained_layers
from unlearnkit.training.prepare import connect_checkpoints
from unlearnkit.training.retain import RETAIN_TERMS
from unlearnkit.training.trainer import UnlearnTrainer

#: What c may be measured in.
SCALES = ("activation", "absolute")
#: Forget rows whose activations are measured, at most.
_MEASURED_ROWS = 512


def squared_distance(h_MD: Tensor, goal_MD: Tensor, divisor: Tensor | float) -> Tensor:
    """1/s |h - goal|^2 per token, float32: [M, d] -> [M]; both terms of the formula above.

    Args:
        h_MD: hidden states.
        goal_MD: where they should be; may be one vector [d] for all.
        divisor: s.
    """
    squares_M: Tensor = (wide(h_MD) - wide(goal_MD)).square().sum(-1) / divisor
    return squares_M


def control_vector(width: int, seed: int) -> Tensor:
    """u: float32 [d], of norm 1 and without negative entries; a function of its arguments alone."""
    r_D = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    u_D: Tensor = r_D / r_D.norm()
    return u_D


@dataclass
class RMUConfig(UnlearnConfig):
    """Settings of RMU; the defaults are in units of the model, so that they fit one of any size."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate (AdamW)."})
    retain: str = field(
        default="hidden",
        metadata={"help": "Retain term: hidden (that of the paper), nll, kl, reverse_kl or none."},
    )
    alpha: float = field(
        default=100.0, metadata={"help": "Weight of the hidden retain term, times retain_weight."}
    )
    layer: int | None = field(
        default=None,
        metadata={"help": "Decoder layer that is steered, from 0; default: at a quarter of the depth."},
    )
    train_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers that are trained; default: that one and the two below it."}
    )
    parameters: list[str] | None = field(
        default=None,
        metadata={"help": "Names of what is trained in them, such as down_proj or self_attn.*; default: the "
                          "MLP's output matrix, or the whole adapter."},
    )  # fmt: skip
    steering: float = field(default=5.0, metadata={"help": "c, in units of steering_scale."})
    steering_scale: str = field(
        default="activation",
        metadata={"help": "activation: c in mean norms of the forget set's activations; or absolute."},
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: a value that cannot work with any model."""
        if not 0 < self.steering < math.inf:
            raise RecipeError(
                f"training.steering must be above 0, found {self.steering}; the default is 5 times the "
                "activations' norm"
            )
        if self.steering_scale not in SCALES:
            raise RecipeError(
                f"training.steering_scale is {self.steering_scale!r}; use {' or '.join(SCALES)}"
            )
        if not 0 <= self.alpha < math.inf:
            raise RecipeError(
                f"training.alpha must not be negative, found {self.alpha}; 0 leaves the term out"
            )
        if self.retain not in ("hidden", *RETAIN_TERMS):
            raise RecipeError(
                f"training.retain is {self.retain!r}; use one of {', '.join(('hidden', *RETAIN_TERMS))}"
            )
        if self.layer is not None and self.layer < 0:
            raise RecipeError(f"training.layer is {self.layer}; layers are counted from 0, at the bottom")
        for name in ("train_layers", "parameters"):
            if getattr(self, name) == []:
                raise RecipeError(f"training.{name} is empty, so nothing would be trained; leave it out")
        if self.layer is not None:
            trained_layers(self.train_layers, self.layer)
        super().__post_init__()


class Steering:
    """Layer, direction and length of the goal c u; equal in all processes and kept in checkpoints.

    Args:
        c: in units of `scale`.
        scale: one of SCALES.
        layer: whose output is steered; set once the model is known.
        stream: the stream whose activations are measured.
    """

    def __init__(
        self, c: float, *, scale: str = "absolute", layer: int | None = None, stream: str = "forget"
    ) -> None:
        self.c, self.scale, self.layer, self.stream = c, scale, layer, stream
        self.vector_D: Tensor | None = None
        self.coefficient = self.divisor = torch.tensor(math.nan)

    def begin(self, trainer: Any) -> None:
        """Draw u and measure the activations of the model as it is; a second training keeps them."""
        if self.vector_D is None:
            self.vector_D = control_vector(hidden.text_config(trainer.model).hidden_size, trainer.args.seed)
            unit = 1.0
            if self.scale == "activation":
                unit = mean_activation_norm(trainer, self.known_layer, self.stream)
            self.coefficient = torch.tensor(self.c * unit)
            self.divisor = torch.tensor(unit**2 if self.scale == "activation" else len(self.vector_D))

    def end_step(self, total: Callable[[Tensor], Tensor], epoch: float) -> None:
        """The goal stays where it is."""

    def state_dict(self) -> dict[str, Tensor]:
        """u, c and s."""
        assert self.vector_D is not None
        return {
            "control_vector": self.vector_D,
            "coefficient": self.coefficient,
            "divisor": self.divisor,
        }

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Those of the run that is resumed."""
        self.vector_D, self.coefficient = values["control_vector"], values["coefficient"]
        self.divisor = values["divisor"]

    @property
    def known_layer(self) -> int:
        """The layer, once it is known."""
        assert self.layer is not None
        return self.layer

    def direction(self, like: Tensor) -> Tensor:
        """u in the dtype and on the device of `like`; c and s move along, and all stay there."""
        assert self.vector_D is not None
        self.vector_D, self.coefficient = self.vector_D.to(like.device), self.coefficient.to(like.device)
        self.divisor = self.divisor.to(like.device)
        return self.vector_D.to(like.dtype)


@torch.no_grad()
def mean_activation_norm(trainer: Any, layer: int, stream: str) -> float:
    """Mean of |h| over the answer tokens of a stream (of rows at equal distances, if it is large)."""
    rows = trainer.tokenized[stream].rows
    rows = rows[:: -(-len(rows) // _MEASURED_ROWS)]
    processes, size = trainer.accelerator.num_processes, trainer.args.train_batch_size
    mine = rows[trainer.accelerator.process_index :: processes]
    sums_2 = torch.zeros(2, device=trainer.args.device)
    was_training = trainer.model.training
    trainer.model.eval()
    # As many passes in every process, also where one has no row left: sharded models are gathered in step.
    for start in range(0, -(-len(rows) // processes), size):
        items = [{stream: [row]} for row in mine[start : start + size]] or [{}]
        batch = fuse({stream: trainer.data_collator(items)[stream]})
        inputs = {name: value.to(trainer.args.device) for name, value in batch.items()}
        with trainer.compute_loss_context_manager():
            h_MD = hidden.states(trainer.model_wrapped, inputs, layer, unwrapped=trainer.model)
        norms_M = wide(h_MD).norm(dim=-1)
        sums_2 += torch.stack([norms_M.sum(), norms_M.new_tensor(len(norms_M))])
    trainer.model.train(was_training)
    total, tokens = trainer.sum_over_processes(sums_2).tolist()
    return float(total / tokens)


@dataclass(frozen=True)
class _AtLayer:
    """What both terms are: a goal for the hidden states of one layer, on one stream."""

    state: Steering = field(compare=False)
    stream: str

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream that is read."""
        return (self.stream,)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that is read."""
        return (self.state.known_layer,)


@dataclass(frozen=True)
class Misdirection(_AtLayer):
    """The forget term."""

    stream: str = "forget"
    needs = Needs.HIDDEN_STATES

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        h_MD = wide(step.hidden_states(self.stream, self.layers[0]))
        u_D = self.state.direction(h_MD)
        distances_M = squared_distance(h_MD, self.state.coefficient * u_D, self.state.divisor)
        loss = step.token_mean(distances_M, self.stream)
        seen_MD = h_MD.detach()
        metrics = {
            "rmu": loss.detach(),
            "activation_norm": step.token_mean(seen_MD.norm(dim=-1), self.stream),
            "cosine": step.token_mean(cosine_similarity(seen_MD, u_D[None], dim=-1), self.stream),
        }
        return LossOutput(loss, {f"{self.stream}/{name}": value for name, value in metrics.items()})


@dataclass(frozen=True)
class HeldInPlace(_AtLayer):
    """The retain term: activations stay where the reference model has them."""

    stream: str = "retain"
    needs = Needs.HIDDEN_STATES | Needs.REFERENCE_HIDDEN_STATES

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        h_MD = step.hidden_states(self.stream, self.layers[0])
        ref_h_MD = step.reference.hidden_states(self.stream, self.layers[0])
        loss = step.token_mean(
            squared_distance(h_MD, ref_h_MD, self.state.divisor.to(h_MD.device)), self.stream
        )
        return LossOutput(loss, {f"{self.stream}/hidden": loss.detach()})


class RMUTrainer(UnlearnTrainer):
    """forget_weight * steering + retain_weight * (alpha * hidden, or another retain term)."""

    args: RMUConfig

    def build_objective(self) -> Objective:
        """The formula above, or its first term and a retain term of the spine."""
        args = self.args
        self.steering = Steering(args.steering, scale=args.steering_scale)
        forget = Misdirection(self.steering)
        if args.retain != "hidden":
            return self.with_retain(forget)
        weight = args.retain_weight * args.alpha
        held = [(weight, HeldInPlace(self.steering, stream)) for stream in args.retain_streams if weight]
        return WeightedSum(((args.forget_weight, forget), *held))

    def choose_layers(self, count: int) -> tuple[int, list[int]]:
        """The layer that is steered and those that are trained, in a model of `count` layers."""
        layer = steered_layer(self.args.layer, count)
        return layer, trained_layers(self.args.train_layers, layer)

    def choose_parameters(self, model: Any) -> None:
        """Settle the layer, and freeze everything that is not selected by name."""
        self.steering.layer, layers = self.choose_layers(len(hidden.layer_list(model).layers))
        chosen = set(choose_by_name(model, layers, self.args.parameters))
        for name, parameter in model.named_parameters():
            if name not in chosen:
                parameter.requires_grad_(False)
        if not hasattr(model, "peft_config"):
            connect_checkpoints(model, self.args)
