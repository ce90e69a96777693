"""Regularised preference optimization: DPO plus SFT on the chosen answer (arXiv 2405.16436).

    L = E softplus(-beta Delta) + weight * NLL(w)

with Delta as in `dpo.py` and w the chosen answer. DPO moves only the difference of the two log-probs, and
often lowers both; the second term keeps the chosen one up, which is what to watch: `logps/chosen`. Three
forms of that term are in use under one name. They differ in what NLL(w) averages and in its weight:

    sft_reduction   NLL(w)                                       weight     used by
    sum_beta        mean over pairs of the sum over tokens       beta eta   the authors' main code
    seq_mean        mean over pairs of the mean over tokens      eta        the authors' OpenRLHF branch
    token_mean      mean over all tokens of all chosen answers   eta        TRL's loss_type ["sigmoid", "sft"]

`equivalent_eta` converts. With `sum_beta` a change of beta changes the strength of the SFT term too. eta = 0
is DPO, to the bit. Where the two answers come from, for alignment and for unlearning, is said in `dpo.py`.

Logged: as in `dpo.py`, and `pairs.chosen/sft` (`forget.refusal/sft`, `forget.alternate/sft`): NLL(w) before
its weight.

TRL documents eta = 0.005 and beta = 0.01, the authors' values, for its own form: at L tokens an answer its
SFT term is 1 / (beta L) times the authors'. In TRL the token mean is that of a micro-batch, here that of the
whole global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from unlearnkit.data.answers import Answers
from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, WeightedSum
from unlearnkit.training.preference import DPO, PreferenceConfig, answers_of
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass(frozen=True)
class Reduction:
    """One form of the SFT term.

    Args:
        nll: (step, part) -> the average NLL of a part's answers.
        by_beta: the weight is beta * eta, else eta.
        summed: `nll` sums over an answer's tokens.
    """

    nll: Callable[[Step, str], Tensor]
    by_beta: bool = False
    summed: bool = False

    def weight(self, eta: float, *, beta: float) -> float:
        """What `nll` is multiplied by in the loss."""
        return beta * eta if self.by_beta else eta

    def per_token(self, eta: float, *, beta: float, mean_length: float) -> float:
        """The weight of the NLL per token, if all answers have `mean_length` tokens."""
        return self.weight(eta, beta=beta) * (mean_length if self.summed else 1.0)


def _sum_mean(step: Step, part: str) -> Tensor:
    return step.sequence_mean(-step.sequence_logps(part), part)


def _mean_mean(step: Step, part: str) -> Tensor:
    tokens_B = step.num_target_tokens(part).clamp(min=1)
    return step.sequence_mean(-step.sequence_logps(part) / tokens_B, part)


def _token_mean(step: Step, part: str) -> Tensor:
    return step.token_mean(-step.token_logps(part), part)


#: The names that `training.sft_reduction` may take.
REDUCTIONS = {
    "sum_beta": Reduction(_sum_mean, by_beta=True, summed=True),
    "seq_mean": Reduction(_mean_mean),
    "token_mean": Reduction(_token_mean),
}


def equivalent_eta(eta: float, *, beta: float, mean_length: float, source: str, target: str) -> float:
    """The eta with which `target` weighs a token of an average chosen answer as `source` does with `eta`.

    Exact if all chosen answers have `mean_length` tokens, EOS included. Else it is right on average: the
    forms still share the weight out differently between long and short answers.

    Args:
        eta: as `source` takes it.
        beta: of the DPO term.
        mean_length: tokens of a chosen answer.
        source: one of REDUCTIONS.
        target: one of REDUCTIONS.
    """
    unit = REDUCTIONS[target].per_token(1.0, beta=beta, mean_length=mean_length)
    return REDUCTIONS[source].per_token(eta, beta=beta, mean_length=mean_length) / unit


@dataclass(frozen=True)
class ChosenSFT:
    """The average NLL of one part's answers."""

    part: str
    reduction: Reduction
    needs = Needs.NOTHING

    @property
    def streams(self) -> tuple[str, ...]:
        """The part that is read."""
        return (self.part,)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        loss = self.reduction.nll(step, self.part)
        return LossOutput(loss, {f"{self.part}/sft": loss.detach()})


@dataclass
class RPOConfig(PreferenceConfig):
    """Settings of RPO; eta and beta are the authors' for Zephyr-7B."""

    beta: float = field(
        default=0.01, metadata={"help": "Inverse temperature; smaller lets the policy go further."}
    )
    eta: float = field(default=0.005, metadata={"help": "Weight of the SFT term; 0 is DPO."})
    sft_reduction: str = field(
        default="sum_beta",
        metadata={"help": "sum_beta (the authors': weight beta * eta), seq_mean or token_mean (TRL's)."},
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: a negative eta or an unknown reduction."""
        if not self.eta >= 0:
            raise RecipeError(f"training.eta must be at least 0, found {self.eta}; 0 is plain DPO")
        if self.sft_reduction not in REDUCTIONS:
            hint = did_you_mean(self.sft_reduction, REDUCTIONS)
            raise RecipeError(f"training.sft_reduction is {self.sft_reduction!r}{hint}")
        super().__post_init__()


class RPOTrainer(UnlearnTrainer):
    """forget_weight * RPO + retain_weight * retain term."""

    args: RPOConfig

    def build_objective(self) -> Objective:
        """DPO + weight * SFT, plus the retain term of the config."""
        args, reduction = self.args, REDUCTIONS[self.args.sft_reduction]
        sft = (reduction.weight(args.eta, beta=args.beta), ChosenSFT(args.sides.chosen, reduction))
        return self.with_retain(WeightedSum(((1.0, DPO(args.beta, args.sides)), sft)))

    def build_answers(self) -> dict[str, Answers]:
        """Refusals or alternate answers, if they are chosen."""
        return answers_of(self.args.sides, self.args.refusals)
