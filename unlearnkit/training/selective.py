"""Cross-entropy on chosen tokens, and unlikelihood on others: one term for every loss that selects.

    L = (sum_t learn_t (-log p_t) + sum_t unlearn_t (-log(1 - p_t))) / (sum_t learn_t + sum_t unlearn_t)

p_t = pi_theta(y_t | x, y_<t); the sums run over the whole global batch. Masks of the data are already in the
labels when a batch is made (`data/token_stats.py`), so a term without selectors that read the model is plain
cross-entropy over the targets that are left. Selectors that read the model's numbers see those of all
micro-batches and processes of the optimizer step: a quantile is one of the global batch, and the denominator
counts what was kept of it. With one micro-batch a step the numbers come from the forward pass that is trained
on; with several, a pass without gradient looks at all of them first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from unlearnkit.data.token_stats import Selector as Selector
from unlearnkit.data.token_stats import TokenStats as TokenStats
from unlearnkit.data.token_stats import TokenWeights as TokenWeights
from unlearnkit.data.token_stats import of_the_data, of_the_model
from unlearnkit.errors import RecipeError
from unlearnkit.strict import MISFIT, did_you_mean, field_hints, fit, phrase
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.deciding import Decided, decide, note_down, noted, see
from unlearnkit.training.objective import Batch, LossOutput, Needs, Objective, Step, terms_of
from unlearnkit.training.unlikelihood import unlikelihood
from unlearnkit.yamlfile import show


@dataclass(frozen=True)
class SelectiveNLL:
    """The term (see module docstring), over one or more streams together (`token_mean`).

    Logged per stream: `nll` mean over the learned tokens, `kept` share of the targets that are learned, and
    `unlikelihood`, its mean over the unlearned ones, if a selector unlearns.
    """

    streams: tuple[str, ...] = ("train",)
    selectors: tuple[Selector, ...] = ()
    needs = Needs.NOTHING

    @property
    def unlearns(self) -> bool:
        """Whether a selector says that it unlearns; what is logged must not depend on a process's rows."""
        return any(getattr(one, "unlearns", False) for one in self.selectors)

    def __call__(self, step: Step, batch: Batch) -> LossOutput:
        if of_the_model(self.selectors):
            return self._weighted(step, batch)
        total = torch.stack([step.counts[s].tokens for s in self.streams]).sum()
        shares, metrics = [], dict[str, Tensor]()
        for stream in self.streams:
            values_N = self._values(step, stream, step.unlearned(stream))
            shares.append(values_N.sum() / total)
            metrics |= self._metrics(step, stream, values_N.detach(), None, step.unlearned(stream))
        return LossOutput(torch.stack(shares).sum(), metrics)

    def _weighted(self, step: Step, batch: Batch) -> LossOutput:
        shares, metrics = [], dict[str, Tensor]()
        decided = self._decided(step, batch)
        for stream in self.streams:
            one = decided[stream]
            values_N = self._values(step, stream, one.unlearned_U if len(one.unlearned_U) else None)
            shares.append((one.weights_N * values_N).sum() / one.totals[0])
            metrics |= self._metrics(step, stream, values_N.detach(), one, one.unlearned_U)
        return LossOutput(torch.stack(shares).sum(), metrics)

    def _decided(self, step: Step, batch: Batch) -> dict[str, Decided]:
        """What the survey noted down, or else what this one micro-batch of each process says."""
        known = {stream: one for stream in self.streams if (one := noted(batch[stream])) is not None}
        if len(known) == len(self.streams):
            return known
        places = [(step, stream) for stream in self.streams]
        chosen = of_the_model(self.selectors)
        found = decide(places, [see(place, chosen) for place in places], chosen)
        return dict(zip(self.streams, found, strict=True))

    def _values(self, step: Step, stream: str, unlearned_U: Tensor | None) -> Tensor:
        """-log p where a target is learned, -log(1 - p) where it is unlearned: [N]."""
        nll_N = -step.token_logps(stream)
        if unlearned_U is None:
            return nll_N
        logits_UV = step.logits(stream)[unlearned_U]
        return nll_N.index_copy(0, unlearned_U, unlikelihood(logits_UV, step.targets(stream)[unlearned_U]))

    def _metrics(
        self, step: Step, stream: str, values_N: Tensor, decided: Decided | None, unlearned_U: Tensor | None
    ) -> dict[str, Tensor]:
        """Shares of the global means; values and weights of unlearned targets stand among the others."""
        counts = step.counts[stream]
        weights_N = torch.ones_like(values_N) if decided is None else decided.weights_N
        all_sum, all_weight = (weights_N * values_N).sum(), weights_N.sum()
        if unlearned_U is None:
            removed_sum, removed = torch.zeros_like(all_sum), torch.zeros_like(all_weight)
        else:
            removed_sum = (weights_N * values_N)[unlearned_U].sum()
            removed = weights_N[unlearned_U].sum()
        learned = counts.learned if decided is None else decided.totals[2]
        metrics = {
            "nll": (all_sum - removed_sum) / learned,
            "kept": (all_weight - removed) / counts.candidates,
        }
        if self.unlearns:
            metrics["unlikelihood"] = removed_sum / (
                counts.unlearned if decided is None else decided.totals[1]
            )
        return {f"{stream}/{name}": value for name, value in metrics.items()}


def selecting_terms(objective: Objective) -> tuple[SelectiveNLL, ...]:
    """The terms of which selectors read the model's numbers."""
    terms = (one for one in terms_of(objective) if isinstance(one, SelectiveNLL))
    return tuple(one for one in terms if of_the_model(one.selectors))


def data_selectors(objective: Objective, part: str) -> tuple[Selector, ...]:
    """The masks of the data that the terms put on one part."""
    found = (one for one in terms_of(objective) if part in one.streams)
    return tuple(s for one in found for s in of_the_data(getattr(one, "selectors", ())))


@torch.no_grad()
def survey(objective: Objective, batches: Sequence[Batch], step_of: Callable[[Batch], Step]) -> None:
    """Look at all micro-batches of an optimizer step, and put beside each target what it weighs.

    Targets that weigh nothing are targets no more, so no logits of theirs are computed again, unless another
    term reads the same stream.

    Args:
        batches: this process's micro-batches; changed in place.
        step_of: makes the step of a micro-batch.
    """
    for term in selecting_terms(objective):
        chosen = of_the_model(term.selectors)
        places, seen = [], []
        for batch in batches:
            step = step_of(batch)
            own = [(step, stream) for stream in term.streams]
            seen += [see(place, chosen) for place in own]
            places += own
            step.forget()
        others = {s for other in terms_of(objective) if other is not term for s in other.streams}
        for (step, stream), decided in zip(places, decide(places, seen, chosen), strict=True):
            note_down(step.batch[stream], decided, drop=stream not in others)


@dataclass
class SelectiveConfig(UnlearnConfig):
    """What every method that chooses tokens shares.

    The fields of `selector_type`, the method's selector, are settings under the same names.
    """

    selector_type: ClassVar[type[Any]]

    retain: str = field(default="none", metadata={"help": "Not used: all streams are learned."})
    train_streams: list[str] = field(
        default_factory=lambda: ["train"], metadata={"help": "Streams that are learned; several are mixed."}
    )
    also: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "Further selective methods by name, with their options: {goldfish: {k: 4}}."},
    )

    def __post_init__(self) -> None:
        """Raises RecipeError: settings that a selector refuses, or a retain term, which there is none of."""
        if self.retain != "none":
            raise RecipeError(
                f"training.retain is {self.retain!r}, but this method learns all of its streams alike and "
                "has no retain term; leave it out, and name the stream in training.train_streams"
            )
        self.selectors()
        super().__post_init__()

    def selectors(self) -> tuple[Selector, ...]:
        """The method's own selector, and those of `also`.

        Raises:
            RecipeError: a method that selects no tokens, or an option that it lacks.
        """
        own = {one.name: getattr(self, one.name) for one in fields(self.selector_type) if one.init}
        further = (_further(name, options) for name, options in self.also.items())
        return (self.selector_type(**own), *further)


def _further(name: str, options: Mapping[str, Any] | None) -> Selector:
    """The selector of a method, from its options.

    Raises:
        RecipeError: as `SelectiveConfig.selectors`.
    """
    from unlearnkit import lookup

    config = lookup.method(name).config
    if not issubclass(config, SelectiveConfig):
        raise RecipeError(
            f"training.also names {name!r}, which does not choose tokens; name a selective method, such as "
            "goldfish or slung"
        )
    hints = field_hints(config.selector_type)
    known = [one.name for one in fields(config.selector_type) if one.init]
    for key, value in (options or {}).items():
        if key not in known:
            raise RecipeError(f"training.also.{name}: unknown key {key!r}{did_you_mean(key, known)}")
        if fit(value, hints[key]) is MISFIT:
            raise RecipeError(f"training.also.{name}.{key} must be {phrase(hints[key])}, found {show(value)}")
    try:
        return cast("Selector", config.selector_type(**(options or {})))
    except RecipeError as error:  # a selector speaks of its settings as those of its own method
        own = re.compile(rf"\btraining\.(?=(?:{'|'.join(known)})\b)")
        raise RecipeError(own.sub(f"training.also.{name}.", str(error))) from error
