"""Direct preference optimization (arXiv 2305.18290, eq. 7).

    L = E softplus(-beta Delta)
    Delta = log(pi_theta(w|x) / pi_ref(w|x)) - log(pi_theta(l|x) / pi_ref(l|x))

with w the chosen and l the rejected answer to x. log pi(y|x) is the sum over the answer's tokens, its EOS
included; the mean is over pairs (`seq_sum_mean`). At theta = ref the value is ln 2 and the gradient is
-(beta/2) (grad log pi(w) - grad log pi(l)). Only the difference counts: both log-probs may fall, and often
do; RPO keeps the chosen one up.

For alignment the pairs are a stream of their own (`preference: pairs`, TRL's columns `prompt`, `chosen`,
`rejected`). For unlearning the rejected answer is the one to forget and the chosen one a refusal or an
alternate answer (`preference: refusals` or `alternates`); then `retain: nll` is the default beside it.

Logged, under TRL's names: `rewards/chosen` and `rewards/rejected`, the mean of beta log(pi_theta / pi_ref);
`rewards/margins` their difference; `rewards/accuracies` the share of pairs whose chosen reward is the larger
one (rounding alone at theta = ref, where both are 0); `logps/chosen` and `logps/rejected`, mean log pi(y|x);
`pairs/dpo` (`forget/dpo`) the loss.

This is TRL's `loss_type="sigmoid"`: the same scale, without the factor 2/beta of `idk_dpo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearnkit.data.answers import Answers
from unlearnkit.training.objective import Objective
from unlearnkit.training.preference import DPO, PreferenceConfig, answers_of
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class DPOConfig(PreferenceConfig):
    """Settings of DPO."""


class DPOTrainer(UnlearnTrainer):
    """forget_weight * DPO + retain_weight * retain term."""

    args: DPOConfig

    def build_objective(self) -> Objective:
        """Eq. 7 plus the retain term of the config."""
        return self.with_retain(DPO(self.args.beta, self.args.sides))

    def build_answers(self) -> dict[str, Answers]:
        """Refusals or alternate answers, if they are chosen."""
        return answers_of(self.args.sides, self.args.refusals)
