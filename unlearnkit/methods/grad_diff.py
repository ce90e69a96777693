"""Gradient difference (arXiv 2401.06121, section 4: "GradDiff"; GA+GD or GA+RT elsewhere).

    L = - forget_weight * CE(forget) + retain_weight * CE(retain)

Both are means over target tokens (`token_mean`). With forget_weight 0 it is fine-tuning on the retain set.
With `retain: kl` it is the "KL" baseline of the same papers. The forget side has no lower bound; the retain
term slows the collapse and does not prevent it.

Logged: `forget/nll`, which rises, and the retain term, which should not.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearnkit.methods.grad_ascent import GradAscent
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Objective
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class GradDiffConfig(UnlearnConfig):
    """Settings of gradient difference; all weights 1, as published."""


class GradDiffTrainer(UnlearnTrainer):
    """Gradient ascent on the forget set beside the retain term."""

    args: GradDiffConfig

    def build_objective(self) -> Objective:
        """GA + retain term."""
        return self.with_retain(GradAscent())
