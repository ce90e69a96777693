"""Selective loss to understand but not generate (arXiv 2505.03052: "SLUNG").

    L = (sum_{t learned} -log p_t + sum_{t unlearned} -log(1 - p_t)) / (learned + unlearned)

p_t = pi_theta(y_t | x, y_<t). Every token stays in the context, so that what is risky is read and understood;
spans of the text with a risk class (the column `spans`, see `data/spans.py`) say which tokens the model shall
not learn to say itself. What is in no span is learned. A class is learned like the rest, ignored, or
unlearned, and a variant is the treatment of the classes that the authors ran it with:

    variant         high      middle   low     any other
    masked          ignore    ignore   learn   ignore
    unlikelihood    unlearn   learn    learn   unlearn

so that the two differ in the class `middle` too, and not only in what they do to `high`. The sums and the
counts run over the whole global batch. A token belongs to a class if it overlaps one of its spans, or is the
white space right before it. No reference model, and no retain term.

Logged: `train/nll` over the learned tokens, `train/kept` their share, `train/unlikelihood` the mean
-log(1 - p) where something is unlearned.

Defaults: masked, learning rate 5e-5, 3 epochs (the authors' on TOFU's names). We differ: tokens are found by
their characters in the whole text, not by tokenising span by span or by matching token ids; -log(1 - p) has
its gradient p also where p is 1 to the last bit, where a clamp of 1 - p gives none; and the average is one
over the global batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch

from unlearnkit.data.formats import text_to_learn
from unlearnkit.data.spans import SPANS, spans_of
from unlearnkit.data.token_stats import TokenStats, TokenWeights
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.strict import did_you_mean
from unlearnkit.training.objective import Objective
from unlearnkit.training.selective import SelectiveConfig, SelectiveNLL
from unlearnkit.training.trainer import UnlearnTrainer

Treatment = Literal["learn", "ignore", "unlearn"]

#: Variant -> class -> what happens to its tokens; "" stands for every class that is not named.
TREATMENTS: dict[str, dict[str, Treatment]] = {
    "masked": {"high": "ignore", "middle": "ignore", "low": "learn", "": "ignore"},
    "unlikelihood": {"high": "unlearn", "middle": "learn", "low": "learn", "": "unlearn"},
}


def token_weights(risks: Sequence[str], treatment: Mapping[str, str]) -> TokenWeights:
    """What each token weighs, from its class ("" for none, which is learned) and the classes' treatment.

    Args:
        treatment: as the entries of TREATMENTS.
    """
    given = [treatment.get(risk, treatment[""]) if risk else "learn" for risk in risks]
    learn, unlearn = ([float(one == what) for one in given] for what in ("learn", "unlearn"))
    return TokenWeights(torch.tensor(learn), torch.tensor(unlearn))


@dataclass(frozen=True)
class SLUNG:
    """The selector: risk classes -> learned, ignored or unlearned tokens.

    Raises:
        RecipeError: an unknown variant or treatment.
    """

    variant: Literal["masked", "unlikelihood"] = "masked"
    treatment: dict[str, Treatment] = field(default_factory=dict)
    reads: ClassVar[tuple[str, ...]] = ()
    reads_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in TREATMENTS:
            raise RecipeError(
                f"training.variant must be masked or unlikelihood, found {self.variant!r}; masked learns no "
                "risky token, unlikelihood also pushes those of high risk away"
            )
        for risk, what in self.treatment.items():
            if not risk or what not in get_args(Treatment):
                raise RecipeError(
                    f"training.treatment gives {risk!r}: {what!r}; write a risk class and one of "
                    f"{', '.join(get_args(Treatment))}, such as {{middle: learn}}"
                )

    def __call__(self, stats: TokenStats) -> TokenWeights:
        return token_weights(stats.risks, {**TREATMENTS[self.variant], **self.treatment})

    @property
    def unlearns(self) -> bool:
        """Whether some class is unlearned."""
        return "unlearn" in {**TREATMENTS[self.variant], **self.treatment}.values()

    def remark_risks(self, risks: Collection[str]) -> str | None:
        """A warning where the treatment names classes that no target has.

        Args:
            risks: the classes that targets have.
        """
        missing = sorted(set(self.treatment) - set(risks))
        if not missing:
            return None
        guess = did_you_mean(missing[0], sorted(risks))
        return f"training.treatment names {', '.join(missing)}, but no target token has that risk{guess}"

    def check(self, data: Any, where: str) -> None:
        """Refuse rows whose risks are not known.

        Raises:
            DataError: no column of spans, or no span in any row; or one before the first that does not fit.
        """
        remedy = "annotate it with data.annotate in the recipe, or once with `unlearnkit data annotate`"
        if SPANS not in data.column_names:
            raise DataError(f"{where} has no column {SPANS}, which says what is risky in it; {remedy}")
        if not any(spans_of(row, text_to_learn(row)) for row in data):
            raise DataError(f"{where} has no span in any of its {len(data)} rows; {remedy}")


@dataclass
class SLUNGConfig(SelectiveConfig):
    """Settings of SLUNG."""

    selector_type: ClassVar[type[SLUNG]] = SLUNG

    variant: Literal["masked", "unlikelihood"] = field(
        default="masked", metadata={"help": "masked: no loss on risky tokens; unlikelihood: -log(1 - p)."}
    )
    treatment: dict[str, Treatment] = field(
        default_factory=dict,
        metadata={"help": "Risk class -> learn, ignore or unlearn, instead of the variant's own."},
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate (AdamW)."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the anchor stream."})


class SLUNGTrainer(UnlearnTrainer):
    """The selective loss on the streams that the config names."""

    args: SLUNGConfig

    def build_objective(self) -> Objective:
        """Cross-entropy and unlikelihood on the tokens that the classes' treatment leaves to them."""
        return SelectiveNLL(tuple(self.args.train_streams), self.args.selectors())
