"""Subjects for attacks that change a model, and what must be the same afterwards."""

from __future__ import annotations

import copy
from typing import Any

import datasets
import torch

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.evaluation.attacks.subject import Subject


def make_subject(model: Any, tokenizer: Any, rows: Any) -> Subject:
    """Six forget and six retain examples."""
    full = canonical(datasets.Dataset.from_list(rows("full")[:12])).to_list()
    sets = {"forget": full[:6], "retain": full[6:]}
    return Subject(model, tokenizer, Template.for_tokenizer(tokenizer), sets)


def lora(model: Any, **options: Any) -> Any:
    """An adapter that does something, as loaded for inference: nothing is trainable."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, config).eval().requires_grad_(False)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of one fixed batch: [2, 5, V]."""
    return model(torch.arange(3, 13).reshape(2, 5), use_cache=False).logits


class Unchanged:
    """Remembers a model; `check` compares bits, gradients, flags, modes and the global random state."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights = {name: value.clone() for name, value in self._tensors()}
        self.flags = {name: p.requires_grad for name, p in model.named_parameters()}
        self.gradients = {name: p.grad for name, p in model.named_parameters()}
        self.gradient_values = copy.deepcopy(self.gradients)
        self.modes = {name: module.training for name, module in model.named_modules()}
        self.config = model.config.to_dict()
        self.random = torch.get_rng_state()

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [*self.model.named_parameters(), *self.model.named_buffers()]

    def check(self) -> None:
        now = dict(self._tensors())
        assert now.keys() == self.weights.keys()
        for name, value in self.weights.items():
            assert value.dtype == now[name].dtype
            assert torch.equal(value, now[name]), name
        for name, p in self.model.named_parameters():
            assert p.requires_grad == self.flags[name]
            assert p.grad is self.gradients[name]
            assert p.grad is None or torch.equal(p.grad, self.gradient_values[name])
        assert {name: module.training for name, module in self.model.named_modules()} == self.modes
        assert self.model.config.to_dict() == self.config
        assert torch.equal(torch.get_rng_state(), self.random)
