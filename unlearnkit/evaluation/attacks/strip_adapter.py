"""Strip the adapter: what the model still knows for somebody who leaves its adapter out.

A model that was unlearned by an adapter and is handed out as base model and adapter has forgotten nothing:
the base is the target. This attack says so in numbers, for runs with LoRA whose adapter is given away
unmerged. What an adapter's training changed in the base itself (`bias: all`) stays.

A combined model (ULD's pair) is no safer: its first network is the target, whole and unchanged, and whoever
has the weights can leave the others out. That is the strongest attack on it, and costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from unlearnkit.errors import ModelError
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.serving import is_combined


@dataclass(frozen=True)
class StripAdapter:
    """Leave out the adapter, or ULD's assistant, as somebody can who is given the weights."""

    #: A retain model has nothing to leave out, so that a recipe does not attack it as a control.
    controlled: ClassVar[bool] = False

    def refuse(self, subject: Subject) -> None:
        """Find out what `stages` would refuse; it costs nothing."""
        with self.stages(subject):
            pass

    @contextlib.contextmanager
    def stages(self, subject: Subject) -> Iterator[Iterator[Subject]]:
        """One stage: the base model with all adapters switched off; of a combined model its first network.

        Raises:
            ModelError: there is no adapter (of peft's own PeftModel), or it is merged into the weights.
        """
        from peft import PeftModel

        model = subject.model
        if is_combined(model):
            with _alone(model) as first:
                left_out = list(model.networks)[1:]
                yield iter([replace(subject, model=first, variant="stripped", facts={"left_out": left_out})])
            return
        if not isinstance(model, PeftModel):
            raise ModelError(
                f"the attack strip_adapter needs a model with an adapter, and this {type(model).__name__} "
                "has none; leave the attack out"
            )
        if any(getattr(module, "merged", False) for module in model.modules()):
            raise ModelError(
                "the attack strip_adapter switches an adapter off, but this one is merged into the weights; "
                "unmerge it, or leave the attack out"
            )
        trainable = [(p, p.requires_grad) for p in model.parameters()]
        modes = [(module, module.training) for module in model.modules()]
        try:
            with model.disable_adapter():
                # The model inside, whose weights have other names: prompts that were learned are no part of
                # it, and its fingerprint is never that of the model with the adapter.
                yield iter([replace(subject, model=model.get_base_model().eval(), variant="stripped")])
        finally:
            # An adapter that is switched on again becomes trainable.
            for parameter, flag in trainable:
                parameter.requires_grad_(flag)
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def _alone(model: Any) -> Iterator[Any]:
    """The first network of a combined model, in eval mode for as long."""
    first = next(iter(model.networks.values()))
    modes = [(module, module.training) for module in first.modules()]
    try:
        yield first.eval()
    finally:
        for module, training in modes:
            module.training = training


ATTACK = StripAdapter
