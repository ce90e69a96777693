"""Which parameters a method trains: decoder layers by their number, parameters by their name.

By name, because the number of a parameter in its layer is another matrix in every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from unlearnkit.errors import RecipeError
from unlearnkit.training import hidden

#: What architectures call the matrix that an MLP ends with.
MLP_OUTPUTS = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "ffn.proj_2")


def steered_layer(setting: int | None, count: int) -> int:
    """The layer whose output is steered, of `count`; by default the 7th of 32, at a quarter of the depth.

    Raises:
        RecipeError: the model has no such layer.
    """
    if setting is None:
        return min(count - 1, max(1, count // 4 - 1))
    if setting >= count:
        raise RecipeError(
            f"training.layer is {setting}, but the model has {count} layers; use one of 0 to {count - 1}"
        )
    return setting


def trained_layers(setting: Sequence[int] | None, layer: int) -> list[int]:
    """The layers that are trained; by default `layer` and the two below it.

    Raises:
        RecipeError: one of them does not exist, or lies above what the loss reaches.
    """
    if setting is None:
        return list(range(max(0, layer - 2), layer + 1))
    unreached = [one for one in setting if not 0 <= one <= layer]
    if unreached:
        raise RecipeError(
            f"training.train_layers names layer {unreached[0]}, which cannot change the output of layer "
            f"{layer}; use layers from 0 to {layer}, or another training.layer"
        )
    return sorted(set(setting))


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name in its layer has the pattern's components, one after the other.

    "down_proj" and "mlp.*" match "mlp.down_proj.weight"; "proj" does not.
    """
    parts, wanted = name.split("."), pattern.split(".")
    return any(
        all(map(fnmatchcase, parts[i : i + len(wanted)], wanted)) for i in range(len(parts) - len(wanted) + 1)
    )


def choose_by_name(model: Any, layers: Sequence[int], patterns: Sequence[str] | None) -> list[str]:
    """Names of the parameters to train, of those that are trainable.

    Args:
        model: with its adapter on it, if it has one.
        layers: the decoder layers to look in.
        patterns: see `matches`; None for the MLPs' output matrices, or for everything if there is an adapter.

    Raises:
        RecipeError: none of them matches.
    """
    prefix = hidden.layer_list(model).path
    inside: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and int(number) in layers and parameter.requires_grad:
            inside[name] = rest
    if patterns is None and hasattr(model, "peft_config"):
        chosen = list(inside)
    elif patterns is None:
        # Matrices alone, as the authors: a bias would move what must stay as far as what must go.
        chosen = [
            name for name, rest in inside.items()
            if any(matches(rest, one) for one in MLP_OUTPUTS) and not rest.endswith("bias")
        ]  # fmt: skip
    else:
        for one in patterns:
            if not any(matches(rest, one) for rest in inside.values()):
                raise _nothing_matches(
                    f"training.parameters names {one!r}, which matches nothing", layers, inside
                )
        chosen = [name for name, rest in inside.items() if any(matches(rest, one) for one in patterns)]
    if not chosen:
        raise _nothing_matches("the output matrix of the MLP is not known by its name", layers, inside)
    return chosen


def _nothing_matches(what: str, layers: Sequence[int], inside: Mapping[str, str]) -> RecipeError:
    names = dict.fromkeys(rest.removesuffix(".weight").removesuffix(".bias") for rest in inside.values())
    return RecipeError(
        f"{what} trainable in layers {', '.join(map(str, layers))} of this model; set training.parameters to "
        f"some of: {', '.join(names) or '(nothing is trainable there; name other training.train_layers)'}"
    )
