"""Ask often enough: the worst of m sampled answers.

Greedy decoding shows the likeliest answer only. Each generation on the data set is replaced by the one among
m samples that gives most of the true answer away (highest ROUGE-L recall); log-probs do not change. The best
of m is above the mean for any model, so the retain model under the same attack is what to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.attacks.forms import require_dataset
from unlearnkit.evaluation.attacks.subject import Subject


@dataclass(frozen=True)
class Sampling:
    """Ask m times with sampling and take the answer that leaks most (ROUGE-L recall).

    Raises:
        RecipeError: less than two samples, or a temperature or top_p that cannot be sampled with.
    """

    dataset: str = field(default="forget", metadata={"help": "the data set that is sampled"})
    samples: int = field(default=8, metadata={"least": 2, "help": "m, how often each question is asked"})
    temperature: float = field(default=1.0, metadata={"help": "above 0; 1 is the model's own distribution"})
    top_p: float = field(
        default=1.0, metadata={"help": "nucleus: the likeliest tokens of this mass, in (0, 1]"}
    )
    seed: int = field(default=0, metadata={"help": "draws the samples"})

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise RecipeError(f"sampling.samples is {self.samples}; the worst of m needs 2 or more")
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(
                f"sampling.temperature is {self.temperature}; give a number above 0, such as 1.0"
            )
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"sampling.top_p is {self.top_p}; give a number above 0, 1 at most")

    def stages(self, subject: Subject) -> AbstractContextManager[Iterator[Subject]]:
        """One subject with `best_of` = m; how to sample is in its facts. Model and rows are left alone.

        Raises:
            RecipeError: the suite does not ask the data set.
        """
        require_dataset(subject, self.dataset, "sampling")
        stage = dataclasses.replace(
            subject,
            variant=f"worst of {self.samples}",
            best_of=self.samples,
            facts={**subject.facts, **dataclasses.asdict(self)},
        )
        return nullcontext(iter((stage,)))


ATTACK = Sampling
