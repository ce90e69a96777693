"""One pass, many alphas: a combined model evaluated with several alphas, without training it again.

Likelihoods of all alphas come from one forward pass of each network, together with those of the model's own.
What else is asked (texts, whose every token depends on those before it, gradients, tasks) is asked at each
alpha as it would be alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.evaluation.attacks import Subject
from unlearnkit.evaluation.results import ALPHAS, ALPHAS_FILE, Evaluation, alpha_folder, save_evaluation
from unlearnkit.evaluation.serving import own_alpha, served_at, weights_at
from unlearnkit.evaluation.share import is_main
from unlearnkit.evaluation.store import Stores
from unlearnkit.files import write_json

if TYPE_CHECKING:
    from unlearnkit.evaluation.inquiry import Inquiry


@dataclass(frozen=True)
class Alphas:
    """The alphas beside a model's own one, and what all of their examinations know.

    Attributes:
        names: alpha -> the fingerprint of the model at that alpha.
    """

    names: Mapping[float, str]
    stores: Stores

    @classmethod
    def of(cls, model: Any, alphas: Iterable[float], *, cache: bool) -> Alphas:
        """Name a combined model at each alpha.

        Args:
            alphas: the model's own one may be among them.
            cache: keep results on disk.
        """
        from unlearnkit.models.load import is_named_by_weights, model_fingerprint

        names = {}
        for alpha in alphas:
            if alpha != own_alpha(model):
                with served_at(model, alpha):
                    names[alpha] = model_fingerprint(model)
        return cls(names, Stores(enabled=cache and is_named_by_weights(model)))

    def shared(self, model: Any) -> dict[str, Any]:
        """For the examination at the model's own alpha, which asks for the others as well."""
        others = {name: weights_at(model, alpha) for alpha, name in self.names.items()}
        return {"stores": self.stores, "others": others}


def at_alphas(
    inquiry: Inquiry, subject: Subject, alphas: Alphas, plain: Evaluation, reference: Evaluation | None,
    output: Path | None,
) -> dict[float, Evaluation]:  # fmt: skip
    """The suite at each of the other alphas.

    Args:
        plain: the evaluation at the model's own alpha, which has asked for all likelihoods.
        reference: the retain model's evaluation.
        output: the folder of `plain`; each alpha has one of its own below it.
    """
    if output is not None and is_main():  # an unfinished sweep is none
        (output / ALPHAS / ALPHAS_FILE).unlink(missing_ok=True)
    found: dict[float, Evaluation] = {}
    for alpha, name in alphas.names.items():
        with served_at(subject.model, alpha):
            found[alpha] = _at(inquiry, subject, alphas.stores, alpha, name, reference)
        if output is not None and is_main():
            save_evaluation(found[alpha], alpha_folder(output, alpha))
    if found and output is not None and is_main():
        own = own_alpha(subject.model)
        listed = {"of": plain.summary["fingerprint"], "own": own, "alphas": sorted([own, *found])}
        write_json(output / ALPHAS / ALPHAS_FILE, listed)
    return found


def _at(
    inquiry: Inquiry, subject: Subject, stores: Stores, alpha: float, name: str, reference: Evaluation | None
) -> Evaluation:
    from unlearnkit.models.precision import own_precision

    started = time.perf_counter()
    named = dataclasses.replace(subject, variant=f"alpha {alpha:g}")
    with own_precision(subject.model):
        examination = inquiry.examination(named, name, plain=subject, stores=stores)
        records = examination.records()
    return inquiry.result(records, examination, subject.template, reference, started, name)
