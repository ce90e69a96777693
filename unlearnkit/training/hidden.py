"""Hidden states in the middle of a model: recorded during an ordinary forward pass, which may end there.

For one call of the model, its list of decoder layers is exchanged for one whose tapped layers are wrapped and
remember what they return. If nothing above them is wanted, the list ends with the highest of them: the layers
above and the LM head then compute nothing. The wrapper lies around the layer, so outside activation
checkpointing, whether that wraps the layer's `__call__` or its `forward`, and the model is called whole, so
DDP, FSDP and PEFT do their work as always. A forward hook would lie inside in some versions of transformers
and be run a second time in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearnkit.errors import ModelError
from unlearnkit.models.combined.layers import NAMES as LAYER_NAMES
from unlearnkit.models.combined.layers import LayerList, bare, find_layers
from unlearnkit.models.combined.layers import text_config as text_config
from unlearnkit.training import logprobs


@dataclass(frozen=True)
class Tap:
    """What is recorded in a forward pass.

    Args:
        layers: the decoder layers whose output is recorded, counted from 0.
        truncate: end the pass after the highest of them, without logits.
    """

    layers: tuple[int, ...]
    truncate: bool


def layer_list(model: Any) -> LayerList:
    """Find a causal language model's decoder layers, under any wrapper.

    Raises:
        ModelError: there is no list of as many layers as the model's configuration says.
    """
    found = find_layers(model)
    if found is None:
        count = getattr(text_config(model), "num_hidden_layers", None)
        raise ModelError(
            f"{type(bare(model)).__name__} has no list of {count} decoder layers called one of "
            f"{', '.join(LAYER_NAMES)}, so its hidden states cannot be reached; use a model whose layers lie "
            "in such a list, or a method that needs no hidden states"
        )
    return found


class _Tapped(nn.Module):
    """A layer that keeps its last output; in everything else it is the layer."""

    def __init__(self, layer: nn.Module, number: int, recorded: dict[int, Tensor]) -> None:
        super().__init__()
        self.tapped_layer = layer
        self._number, self._recorded = number, recorded
        self.training = layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("tapped_layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.tapped_layer(*args, **kwargs)
        self._recorded[self._number] = output[0] if isinstance(output, tuple) else output
        return output


def _is_sharded(layers: Iterable[nn.Module]) -> bool:
    """FSDP learns in the first forward pass which layers there are, so it must see all of them."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = FSDPModule | FullyShardedDataParallel
    return any(isinstance(module, kinds) for layer in layers for module in layer.modules())


@contextmanager
def tapped(model: Any, tap: Tap) -> Iterator[dict[int, Tensor]]:
    """For the calls of `model` inside: yields a dict that is filled with the output of each tapped layer.

    Raises:
        ModelError: the layers are not found, or the model has not that many.
    """
    where = layer_list(model)
    known = range(len(where.layers))
    if not set(tap.layers) <= set(known):
        raise ModelError(
            f"the hidden states of layer {max(tap.layers)} are wanted, but the model's layers are 0 to "
            f"{known[-1]}; name one of these"
        )
    end = max(tap.layers) + 1 if tap.truncate and not _is_sharded(where.layers) else len(known)
    recorded: dict[int, Tensor] = {}
    shown = [
        _Tapped(layer, i, recorded) if i in tap.layers else layer
        for i, layer in enumerate(where.layers[:end])
    ]
    # Past __setattr__: wrappers of the model need not know of a list that is gone after the call.
    where.parent._modules[where.name] = nn.ModuleList(shown)
    try:
        yield recorded
    finally:
        where.parent._modules[where.name] = where.layers


class Outputs(NamedTuple):
    """What a forward pass with a tap gives: logits (none if it was truncated) and hidden states [M, d]."""

    logits: logprobs.TargetLogits
    states: dict[int, Tensor]


def forward(model: Any, inputs: Mapping[str, Any], tap: Tap, *, unwrapped: Any = None) -> Outputs:
    """One forward pass; hidden states are those *at* the M target tokens, in the model's dtype, row by row.

    The logits that predict a token lie one position before its own hidden state.

    Args:
        model: the (wrapped) model to call.
        inputs: as for `logprobs.target_logits`.
        tap: what to record.
        unwrapped: the model without its wrapper, if `model` hides it.
    """
    positions_M = logprobs.positions_of(inputs) + 1
    asked = {**inputs, "target_positions": positions_M[:0]} if tap.truncate else inputs
    with tapped(model if unwrapped is None else unwrapped, tap) as recorded:
        logits = logprobs.target_logits(model, asked, unwrapped=unwrapped)
    length = inputs["labels"].shape[1]
    # As in `target_logits`: tokens of prompt tuning stand before ours.
    states = {i: h_BTD[:, -length:].flatten(0, 1)[positions_M] for i, h_BTD in recorded.items()}
    return Outputs(logits, states)


def states(model: Any, inputs: Mapping[str, Any], layer: int, *, unwrapped: Any = None) -> Tensor:
    """The hidden states of one layer alone, as in `forward`: [M, d]."""
    return forward(model, inputs, Tap((layer,), truncate=True), unwrapped=unwrapped).states[layer]


def truncated_copy(model: Any, count: int) -> Any:
    """A copy of `model` that ends after its first `count` layers and has no LM head of its own.

    What is left out is never copied. For hidden states only: the logits of such a model mean nothing.
    """
    where = layer_list(model)
    head = model.get_output_embeddings()
    holders = [m for m in model.modules() if head is not None and head in m._modules.values()]
    heads = [(m, name) for m in holders for name, child in m._modules.items() if child is head]
    where.parent._modules[where.name] = where.layers[:count]
    for holder, name in heads:
        holder._modules[name] = nn.Identity()
    try:
        made = copy.deepcopy(model)
    finally:
        where.parent._modules[where.name] = where.layers
        for holder, name in heads:
            holder._modules[name] = head
    config = text_config(made)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types[:count])
    return made
