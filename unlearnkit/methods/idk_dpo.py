"""IdkDPO: DPO that prefers "I don't know" to the answer that must go (arXiv 2401.06121 and 2404.05868).

    L = (2/beta) E_forget softplus(-beta Delta),
    Delta = log(pi_theta(w|x) / pi_ref(w|x)) - log(pi_theta(l|x) / pi_ref(l|x))

with w a refusal and l the forget answer. log pi(y|x) is the sum over the answer's tokens; the mean is over
sequences (`seq_sum_mean`). At theta = ref the value is 2 ln 2 / beta and the gradient that of
-(log pi(w) - log pi(l)). Without the term of w this is NPO.

Each time an example comes, another refusal is drawn for it: by (index, epoch, seed), from the list that ships
or from the file `refusals`. Logged: as in `dpo.py`. Watch `logps/chosen` beside the retain term: the known
way to fail is a model that refuses everything, the retain questions too.

The factor 2/beta is the authors', not TRL's; AdamW cancels most of it, but the balance with the retain term,
weight decay and clipping depend on it. `scale_two_over_beta: false` leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unlearnkit.data.answers import Answers
from unlearnkit.training.objective import Objective
from unlearnkit.training.preference import DPO, SIDES, ScaledPairConfig, answers_of
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class IdkDPOConfig(ScaledPairConfig):
    """Settings of IdkDPO; with `retain: nll` it is the papers' DPO+RT, with `retain: kl` their DPO+KL."""

    refusals: str | None = field(
        default=None, metadata={"help": "A file of refusals, one a line; null: the list that ships."}
    )


class IdkDPOTrainer(UnlearnTrainer):
    """forget_weight * IdkDPO + retain_weight * retain term."""

    args: IdkDPOConfig

    def build_objective(self) -> Objective:
        """The formula above plus the retain term of the config."""
        return self.with_retain(DPO(self.args.beta, SIDES["refusals"], self.args.scale))

    def build_answers(self) -> dict[str, Answers]:
        """A refusal for every forget question."""
        return answers_of(SIDES["refusals"], self.args.refusals)
