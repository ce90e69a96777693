"""Supervised fine-tuning: makes target models (on everything) and retain models (all but the forget set).

    L = mean over answer tokens of -log pi_theta(y_t | x, y_<t), over all streams together (`token_mean`)

Here, rather than through TRL's trainer, because a target model, its retain model and every unlearned model
must see their examples through one tokenisation and one mixing layer to be compared. It reads the stream
`train`.

Logged: `train/nll`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Objective
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class SFTConfig(UnlearnConfig):
    """Settings of fine-tuning."""

    retain: str = field(default="none", metadata={"help": "Not used: all examples are learned."})
    train_streams: list[str] = field(
        default_factory=lambda: ["train"], metadata={"help": "Streams that are learned; several are mixed."}
    )


class SFTTrainer(UnlearnTrainer):
    """Cross-entropy on the streams that the config names."""

    args: SFTConfig

    def build_objective(self) -> Objective:
        """Plain cross-entropy."""
        return CrossEntropy(tuple(self.args.train_streams))
