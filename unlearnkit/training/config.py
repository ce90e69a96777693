"""Settings that every method shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments


@dataclass
class UnlearnConfig(TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with what unlearning adds.

    Defaults that differ from transformers: learning_rate 1e-5, weight_decay 0.01, logging every step, nothing
    reported to trackers, two checkpoints kept, NaN shown in the logs instead of hidden.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate (AdamW)."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the anchor stream."})
    logging_steps: float = field(default=1, metadata={"help": "Log every that many optimizer steps."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Trackers to report to."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Must stay false: batches are nested by stream."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide NaN losses in the logs; also a synchronisation per micro-batch."},
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations again in the backward pass, to save memory."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of it, such as use_reentrant."}
    )
    retain: str = field(
        default="nll", metadata={"help": "Retain term: nll, kl (reference to policy), reverse_kl or none."}
    )
    retain_streams: list[str] = field(
        default_factory=lambda: ["retain"],
        metadata={"help": "Streams that the retain term reads, each with the weight retain_weight."},
    )
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the retain term."})
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the method's forget term."})
    reference: str = field(
        default="auto",
        metadata={"help": "Reference model: auto (cheapest), cached, adapter_off or frozen."},
    )
    max_length: int = field(default=512, metadata={"help": "Tokens at most in one example."})
    truncate: bool = field(
        default=False, metadata={"help": "Cut answers that do not fit instead of refusing them."}
    )
    pack_documents: bool = field(
        default=False, metadata={"help": "Train on blocks of documents that fill max_length together."}
    )
    documents_on_disk: bool = field(
        default=False, metadata={"help": "Keep the tokens of documents on the disk, not in memory."}
    )
    allow_overlap: bool = field(
        default=False, metadata={"help": "Allow examples that are in the forget and in another set."}
    )
    matrix_optimizer: str | None = field(
        default=None, metadata={"help": "'muon': Muon on the hidden matrices, AdamW on the rest."}
    )
    matrix_learning_rate: float = field(
        default=0.02, metadata={"help": "Peak learning rate of the matrix optimizer."}
    )
    pad_to_multiple_of: int = field(
        default=1, metadata={"help": "Round batch lengths up to a multiple (8 on GPUs)."}
    )
    packing: str = field(
        default="auto",
        metadata={"help": "auto: rows without padding where the model is known to allow it; or never."},
    )

    @property
    def forgotten_streams(self) -> tuple[str, ...]:
        """The streams of what is to be forgotten: no row of another stream may ask the same."""
        return ("forget",)

    @property
    def wrong_answer_streams(self) -> tuple[str, ...]:
        """Streams that may ask what a forgotten one asks, because they answer otherwise."""
        return ()

    def __post_init__(self) -> None:
        """Settle what versions of transformers and devices want differently."""
        if not hasattr(TrainingArguments, "activation_checkpointing"):  # transformers before 5.19
            self.gradient_checkpointing: bool = bool(self.activation_checkpointing)
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory: bool = False
            self.use_cpu: bool = True  # else transformers refuses bf16 here
        super().__post_init__()
