"""Muon on the hidden matrices and AdamW on the rest, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of a
matrix before the step. It is meant for the hidden matrices only; embeddings, the output head and vectors stay
with AdamW. Both are PyTorch's own; this file only joins them, so that a scheduler, a checkpoint and the
Trainer see one optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from unlearnkit.errors import ModelError

MUON, ADAMW = "muon", "adamw"


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer made of `torch.optim.Muon` and `torch.optim.AdamW`.

    Every parameter group names its `algorithm`, "muon" or "adamw". The two inner optimizers share the groups
    and the state of this object, so that a learning rate set here reaches them
    and `state_dict` holds everything.

    Args:
        groups: parameter groups with `params`, `algorithm` and any setting of that algorithm; the rest takes
            PyTorch's defaults. Muon takes matrices only.

    Raises:
        ModelError: a group names no known algorithm.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        complete = [self._complete(group) for group in groups]
        super().__init__(complete, {})
        self._link()

    @staticmethod
    def _complete(group: dict[str, Any]) -> dict[str, Any]:
        algorithm = group.get("algorithm")
        if algorithm not in (MUON, ADAMW):
            raise ModelError(f"a parameter group has the algorithm {algorithm!r}; use {MUON!r} or {ADAMW!r}")
        settings = {name: value for name, value in group.items() if name != "algorithm"}
        return {**_inner(algorithm, [settings]).param_groups[0], "algorithm": algorithm}

    def _link(self) -> None:
        """Make the inner optimizers work on this object's groups and state."""
        self._parts: list[torch.optim.Optimizer] = []
        for algorithm in (MUON, ADAMW):
            groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            if groups:
                part = _inner(algorithm, [{"params": group["params"]} for group in groups])
                part.param_groups = groups
                part.state = self.state
                self._parts.append(part)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Replace groups and state, as loading a checkpoint and copying do."""
        super().__setstate__(state)
        self._link()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of both algorithms; return the closure's loss, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def _inner(algorithm: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Muon(groups) if algorithm == MUON else torch.optim.AdamW(groups)


def build_muon(
    model: nn.Module,
    *,
    lr: float,
    adamw_lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    adamw_betas: tuple[float, float] = (0.9, 0.95),
    adamw_eps: float = 1e-8,
) -> MuonWithAdamW:
    """Give the hidden matrices of `model` to Muon, its embeddings, head and vectors to AdamW.

    Args:
        model: any model; the output head is found through the accessor of `transformers`, where there is one.
        lr: Muon's learning rate; for each matrix times sqrt(max(1, rows / columns)), as its author does.
        adamw_lr: AdamW's learning rate.
        weight_decay: decoupled, for matrices and embeddings; vectors (norms, biases) are not decayed.
        momentum: Muon's, Nesterov.

    Raises:
        ModelError: no parameter is trainable.
    """
    outer = _embedding_ids(model)
    matrices: list[Tensor] = []
    embeddings: list[Tensor] = []
    vectors: list[Tensor] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim == 2 and id(parameter) not in outer:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    adamw = {"algorithm": ADAMW, "lr": adamw_lr, "betas": adamw_betas, "eps": adamw_eps}
    groups = [
        {"params": matrices, "algorithm": MUON, "lr": lr, "weight_decay": weight_decay, "momentum": momentum},
        {"params": embeddings, **adamw, "weight_decay": weight_decay},
        {"params": vectors, **adamw, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ModelError("no parameter of the model is trainable, so there is nothing to optimise")
    return MuonWithAdamW(groups)


def _embedding_ids(model: nn.Module) -> set[int]:
    found = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for accessor in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, accessor, lambda: None)()
        if module is not None:
            found.add(id(module.weight))
    return found
