"""AltPO: DPO that prefers alternate, plausible answers to the one that must go (arXiv 2409.13474).

    L = (2/beta) E_forget softplus(-beta Delta),
    Delta = log(pi_theta(w|x) / pi_ref(w|x)) - log(pi_theta(l|x) / pi_ref(l|x))

with w an alternate answer to the question x and l the forget answer: the form of `idk_dpo.py`, with the same
values at theta = ref. Unlike a refusal, an alternate answer keeps the model talking as it does about
everything else.

Each forget row holds one or several alternates in its column `alternate_answer`; the section
`data.alternates` has the target model write them. Each time an example comes, the next of them is drawn by
(index, epoch, seed). Logged: as in `dpo.py`.

The authors sample 5 alternates a question at temperature 1 from the target model, and weigh the retain term
with 1 to 5. `scale_two_over_beta: false` gives TRL's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearnkit.data.answers import Answers
from unlearnkit.training.objective import Objective
from unlearnkit.training.preference import DPO, SIDES, ScaledPairConfig, answers_of
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class AltPOConfig(ScaledPairConfig):
    """Settings of AltPO."""


class AltPOTrainer(UnlearnTrainer):
    """forget_weight * AltPO + retain_weight * retain term."""

    args: AltPOConfig

    def build_objective(self) -> Objective:
        """The formula above plus the retain term of the config."""
        return self.with_retain(DPO(self.args.beta, SIDES["alternates"], self.args.scale))

    def build_answers(self) -> dict[str, Answers]:
        """The alternate answers of every forget question."""
        return answers_of(SIDES["alternates"])
