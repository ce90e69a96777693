"""ESLM, risk-averse selective language modeling (arXiv 2505.19893): learn the tokens that are hardest.

    s_t = -log p_t                                            score: loss
    s_t = H(p_theta(. | x, y_<t)), the entropy in nats        score: entropy
    VaR_alpha = alpha-quantile of s over the batch,     L = mean over {t: s_t >= VaR_alpha} of -log p_t

The share alpha of the tokens with the lowest scores is left out, without a reference model: the model's own
numbers in this very step decide, without gradient. With score `loss` L is CVaR_alpha, the mean of the worst
1 - alpha of the losses, which is at least the plain mean and rises with alpha. alpha = 0 is plain
cross-entropy. The quantile is an order statistic, so that of n tokens n - floor(alpha n) are kept, and more
only where scores are equal. Tokens that are wrong in the data have the highest losses: for noisy text put
`error_norm` beside it (`also`), or choose the entropy, which does not look at the label.

With `adaptive` alpha follows the run, as in the paper's Ada-ESLM: the better the model knows even what it
learns, the fewer tokens it is given.

    alpha_k = min(alpha_max, alpha (c_0 / c_k)^gamma),    c_k = smoothing c_{k-1} + (1 - smoothing) CVaR_k

CVaR_k is the mean score of the tokens kept in step k, and c_0 that of the first step. alpha is moved once per
optimizer step, is the same in all processes, and is kept in checkpoints.

Logged: `train/nll` is L; `train/kept` the share of tokens that are learned: 1 - alpha where nothing else
selects.

Where we differ from the authors, and what is ours: the scores, the quantile and the loss are theirs. Theirs
is the quantile of a batch; ours is of everything that one optimizer step sees, so that it does not depend on
how that is split. That alpha adapts is theirs too, but the rule above, its settings, and the default of alpha
are ours, and have not been compared with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from unlearnkit.errors import RecipeError
from unlearnkit.training.objective import Objective
from unlearnkit.training.selective import SelectiveConfig, SelectiveNLL, TokenStats, TokenWeights
from unlearnkit.training.trainer import UnlearnTrainer

ScoreName = Literal["loss", "entropy"]
SCORES: tuple[str, ...] = get_args(ScoreName)
#: alpha n is often meant to be a whole number that floating point just misses.
_ROUNDING = 1e-9


def value_at_risk(scores_N: Tensor, alpha: float) -> Tensor:
    """VaR_alpha: the score that floor(alpha n) others of n do not exceed, a scalar.

    Args:
        scores_N: at least one; NaN counts as the highest.
        alpha: in [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1, found {alpha}")
    if not len(scores_N):
        raise ValueError("a quantile of no scores was asked for")
    place = math.floor(alpha * len(scores_N) + _ROUNDING)
    return scores_N.sort().values[min(place, len(scores_N) - 1)]


def risky(scores_N: Tensor, alpha: float) -> Tensor:
    """Which scores are at least VaR_alpha: bool [N]; NaN is, so that a diverged run shows."""
    return ~(scores_N < value_at_risk(scores_N, alpha))


def cvar(scores_N: Tensor, alpha: float) -> Tensor:
    """CVaR_alpha: the mean of the scores that are at least VaR_alpha, a scalar."""
    return scores_N[risky(scores_N, alpha)].mean()


class AdaptiveAlpha:
    """alpha of one run (see module docstring), equal in all processes and kept in checkpoints.

    Args:
        start: alpha in the first step.
        limit: alpha at most.
        gamma: how strongly it follows; 0 keeps it as it is.
        smoothing: share of what was known before in c_k; 0 looks at the last step alone.
    """

    def __init__(self, start: float, *, limit: float, gamma: float, smoothing: float) -> None:
        self.start, self.limit, self.gamma, self.smoothing = start, limit, gamma, smoothing
        self.begin(None)

    def begin(self, trainer: Any) -> None:
        """As before the first step."""
        self._first = self._level = self._seen = math.nan  # c_0, c_k, CVaR of the current step

    @property
    def alpha(self) -> float:
        """alpha of the next step."""
        if not self._level > 0:
            return self.start
        most = math.log(self.limit / self.start)
        return self.start * math.exp(min(self.gamma * math.log(self._first / self._level), most))

    def note(self, tail_mean: float) -> None:
        """The mean score of the tokens that are kept in this step."""
        self._seen = tail_mean

    def end_step(self, total: Callable[[Tensor], Tensor], epoch: float) -> None:
        """Take up the step's mean, which every process knows; a step without any changes nothing."""
        seen, self._seen = self._seen, math.nan
        if not 0 < seen < math.inf:
            return
        if math.isnan(self._level):
            self._first = self._level = seen
        else:
            self._level = self.smoothing * self._level + (1 - self.smoothing) * seen

    def state_dict(self) -> dict[str, Tensor]:
        """c_0 and c_k."""
        return {"levels": torch.tensor([self._first, self._level], dtype=torch.float64)}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """The reverse."""
        self.begin(None)
        self._first, self._level = values["levels"].tolist()


@dataclass(frozen=True)
class ESLM:
    """Keeps the tokens with the highest scores (see module docstring); for the settings see `ESLMConfig`.

    Raises:
        RecipeError: settings that cannot be used, alone or together.
    """

    alpha: float = 0.1
    score: ScoreName = "loss"
    adaptive: bool = False
    alpha_max: float = 0.5
    gamma: float = 0.5
    smoothing: float = 0.9
    #: What `adaptive` remembers.
    state: AdaptiveAlpha | None = field(init=False, default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise RecipeError(f"training.score is {self.score!r}; use {' or '.join(SCORES)}")
        if not 0 <= self.alpha < 1:
            raise RecipeError(
                f"training.alpha must be at least 0 and below 1, found {self.alpha}; it is the share of the "
                "tokens that is left out, and 0 learns all"
            )
        if self.adaptive:
            self._check_adaptive()
            state = AdaptiveAlpha(
                self.alpha, limit=self.alpha_max, gamma=self.gamma, smoothing=self.smoothing
            )
            object.__setattr__(self, "state", state)

    def _check_adaptive(self) -> None:
        if self.alpha == 0:
            raise RecipeError(
                "training.adaptive multiplies alpha, which stays 0 if training.alpha is; begin with a small "
                "alpha, such as 0.1, or leave out adaptive"
            )
        if not self.alpha <= self.alpha_max < 1:
            raise RecipeError(
                f"training.alpha_max must be at least alpha ({self.alpha}) and below 1, found "
                f"{self.alpha_max}; it is the largest share that is left out"
            )
        if not 0 <= self.gamma < math.inf:
            raise RecipeError(
                f"training.gamma must be at least 0, found {self.gamma}; the larger, the faster alpha rises"
            )
        if not 0 <= self.smoothing < 1:
            raise RecipeError(
                f"training.smoothing must be at least 0 and below 1, found {self.smoothing}; with 1 nothing "
                "would ever be taken up"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The model's numbers that are the scores."""
        return ("logps",) if self.score == "loss" else ("entropies",)

    def __call__(self, stats: TokenStats) -> TokenWeights:
        """Keep what is at least the value at risk of the global batch."""
        scores_N = -stats.logps if self.score == "loss" else stats.entropies
        if not len(scores_N):
            return TokenWeights.keep(torch.ones_like(scores_N, dtype=torch.bool))
        kept_N = risky(scores_N, self.alpha if self.state is None else self.state.alpha)
        if self.state is not None:
            self.state.note(float(scores_N[kept_N].mean()))
        return TokenWeights.keep(kept_N)


@dataclass
class ESLMConfig(SelectiveConfig):
    """Settings of ESLM; the defaults are ours."""

    selector_type: ClassVar[type[Any]] = ESLM

    alpha: float = field(
        default=0.1, metadata={"help": "Share of the tokens that is left out; 0: plain cross-entropy."}
    )
    score: ScoreName = field(default="loss", metadata={"help": "What orders the tokens: loss or entropy."})
    adaptive: bool = field(
        default=False, metadata={"help": "Let alpha rise as the loss of the kept tokens falls."}
    )
    alpha_max: float = field(default=0.5, metadata={"help": "With adaptive: alpha at most."})
    gamma: float = field(default=0.5, metadata={"help": "With adaptive: how strongly alpha follows."})
    smoothing: float = field(
        default=0.9, metadata={"help": "With adaptive: how slowly; 0 looks at the last step alone."}
    )


class ESLMTrainer(UnlearnTrainer):
    """Cross-entropy on the tokens with the highest scores."""

    args: ESLMConfig

    def build_objective(self) -> Objective:
        """The selector, and those of `also`."""
        return SelectiveNLL(tuple(self.args.train_streams), self.args.selectors())
