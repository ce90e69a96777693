"""Networks that stand on one memory stay so when they are moved, cast or copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def shared_copy(model: Any) -> Any:
    """A second model on the memory of the first: what replaces a weight of one does not touch the other."""
    # Quantised weights are parameters of a class of their own and are never replaced: the objects are shared.
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) if type(p) is nn.Parameter else p
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def once_each(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` for `nn.Module._apply`: tensors on one memory get one result."""
    moved: dict[Any, tuple[Tensor, Tensor]] = {}

    def once(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta" or tensor.numel() == 0:
            return fn(tensor)
        key = _place(tensor)
        if key not in moved:
            # An alias holds the old memory, because the parameter itself goes over to the new: no address is
            # given anew. A parameter that several networks hold comes again with its new one.
            found = fn(tensor)
            moved[key] = moved[_place(found)] = (tensor.detach(), found)
        return moved[key][1]

    return once


def copy_together(module: nn.Module, memo: dict[int, Any]) -> None:
    """Tell `copy.deepcopy` through its memo to copy each memory once, for all parameters that lie on it."""
    copies: dict[Any, Tensor] = {}
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter and id(parameter) not in memo:
            place = _place(parameter)
            if place not in copies:
                copies[place] = parameter.detach().clone()
            memo[id(parameter)] = nn.Parameter(copies[place].detach(), requires_grad=parameter.requires_grad)


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
