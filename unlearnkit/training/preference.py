"""Preferences: two answers to one prompt, the chosen and the rejected one, and DPO's loss over them.

    L_DPO = E softplus(-beta Delta)
    Delta = log(pi_theta(w|x) / pi_ref(w|x)) - log(pi_theta(l|x) / pi_ref(l|x))

(arXiv 2305.18290, eq. 7) with w the chosen and l the rejected answer. log pi(y|x) is the sum over the
answer's tokens, the mean is over pairs (`seq_sum_mean`). `SIDES` says where the two answers may come from;
both go through the model in one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import softplus

from unlearnkit.data.answers import AnswerColumn, Answers, Refusals
from unlearnkit.data.parts import stream_of
from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, LossOutput, Needs, Step


def implicit_rewards(logps_B: Tensor, ref_logps_B: Tensor, *, beta: float) -> Tensor:
    """beta log(pi_theta / pi_ref) per answer: the reward whose optimal policy pi_theta is. [B] -> [B]."""
    return beta * (logps_B - ref_logps_B)


def dpo_loss(chosen_log_ratios_B: Tensor, rejected_log_ratios_B: Tensor, *, beta: float) -> Tensor:
    """DPO per pair, in nats: [B] -> [B], at least 0.

    Args:
        chosen_log_ratios_B: log(pi_theta / pi_ref) of the chosen answers, summed over their tokens.
        rejected_log_ratios_B: the same of the rejected answers.
        beta: inverse temperature, above 0.

    Raises:
        ValueError: beta is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, found {beta}; 0.1 is a usual value")
    # eq. 7; -log sigma(u) = softplus(-u) does not overflow
    return softplus(-beta * (chosen_log_ratios_B - rejected_log_ratios_B))


@dataclass(frozen=True)
class Sides:
    """The parts of a batch (see `data/parts.py`) that hold the chosen and the rejected answers."""

    chosen: str
    rejected: str


#: The names that `training.preference` may take, and where the two answers come from.
SIDES = {
    "pairs": Sides("pairs.chosen", "pairs.rejected"),
    "refusals": Sides("forget.refusal", "forget"),
    "alternates": Sides("forget.alternate", "forget"),
}


def answers_of(sides: Sides, refusals: str | None = None) -> dict[str, Answers]:
    """Where those answers come from that the rows do not hold already; for `build_answers`.

    Args:
        refusals: a file of refusals, one a line; None is the list that ships.

    Raises:
        DataError: the file is missing or holds too few refusals.
    """
    if sides == SIDES["refusals"]:
        return {sides.chosen: Refusals.load(refusals)}
    return {sides.chosen: AnswerColumn("alternate_answer")} if sides == SIDES["alternates"] else {}


@dataclass
class PairConfig(UnlearnConfig):
    """Settings of every method over two answers."""

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature; smaller lets the policy go further."}
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: beta is not positive."""
        if not self.beta > 0:
            raise RecipeError(
                f"training.beta must be above 0, found {self.beta}; 0.1 is a usual value, and smaller ones "
                "let the policy go further from the reference"
            )
        super().__post_init__()


@dataclass
class ScaledPairConfig(PairConfig):
    """Settings of the unlearning methods that multiply DPO by 2/beta, as NPO does."""

    scale_two_over_beta: bool = field(
        default=True, metadata={"help": "Multiply the loss by 2/beta, as published; false: TRL's scale."}
    )

    @property
    def scale(self) -> float:
        """What DPO is multiplied by."""
        return 2.0 / self.beta if self.scale_two_over_beta else 1.0


@dataclass
class PreferenceConfig(PairConfig):
    """Settings of the methods that leave open where preferences come from.

    Alignment (`preference: pairs`) needs no retain set, unlearning does: `retain: auto` goes by that.
    """

    preference: str = field(
        default="pairs",
        metadata={"help": "pairs, refusals (chosen over forget answers) or alternates (likewise)."},
    )
    refusals: str | None = field(
        default=None, metadata={"help": "A file of refusals, one a line; null: the list that ships."}
    )
    retain: str = field(
        default="auto",
        metadata={"help": "Retain term: nll, kl, reverse_kl, none, or auto (none for pairs, else nll)."},
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: an unknown preference, or refusals that would not be used."""
        if self.preference not in SIDES:
            raise RecipeError(
                f"training.preference is {self.preference!r}{did_you_mean(self.preference, SIDES)}"
            )
        if self.refusals is not None and self.preference != "refusals":
            raise RecipeError(
                f"training.refusals is {self.refusals!r}, but training.preference is {self.preference!r}, "
                "which reads no refusals; set preference: refusals, or leave refusals out"
            )
        if self.retain == "auto":
            self.retain = "none" if self.preference == "pairs" else "nll"
        super().__post_init__()

    @property
    def sides(self) -> Sides:
        """The parts that are compared."""
        return SIDES[self.preference]


@dataclass(frozen=True)
class DPO:
    """scale * DPO over two parts; logs what TRL logs, under TRL's names."""

    beta: float
    sides: Sides
    scale: float = 1.0
    needs = Needs.REFERENCE_LOGPS

    @property
    def streams(self) -> tuple[str, ...]:
        """The chosen and the rejected part."""
        return (self.sides.chosen, self.sides.rejected)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        (chosen_B, rejected_B), (ref_chosen_B, ref_rejected_B) = (
            [source.sequence_logps(part) for part in self.streams] for source in (step, step.reference)
        )
        loss_B = dpo_loss(chosen_B - ref_chosen_B, rejected_B - ref_rejected_B, beta=self.beta)
        loss = self.scale * step.sequence_mean(loss_B, self.sides.chosen)
        reward_w_B = implicit_rewards(chosen_B, ref_chosen_B, beta=self.beta)
        reward_l_B = implicit_rewards(rejected_B, ref_rejected_B, beta=self.beta)
        values = {
            "rewards/chosen": reward_w_B,
            "rewards/rejected": reward_l_B,
            "rewards/margins": reward_w_B - reward_l_B,
            "rewards/accuracies": (reward_w_B > reward_l_B).to(loss_B.dtype),
            "logps/chosen": chosen_B,
            "logps/rejected": rejected_B,
        }
        metrics = {name: step.sequence_mean(v.detach(), self.sides.chosen) for name, v in values.items()}
        metrics[f"{stream_of(self.sides.chosen)}/dpo"] = loss.detach()
        return LossOutput(loss, metrics, dict.fromkeys(metrics, self.sides.chosen))
