"""Offset unlearning: a small model learns the change of logits that a large one needs (arXiv 2404.11045).

    log pi_theta(y)  =  log p_base(y) + alpha (log p_tuned(y) - log p_untuned(y)) + const

Base is the target model, of which only logits are needed; untuned is a small model with the same vocabulary,
and tuned begins as a copy of it and is all that is trained. pi_theta is the policy of whatever objective is
chosen: the forget term and the retain terms see the combined distribution and nothing else, so that tuned
learns what the large model must unlearn, not what the small one would. At the start tuned = untuned, so
pi_theta is the target model, which is therefore the reference model too.

    L = forget_weight * (NPO or gradient ascent on pi_theta) + retain_weight * retain term on pi_theta

The paper adds raw logits; here each network's are normalised first, which changes each position's logits by a
constant and so no probability. Its objectives are `forget: grad_ascent` alone or with `retain: nll` or `kl`;
NPO is newer, and the default. It trains the small model's weights; with an adapter (`model.lora`) untuned
costs no memory of its own.

With `small` left out the target model is its own small one: for alpha = 1 that is plain training, at three
times the price, and otherwise its change extrapolated; good for comparisons.

Logged: as by the forget and the retain term (`forget/npo`, `forget/log_ratio`, `forget/nll`, `retain/nll`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unlearnkit.errors import RecipeError
from unlearnkit.methods.grad_ascent import GradAscent
from unlearnkit.methods.npo import NPO
from unlearnkit.training.combined import CombinedTrainer
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Objective
from unlearnkit.training.prepare import same_memory


@dataclass
class OffsetConfig(UnlearnConfig):
    """Settings of offset unlearning."""

    small: str | None = field(
        default=None,
        metadata={"help": "The small model (folder, hub id, run:NAME); null: the target model itself."},
    )
    alpha: float = field(default=1.0, metadata={"help": "Strength of the offset, in training and serving."})
    forget: str = field(default="npo", metadata={"help": "Forget term: npo or grad_ascent."})
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of NPO."})

    def __post_init__(self) -> None:
        """Raises RecipeError: alpha or beta is not positive, or an unknown forget term."""
        for name in ("alpha", "beta"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise RecipeError(f"training.{name} must be a number above 0, found {value}")
        if self.forget not in FORGET_TERMS:
            raise RecipeError(f"training.forget is {self.forget!r}; use one of {', '.join(FORGET_TERMS)}")
        super().__post_init__()


#: The names that `training.forget` may take.
FORGET_TERMS: dict[str, Callable[[OffsetConfig], Objective]] = {
    "npo": lambda args: NPO(args.beta),
    "grad_ascent": lambda args: GradAscent(),
}


class OffsetTrainer(CombinedTrainer):
    """The forget term + retain_weight * retain term, both of the combination; trains `tuned`."""

    args: OffsetConfig
    served_kind = "offset"
    trained = "tuned"
    adapter_on = "untuned"

    def build_objective(self) -> Objective:
        """The formula above."""
        return self.with_retain(FORGET_TERMS[self.args.forget](self.args))

    def make_networks(self, base: Any, small: Any) -> dict[str, Any]:
        """Base, untuned, and tuned: a copy, or where an adapter holds the change the same memory."""
        tuned = same_memory(small) if self.adapted else copy.deepcopy(small)
        untuned = same_memory(small) if small is base else small
        return {"base": base, "tuned": tuned, "untuned": untuned}
