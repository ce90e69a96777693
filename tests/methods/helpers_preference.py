"""Preference pairs as tokens, terms run on them in float64, and TRL's loss on the same texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.training.objective import LossOutput, Objective, Step, as_counts, count_streams
from unlearnkit.training.preference import SIDES
from unlearnkit.training.reference import FrozenModel

PAIRS = SIDES["pairs"]
#: (prompt, chosen, rejected) as token ids: answers of unequal length, a long common beginning, one token.
TOKENS = [
    ([5, 6, 7], [8, 9, 10, 11], [8, 9, 12]),
    ([13, 14], [15], [16, 17, 18, 19, 20]),
    ([21, 22, 23, 24], [25, 26, 27, 28, 29, 30], [25, 26, 27, 28, 29, 31]),
]

Item = dict[str, list[dict[str, Any]]]


def _row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    return {"input_ids": [*prompt, *answer], "labels": [IGNORE] * len(prompt) + list(answer)}


def items(tokens: Sequence[tuple[Any, Any, Any]] = TOKENS) -> list[Item]:
    """Items of a batch: one aligned row for each side."""
    return [
        {PAIRS.chosen: [_row(prompt, chosen)], PAIRS.rejected: [_row(prompt, rejected)]}
        for prompt, chosen, rejected in tokens
    ]


def swapped(some: Sequence[Item]) -> list[Item]:
    """The same pairs with the sides exchanged."""
    return [{PAIRS.chosen: one[PAIRS.rejected], PAIRS.rejected: one[PAIRS.chosen]} for one in some]


def moved(model: Any, *, seed: int = 0, size: float = 0.05) -> Any:
    """A copy whose weights were moved a little: a policy that is not the reference."""
    out = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return out


@dataclass
class Measured:
    """A term's value, its gradient by all parameters of the policy, and what it logs."""

    loss: Tensor
    gradients: tuple[Tensor, ...]
    metrics: Mapping[str, Tensor]


def step_on(model: Any, reference: Any, some: Sequence[Item], **layout: Any) -> Step:
    """A micro-batch that is the whole global batch; `layout` goes to the collator."""
    parts = (PAIRS.chosen, PAIRS.rejected)
    batch = StreamCollator(parts, pad_id=3, **layout)(some)
    return Step(model, batch, as_counts(count_streams([batch], parts, "cpu"), parts), FrozenModel(reference))


def measure(term: Objective, model: Any, reference: Any, some: Sequence[Item], **layout: Any) -> Measured:
    """Run a term on items."""
    step = step_on(model, reference, some, **layout)
    out: LossOutput = term(step, step.batch)
    gradients = torch.autograd.grad(out.loss, list(model.parameters()), materialize_grads=True)
    return Measured(out.loss.detach(), gradients, out.metrics)


def logp_gradients(model: Any, reference: Any, some: Sequence[Item], part: str) -> tuple[Tensor, ...]:
    """Gradient of the mean over pairs of log pi(y|x) of one side."""
    mean = step_on(model, reference, some).sequence_logps(part).mean()
    return torch.autograd.grad(mean, list(model.parameters()))


@dataclass
class FromTRL:
    """What TRL computes from texts, and the tokens that it made of them."""

    loss: Tensor
    gradients: tuple[Tensor, ...]
    metrics: dict[str, float]
    tokens: list[tuple[list[int], list[int], list[int]]]


def trl_dpo(
    model: Any,
    reference: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    **settings: Any,
) -> FromTRL:
    """One batch with all rows through the installed `trl.DPOTrainer`."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=copy.deepcopy(model), ref_model=copy.deepcopy(reference),
        processing_class=copy.deepcopy(tokenizer),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        args=DPOConfig(
            output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            max_length=None, gradient_checkpointing=None, **settings,
        ),
    )  # fmt: skip
    data = list(trainer.train_dataset)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data))
    return FromTRL(
        loss.detach(),
        torch.autograd.grad(loss, list(trainer.model.parameters())),
        {name: values[-1] for name, values in trainer._metrics["train"].items()},
        [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in data],
    )


def assert_equal_gradients(one: Sequence[Tensor], other: Sequence[Tensor], *, rel: float) -> None:
    """Equal up to `rel` of the whole gradient's norm."""
    gap = sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5
    norm = sum(float(b.double().square().sum()) for b in other) ** 0.5
    assert gap <= rel * norm
