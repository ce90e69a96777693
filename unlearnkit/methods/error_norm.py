"""Error norm truncation (ENT, arXiv 2310.00840): leave out the tokens that look like errors in the data.

    e_t = ||p_theta(. | x, y_<t) - onehot(y_t)||_2,  in [0, sqrt 2]
    L = mean over {t: e_t <= threshold} of -log p_t        once start_step optimizer steps are done

Two tokens with the same loss differ in e_t: where the model spreads its probability over many continuations,
the next token is merely hard to know, and e_t is near 1; where it is certain of another token, the data may
be wrong, and e_t nears sqrt 2. A token y_t with p_t near 0 has e_t^2 = 1 + sum_v p_v^2, so a threshold of 1.3
leaves it out if another one has about 0.83. A model that knows nothing has e_t near 1 everywhere: a threshold
below 1 leaves out everything it has not learned yet. At sqrt 2 and above nothing is left out, which is plain
cross-entropy. The norms are the model's own, of this very step, without gradient.

Logged: `train/nll` is L; `train/kept` the share of tokens that are learned. If a step leaves out everything,
its loss is 0 and nothing is learned in it; that is warned of once.

Where we differ from the authors, and what is ours: norm, threshold and the wait are theirs. Their code
divides by all tokens, dropped ones too, which shrinks the steps by what was dropped; here the mean is over
the tokens that are kept, of the whole global batch. They give a threshold and a starting iteration for each
task (in their code the iteration is 0 by default, and the threshold has no default); the defaults are ours.
They also drop a fixed fraction of the highest norms; that variant is not here.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.objective import Objective
from unlearnkit.training.selective import SelectiveConfig, SelectiveNLL, TokenStats, TokenWeights
from unlearnkit.training.trainer import UnlearnTrainer

logger = logging.getLogger(__name__)


def trusted(error_norms_N: Tensor, threshold: float) -> Tensor:
    """Which tokens are learned: bool [N]; NaN is, so that a diverged run shows.

    Args:
        error_norms_N: in [0, sqrt 2].
        threshold: the highest norm that is learned.
    """
    return ~(error_norms_N > threshold)


@dataclass(frozen=True)
class ErrorNorm:
    """Keeps the tokens up to a threshold (see module docstring); for the settings see `ErrorNormConfig`.

    Raises:
        RecipeError: a setting that cannot be used.
    """

    threshold: float = 1.3
    start_step: int = 200
    reads: ClassVar[tuple[str, ...]] = ("error_norms",)
    #: Whether it was said that a step leaves out everything.
    _said: list[bool] = field(init=False, default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise RecipeError(
                f"training.threshold must be above 0, found {self.threshold}; error norms lie between 0 and "
                "1.414, and a model that knows nothing has about 1 everywhere"
            )
        if self.start_step < 0:
            raise RecipeError(
                f"training.start_step must be at least 0, found {self.start_step}; it is the number of "
                "optimizer steps in which everything is learned"
            )

    def __call__(self, stats: TokenStats) -> TokenWeights:
        """Keep everything at first, and then what is not above the threshold."""
        norms_N = stats.error_norms
        kept_N = trusted(norms_N, self.threshold if stats.step >= self.start_step else math.inf)
        if not self._said and len(kept_N) and not bool(kept_N.any()):
            self._said.append(True)
            logger.warning(
                f"all {len(kept_N)} tokens of step {stats.step + 1} have an error norm above "
                f"training.threshold ({self.threshold:g}), so nothing is learned in it; raise the threshold, "
                f"or start_step ({self.start_step}) if the model has yet to learn"
            )
        return TokenWeights.keep(kept_N)


@dataclass
class ErrorNormConfig(SelectiveConfig):
    """Settings of error norm truncation; the defaults are ours."""

    selector_type: ClassVar[type[Any]] = ErrorNorm

    threshold: float = field(
        default=1.3, metadata={"help": "Tokens with a larger error norm are left out; from 1.4143 on none."}
    )
    start_step: int = field(
        default=200,
        metadata={"help": "Optimizer steps in which everything is learned, before the first cut."},
    )


class ErrorNormTrainer(UnlearnTrainer):
    """Cross-entropy on the tokens that do not look like errors."""

    args: ErrorNormConfig

    def build_objective(self) -> Objective:
        """The selector, and those of `also`."""
        return SelectiveNLL(tuple(self.args.train_streams), self.args.selectors())

    def remark(self, steps: int) -> str | None:
        """What to say about a training of that many optimizer steps."""
        args = self.args
        if steps > args.start_step or args.threshold >= math.sqrt(2):
            return None
        return (
            f"training.start_step ({args.start_step}) is not below the {steps} steps that are trained, so no "
            "token will be left out; lower start_step"
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and say before if the wait will not end."""
        steps = self.args.max_steps
        if steps <= 0:
            a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            steps = math.ceil(math.ceil(len(self.mix) / a_step) * self.args.num_train_epochs)
        if remark := self.remark(steps):
            logger.warning(remark)
        return super().train(*args, **kwargs)
