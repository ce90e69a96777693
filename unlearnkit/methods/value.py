"""Inverse value learning: what post-training adds to the logits, as a network of its own (arXiv 2410.21027).

    log pi_theta(y | x)  =  log p_base(y | x) + alpha log p_value(y | x) + const
    L  =  mean over answer tokens of  -log pi_theta(y_t | x, y_<t)  +  norm_weight R
    R  =  mean over answer tokens of  1/V sum_v (z_v - mean_u z_u)^2,   z the value network's logits

The base is frozen. The value network is a small model whose LM head begins as zero: it then says the same of
every token, and the combination is the base. It learns what must be *added* to the base, not what an answer
is, and that can be added to another, larger base with the same vocabulary, without training that one
(`transplant`). R is the variance of the value network's logits over the vocabulary: a constant added to all
of them changes nothing, so it must cost nothing. Both means are over all streams together (`token_mean`).

The head is untied from the embeddings. With an adapter (`model.lora`) the head is trained beside it, because
a frozen head of zeros would stay silent. Where the paper is silent (the measure and weight of the norm) the
choice is ours.

Logged: `train/nll` of the combination; `train/value_variance` = R, 0 at the start.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.models.combined.configuration_combined import weights_for
from unlearnkit.models.combined.folders import write_config
from unlearnkit.models.combined.layers import text_config
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM
from unlearnkit.models.load import is_combined, load_model, load_tokenizer
from unlearnkit.training.combined import CombinedTrainer, named, refuse_other_tokens
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.logprobs import chunked, wide
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, WeightedSum
from unlearnkit.training.prepare import same_memory
from unlearnkit.training.retain import CrossEntropy


def logit_variance(logits_NV: Tensor) -> Tensor:
    """1/V sum_v (z_v - mean z)^2 per position: [N, V] -> float32 [N], at least 0."""
    z_NV = wide(logits_NV)
    return (z_NV - z_NV.mean(-1, keepdim=True)).square().mean(-1)


@dataclass
class ValueConfig(UnlearnConfig):
    """Settings of inverse value learning."""

    small: str | None = field(
        default=None,
        metadata={"help": "What the value network is made of (folder, hub id, run:NAME); null: the base."},
    )
    alpha: float = field(default=1.0, metadata={"help": "Weight of the value network's log-probs."})
    norm_weight: float = field(
        default=0.0, metadata={"help": "Weight of the variance of the value network's logits."}
    )
    retain: str = field(default="none", metadata={"help": "Not used: all examples are learned."})
    train_streams: list[str] = field(
        default_factory=lambda: ["train"], metadata={"help": "Streams that are learned; several are mixed."}
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: a weight that cannot work."""
        if not 0 < self.alpha < math.inf:
            raise RecipeError(f"training.alpha must be a number above 0, found {self.alpha}")
        if not 0 <= self.norm_weight < math.inf:
            raise RecipeError(
                f"training.norm_weight must not be negative, found {self.norm_weight}; 0 leaves it out"
            )
        super().__post_init__()


@dataclass(frozen=True)
class ValueNorm:
    """R, over all streams together."""

    streams: tuple[str, ...]
    place: int = 1
    needs = Needs.NOTHING

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        values = {s: chunked(logit_variance, step.network_logits(s, self.place)) for s in self.streams}
        tokens = torch.stack([step.counts[s].tokens for s in self.streams]).sum()
        loss = torch.stack([values_N.sum() for values_N in values.values()]).sum() / tokens
        metrics = {f"{s}/value_variance": step.token_mean(v_N, s).detach() for s, v_N in values.items()}
        return LossOutput(loss, metrics)


class ValueTrainer(CombinedTrainer):
    """Cross-entropy of the combination on the streams that the config names; trains `value`."""

    args: ValueConfig
    served_kind = "value"
    trained = "value"

    def build_objective(self) -> Objective:
        """The formula above."""
        streams = tuple(self.args.train_streams)
        return WeightedSum(((1.0, CrossEntropy(streams)), (self.args.norm_weight, ValueNorm(streams))))

    def make_networks(self, base: Any, small: Any) -> dict[str, Any]:
        """The base, and a copy of the small model that has no opinion yet."""
        value = same_memory(small) if self.adapted else copy.deepcopy(small)
        return {"base": base, "value": silenced(value)}

    def put_adapter(self, model: Any, peft_config: Any) -> Any:
        """The head is trained beside the adapter."""
        policy = super().put_adapter(model, peft_config)
        for parameter in policy.network.get_output_embeddings().parameters():
            parameter.requires_grad_(True)
        return policy


def silenced(network: Any) -> Any:
    """Give a causal language model an LM head of zeros, which is its own.

    Raises:
        ModelError: it has no head that could be replaced.
    """
    old = network.get_output_embeddings()
    if not isinstance(old, nn.Linear):
        raise ModelError(
            f"{type(network).__name__} has no linear LM head, so it cannot become a value network; use "
            "another small model"
        )
    head = nn.Linear(
        old.in_features, old.out_features, bias=old.bias is not None, dtype=old.weight.dtype,
        device=old.weight.device,
    )  # fmt: skip
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    network.set_output_embeddings(head)
    return _untied(network)


def _untied(network: Any) -> Any:
    """Say that the LM head is its own, so that it is saved and loaded as such."""
    network.config.tie_word_embeddings = text_config(network).tie_word_embeddings = False
    network.all_tied_weights_keys = {}
    return network


def transplant(
    folder: str | os.PathLike[str], base: str, out: str | os.PathLike[str], *, alpha: float = 1.0
) -> CombinedForCausalLM:
    """Add a trained value network to another base with the same vocabulary, and write the combination.

    Args:
        folder: what a training of `value` saved.
        base: folder or hub id of the other base.
        out: where to write; `unlearnkit eval` and `load_model` open it.
        alpha: the weight of the value network.

    Raises:
        ModelError: no value network in the folder, or another vocabulary.

    Example:
        >>> transplant("runs/my-value/model", "my/large-base", "large-with-value")  # doctest: +SKIP
    """
    if not is_combined(str(folder)) or (found := load_model(str(folder))).config.kind != "value":
        raise ModelError(
            f"{folder} holds no value network; name the model folder of a run with method: value"
        )
    value, large = found.networks["value"], load_model(base)
    tokenizer = load_tokenizer(base)
    refuse_other_tokens({"base": large, "value": value}, tokenizer, str(folder))
    made = CombinedForCausalLM.of({"base": large, "value": value}, weights_for("value", alpha), kind="value")
    _untied(value).save_pretrained(Path(out) / "value")
    sources = {"base": named(large, base), "value": {"folder": "value"}}
    write_config(out, made.config, made.generation_config, sources)
    tokenizer.save_pretrained(out)
    return made
