"""The first layers of a causal language model as a model of its own, on the same memory."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from .memory import shared_copy

#: What models call their list of decoder layers.
NAMES = ("layers", "h", "blocks", "block", "layer")


class LayerList(NamedTuple):
    """The list of decoder layers, and where it lies in the model."""

    parent: nn.Module
    name: str
    path: str
    layers: nn.ModuleList


def bare(model: Any) -> Any:
    """The model inside DDP, FSDP or DeepSpeed."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def text_config(model: Any) -> Any:
    """The configuration of the language model, also in one that sees pictures."""
    config = bare(model).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_quantised(network: Any) -> bool:
    """Whether a network's weights are kept in 4 or 8 bits."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    return getattr(base, "quantization_method", None) is not None


def find_layers(model: Any) -> LayerList | None:
    """A causal language model's decoder layers, under any wrapper; None where no list has their number."""
    count = getattr(text_config(model), "num_hidden_layers", None)
    named = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and path.rpartition(".")[2] in NAMES
    ]
    if not named:
        return None
    # A model that also sees may have as many layers in its encoder; the decoder's path says so.
    path, layers = next((one for one in named if "vision" not in one[0]), named[0])
    parent, _, name = path.rpartition(".")
    return LayerList(model.get_submodule(parent), name, path, layers)


def first_layers(model: Any, count: int) -> Any:
    """Embeddings, first `count` decoder layers, final norm and LM head of `model`, frozen, in eval mode.

    Nothing is copied (see `memory.py`). As many layers as there are give the model itself once more.

    Raises:
        ValueError: `count` is not between 1 and the model's number of layers, or they cannot be found.
    """
    where = find_layers(model)
    if where is None:
        raise ValueError(
            f"{type(model).__name__} has no list of decoder layers, so its first ones cannot be taken"
        )
    if not 1 <= count <= len(where.layers):
        raise ValueError(
            f"{count} layers are wanted of a model that has {len(where.layers)}; use a number from 1 to "
            f"{len(where.layers)}"
        )
    where.parent._modules[where.name] = where.layers[:count]
    try:
        made = shared_copy(model)
    finally:
        where.parent._modules[where.name] = where.layers
    _shorten(text_config(made), len(where.layers), count)
    return made.eval()


def _shorten(config: Any, of: int, count: int) -> None:
    """Say `count` layers in a configuration, also where it lists something for each layer."""
    for name, value in list(vars(config).items()):
        if ("layer" in name or "pattern" in name) and isinstance(value, list | tuple) and len(value) == of:
            setattr(config, name, value[:count])
    config.num_hidden_layers = count
