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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch
from unlearnkit.data.token_rows import IGNORE
from unlearnkit.data.token_stats import Selector as Selector
from unlearnkit.data.token_stats import TokenStats as TokenStats
from unlearnkit.data.token_stats import TokenWeights as TokenWeights
from unlearnkit.data.token_stats import combined, of_the_data, of_the_model
from unlearnkit.errors import RecipeError
from unlearnkit.strict import MISFIT, did_you_mean, field_hints, fit, phrase
from unlearnkit.training import token_numbers
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Batch, Gather, LossOutput, Needs, Objective, Step, terms_of
from unlearnkit.training.unlikelihood import unlikelihood
from unlearnkit.yamlfile import show


class BatchStats(TokenStats):
    """The model's numbers about the targets of a global batch.

    Args:
        targets: int64 [N].
        numbers: those that the selectors named in `reads`, float32 [N] each.
        number: optimizer steps done so far.
    """

    def __init__(self, targets: Tensor, numbers: Mapping[str, Tensor], number: int) -> None:
        self._targets, self._numbers, self._number = targets, numbers, number

    @property
    def targets(self) -> Tensor:
        """As in TokenStats."""
        return self._targets

    @property
    def logps(self) -> Tensor:
        """As in TokenStats."""
        return self._numbers["logps"] if "logps" in self._numbers else self._unknown("logps")

    @property
    def entropies(self) -> Tensor:
        """As in TokenStats."""
        return self._numbers["entropies"] if "entropies" in self._numbers else self._unknown("entropies")

    @property
    def error_norms(self) -> Tensor:
        """As in TokenStats."""
        known = "error_norms" in self._numbers
        return self._numbers["error_norms"] if known else self._unknown("error_norms")

    @property
    def step(self) -> int:
        """As in TokenStats."""
        return self._number


#: What selectors may read, from a step and a stream: float32 [N], without gradient.
_NUMBERS: dict[str, Callable[[Step, str], Tensor]] = {
    "logps": lambda step, stream: step.token_logps(stream).detach(),
    "entropies": lambda step, stream: token_numbers.entropies(step.logits(stream).detach()),
    "error_norms": lambda step, stream: token_numbers.error_norms(
        step.logits(stream).detach(), step.targets(stream)
    ),
}


@dataclass(frozen=True)
class _Seen:
    """What selectors are told of one micro-batch and stream: its M targets that the data let be learned."""

    where_M: Tensor  # noqa: N815
    targets_M: Tensor  # noqa: N815
    numbers: dict[str, Tensor]


def _see(step: Step, stream: str, reads: Sequence[str]) -> _Seen:
    targets_N = step.targets(stream)
    learnable_N = torch.ones_like(targets_N, dtype=torch.bool)
    if (unlearned_U := step.unlearned(stream)) is not None:
        learnable_N[unlearned_U] = False
    where_M = learnable_N.nonzero()[:, 0]
    numbers = {name: _NUMBERS[name](step, stream)[where_M] for name in reads}
    return _Seen(where_M, targets_N[where_M], numbers)


def _decide(
    selectors: Sequence[Selector], seen: Sequence[_Seen], gather: Gather, number: int
) -> list[TokenWeights]:
    """The weights of the targets that were seen, one entry per micro-batch and stream."""
    targets, own = gather(torch.cat([one.targets_M for one in seen]))
    numbers = {name: gather(torch.cat([one.numbers[name] for one in seen]))[0] for name in seen[0].numbers}
    weights = combined(selectors, BatchStats(targets, numbers, number))
    sizes = [len(one.where_M) for one in seen]
    learn, unlearn = (torch.split(values[own].float(), sizes) for values in weights)
    return [TokenWeights(*pair) for pair in zip(learn, unlearn, strict=True)]


@dataclass(frozen=True)
class _Decided:
    """The weights of one micro-batch's N targets, and the sums of the global batch."""

    weights_N: Tensor  # noqa: N815
    unlearned_U: Tensor  # noqa: N815
    totals: Tensor  # float32 [2]: of all weights, of those that learn


def _spread(step: Step, stream: str, seen: _Seen, weights: TokenWeights) -> tuple[Tensor, Tensor]:
    """(weights [N], which of the N targets are unlearned [U]) with what the data say themselves."""
    weights_N = torch.ones_like(step.targets(stream), dtype=torch.float32)
    weights_N[seen.where_M] = weights.learn + weights.unlearn
    unlearned_N = torch.zeros_like(weights_N, dtype=torch.bool)
    unlearned_N[seen.where_M] = weights.unlearn > 0
    if (own_U := step.unlearned(stream)) is not None:
        unlearned_N[own_U] = True
    return weights_N, unlearned_N.nonzero()[:, 0]


def _totals(parts: Sequence[tuple[Tensor, Tensor]], gather: Gather) -> Tensor:
    """float32 [2] over all processes: the sum of all weights, and of those that learn."""
    every = torch.stack([weights_N.sum() for weights_N, _ in parts]).sum()
    unlearned = torch.stack([weights_N[unlearned_U].sum() for weights_N, unlearned_U in parts]).sum()
    return gather(torch.stack([every, every - unlearned])[None])[0].sum(0).clamp(min=1.0)


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

    def _decided(self, step: Step, batch: Batch) -> dict[str, _Decided]:
        if all("target_weights" in batch[s] for s in self.streams):
            return {
                s: _Decided(batch[s]["target_weights"], batch[s]["unlearned"], batch[s]["target_totals"])
                for s in self.streams
            }
        chosen = of_the_model(self.selectors)
        seen = [_see(step, s, _reads(chosen)) for s in self.streams]
        found = _decide(chosen, seen, step.gather, step.number)
        parts = [
            _spread(step, s, one, weights) for s, one, weights in zip(self.streams, seen, found, strict=True)
        ]
        totals = _totals(parts, step.gather)
        return {s: _Decided(*part, totals) for s, part in zip(self.streams, parts, strict=True)}

    def _values(self, step: Step, stream: str, unlearned_U: Tensor | None) -> Tensor:
        """-log p where a target is learned, -log(1 - p) where it is unlearned: [N]."""
        nll_N = -step.token_logps(stream)
        if unlearned_U is None:
            return nll_N
        logits_UV = step.logits(stream)[unlearned_U]
        return nll_N.index_copy(0, unlearned_U, unlikelihood(logits_UV, step.targets(stream)[unlearned_U]))

    def _metrics(
        self, step: Step, stream: str, values_N: Tensor, decided: _Decided | None, unlearned_U: Tensor | None
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
        learned = counts.learned if decided is None else decided.totals[1]
        metrics = {
            "nll": (all_sum - removed_sum) / learned,
            "kept": (all_weight - removed) / counts.candidates,
        }
        if self.unlearns:
            every = counts.tokens if decided is None else decided.totals[0]
            metrics["unlikelihood"] = removed_sum / (every - learned).clamp(min=1.0)
        return {f"{stream}/{name}": value for name, value in metrics.items()}


def _reads(selectors: Sequence[Selector]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in selectors for name in one.reads))


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
        steps, seen = [], []
        for batch in batches:
            step = step_of(batch)
            steps.append(step)
            seen += [_see(step, stream, _reads(chosen)) for stream in term.streams]
            step.forget()
        places = [(step, stream) for step in steps for stream in term.streams]
        gather = steps[0].gather
        found = _decide(chosen, seen, gather, steps[0].number)
        parts = [
            _spread(*place, one, weights) for place, one, weights in zip(places, seen, found, strict=True)
        ]
        totals = _totals(parts, gather)
        others = {s for other in terms_of(objective) if other is not term for s in other.streams}
        for (step, stream), (weights_N, unlearned_U) in zip(places, parts, strict=True):
            one = step.batch[stream]
            one["target_weights"], one["unlearned"] = weights_N, unlearned_U
            one["target_totals"] = totals
            if stream not in others:
                _drop(one, weights_N > 0)


def _drop(batch: TokenBatch, keep_N: Tensor) -> None:
    """Take targets out of a batch."""
    labels_BT = batch["labels"].clone()
    labels_BT.view(-1)[batch["target_positions"][~keep_N] + 1] = IGNORE
    unlearned_N = torch.zeros_like(keep_N)
    unlearned_N[batch["unlearned"]] = True
    batch["labels"] = labels_BT
    batch["unlearned"] = unlearned_N[keep_N].nonzero()[:, 0]
    for key in ("target_positions", "packed_positions", "target_weights"):
        if key in batch:
            values = cast("dict[str, Tensor]", batch)
            values[key] = values[key][keep_N]


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
        """Raises RecipeError: settings that a selector refuses."""
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
    return cast("Selector", config.selector_type(**(options or {})))
