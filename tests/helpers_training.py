"""Short trainings of tiny models, for tests of the trainer and of every method."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Small, deterministic, silent; every test names what it changes.
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def data_sets(rows: Callable[[str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Streams with answers of unequal length: 10 to forget, 14 to keep; "train" has the same 10, of which the
    second word is a risky span.

    "pairs" prefers the answer to another question to the same 10; so do the alternate answers, three a row.
    """
    from datasets import Dataset

    full = [{"prompt": r["question"], "completion": r["answer"]} for r in rows("full")]
    other = [[full[24 + (i + k) % 12]["completion"] for k in range(3)] for i in range(10)]
    return {
        "forget": Dataset.from_list(
            [{**r, "alternate_answer": o} for r, o in zip(full[:10], other, strict=True)]
        ),
        "retain": Dataset.from_list(full[10:24]),
        "train": Dataset.from_list([{**r, "spans": [second_word(r["completion"])]} for r in full[:10]]),
        "pairs": Dataset.from_list(
            [
                {"prompt": r["prompt"], "chosen": o[0], "rejected": r["completion"]}
                for r, o in zip(full[:10], other, strict=True)
            ]
        ),
    }


def second_word(text: str) -> dict[str, Any]:
    """The span of a text's second word, of high risk."""
    start = text.index(" ") + 1
    return {"start": start, "end": start + len(text[start:].split()[0]), "risk": "high"}


def make_trainer(
    method: str, model: Any, tokenizer: Any, streams: Mapping[str, Any], folder: Path, *,
    peft_config: Any = None, callbacks: Any = None, eval_dataset: Any = None, data_collator: Any = None,
    mix: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """A trainer of `method` with SETTINGS; streams that its objective does not read are left out."""
    from unlearnkit import lookup

    entry = lookup.method(method)
    _freeze()
    args = entry.config(output_dir=str(folder), **{**SETTINGS, **settings})
    return entry.trainer(
        model=model, args=args, streams=streams, processing_class=tokenizer, peft_config=peft_config, mix=mix,
        callbacks=callbacks, eval_dataset=eval_dataset, data_collator=data_collator,
    )  # fmt: skip


@functools.cache
def _freeze() -> None:
    """Every training begins with a garbage collection, which takes half a second if it looks at the
    libraries."""
    gc.collect()
    gc.freeze()


def lora(**settings: Any) -> Any:
    """A small LoRA adapter on every linear layer."""
    from peft import LoraConfig

    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    )


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logs(trainer: Any) -> list[dict[str, float]]:
    """The logged steps, without what depends on the clock."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_same_logs(one: list[dict[str, float]], other: list[dict[str, float]], *, rel: float) -> None:
    """Loss, every term's metrics, gradient norm and learning rate; an epoch's fraction counts
    micro-batches."""
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"epoch"}:
            torch.testing.assert_close(
                torch.tensor(a[key]), torch.tensor(b[key]), rtol=rel, atol=rel, msg=key
            )


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|one - other| / |other|, over all parameters together."""
    assert one.keys() == other.keys()
    gap = sum(float((one[n] - other[n]).double().square().sum()) for n in one)
    return float((gap / sum(float(other[n].double().square().sum()) for n in other)) ** 0.5)


def assert_same_training(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], start: Mapping[str, Tensor], *, rel: float = 1e-6
) -> None:
    """Same final weights, relative to the weights and, 100 times less strictly, to the way they went."""
    assert difference(one, other) <= rel
    way = {n: other[n] - start[n] for n in other}
    assert sum(float(step.abs().sum()) for step in way.values()) > 0, "nothing was trained"
    assert difference({n: one[n] - start[n] for n in one}, way) <= 100 * rel
