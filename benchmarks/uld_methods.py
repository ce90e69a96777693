"""The training steps that `uld_steps.py` compares, and their rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from uld_shapes import STREAMS, random_model, random_rows, tofu_rows

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.methods.npo import NPO
from unlearnkit.methods.uld import Uninformative
from unlearnkit.models.assistant import build_assistant, default_lora
from unlearnkit.models.combined.memory import shared_copy
from unlearnkit.models.load import quiet_peft
from unlearnkit.training import reference
from unlearnkit.training.objective import Objective, Step, WeightedSum, as_counts, count_streams
from unlearnkit.training.packing import packs
from unlearnkit.training.retain import CrossEntropy

PAD = 2
NPO_LOSS = WeightedSum(((1.0, NPO(beta=0.1)), (1.0, CrossEntropy(("retain",)))))
ULD_LOSS = WeightedSum(((1.0, CrossEntropy(("forget",))), (6.5, Uninformative(("retain",)))))


@dataclass(frozen=True)
class Settings:
    """What is run; `rows` are those of each stream in one step."""

    shape: str = "llama-3.2-1b"
    layers: int | None = None
    dtype: str | None = None
    device: str = "cpu"
    rows: int | None = None
    question: int = 24
    answer: int = 24
    tofu: Path | None = None
    authors: int = 199
    rounds: int = 7
    warm_up: int = 1
    adamw: bool = False
    threads: int = 1
    seed: int = 0
    json: Path | None = None

    @property
    def precision(self) -> str:
        """Of all weights."""
        return self.dtype or ("float32" if self.shape == "tofu_tiny" else "bfloat16")

    @property
    def batch(self) -> int:
        """Rows of each stream in one step."""
        return self.rows or (16 if self.shape == "tofu_tiny" else 4)

    def model(self) -> Any:
        """The model that must forget."""
        return random_model(self.shape, dtype=self.precision, device=self.device, seed=self.seed)


class Method:
    """A model in training on a loss."""

    def __init__(
        self, policy: Any, loss: Objective, provider: reference.Reference | None, settings: Settings
    ) -> None:
        self.policy, self.objective, self.provider = policy, loss, provider
        self.device = settings.device
        self.collate = StreamCollator(STREAMS, pad_id=PAD, packed=packs(policy))
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True) if settings.adamw else None

    def loss(self, items: list[Any]) -> torch.Tensor:
        """Of the rows of one step."""
        batch = {
            stream: {name: values.to(self.device) for name, values in part.items()}
            for stream, part in self.collate(items).items()
        }
        counts = as_counts(count_streams([batch], STREAMS, self.device), STREAMS)
        return self.objective(Step(self.policy, batch, counts, self.provider), batch).loss

    def step(self, items: list[Any]) -> None:
        """Forward and backward pass, and the optimizer's step where there is one."""
        self.loss(items).backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.trained:
            parameter.grad = None


def uld(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The assistant, on the memory of the target model."""
    return Method(build_assistant(target, settings.layers, seed=settings.seed), ULD_LOSS, None, settings)


def npo_live(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The target model is the reference of its copy."""
    policy = copy.deepcopy(target) if policy is None else policy
    return Method(policy.requires_grad_(), NPO_LOSS, reference.FrozenModel(target), settings)


def npo_cached(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The rows bring what the reference said of them."""
    policy = target if policy is None else policy
    return Method(policy.requires_grad_(), NPO_LOSS, reference.CachedLogps(), settings)


def npo_lora(target: Any, settings: Settings, policy: Any = None) -> Method:
    """An adapter, which may be switched off."""
    from peft import get_peft_model

    with quiet_peft():
        adapted = get_peft_model(shared_copy(target), default_lora())
    return Method(adapted, NPO_LOSS, reference.AdapterOff(adapted, adapted), settings)


#: (target, settings, a copy of the target that may be trained) -> the method.
METHODS: dict[str, Callable[..., Method]] = {
    "ULD": uld,
    "NPO, live": npo_live,
    "NPO, cached": npo_cached,
    "NPO, LoRA": npo_lora,
}


def load_rows(settings: Settings) -> dict[str, list[Any]]:
    """Token rows by stream: TOFU's at tofu_tiny, else random ones of one length."""
    if settings.shape == "tofu_tiny":
        return tofu_rows(settings.tofu, settings.authors)
    return random_rows(settings.shape, 4 * settings.batch, settings.question, settings.answer, settings.seed)


def add_reference(target: Any, rows: dict[str, list[Any]], device: str) -> None:
    """Put the reference's log-probs beside the forget rows, as training does before it begins."""
    scores = reference.score_rows(target, rows["forget"], device=device, pad_id=PAD)
    for row, values in zip(rows["forget"], scores, strict=True):
        row["reference_logps"] = values


def batches(rows: dict[str, list[Any]], settings: Settings, steps: int) -> list[list[Any]]:
    """The items of so many steps, one epoch's order after the other; a step that is not full is left out."""
    mix, size = StreamMix(rows, seed=settings.seed), settings.batch
    order = EpochOrder(mix, micro_batch_size=size, num_micro_batches=1, seed=settings.seed)

    def endless() -> Iterator[list[Any]]:
        for epoch in count():
            order.set_epoch(epoch)
            chosen = list(order)
            for start in range(0, len(chosen) - size + 1, size):
                yield [mix[n] for n in chosen[start : start + size]]

    return list(islice(endless(), steps))
