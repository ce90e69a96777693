"""Relearn: whether a few steps of fine-tuning bring back more than they teach.

Knowledge that was only hidden returns after a handful of steps, on a few of the forgotten examples or even on
unrelated text (Hu et al. 2024, arXiv 2406.13356), and with it comes what was not trained on. The model is
trained once, up to the most steps, and measured on the way: n steps give what a training of n steps gives.

A step is described in `evaluation/finetuning.py`. Nothing is random: examples and their order are hashes of
`seed` and example id, so that neither the order of rows nor the global random state matters.

Of a combined model (ULD's pair) all networks are trained together, through the distribution that it serves,
as a fine-tuning service would do. Whoever has the weights need not: see `strip_adapter`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.finetuning import Finetuning, restored, separated
from unlearnkit.files import fingerprint

FORGET = "forget"
#: An attack whose own examples keep this share of their loss (in nats a token) was too weak to say anything.
_HARDLY = 0.9
#: Below this loss there was nothing left to learn.
_KNOWN = 0.1


@dataclass(frozen=True)
class Relearn:
    """Fine-tune for a few steps on a few forget examples, or on other text.

    The facts in a summary give the loss on the attack's own examples before and after. If it hardly fell,
    the attack says nothing; a small model needs more than the default learning rate, such as 1e-3.
    """

    steps: list[int] = field(
        default_factory=lambda: [5, 10, 20], metadata={"help": "optimizer steps, one stage each"}
    )
    examples: int | None = field(
        default=20, metadata={"help": "how many examples are trained on; null: all of the source"}
    )
    source: str = field(
        default=FORGET, metadata={"help": "a data set of the suite (forget, retain) or a file of other text"}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "small models need more, such as 1e-3"})
    batch_size: int = field(default=4, metadata={"help": "examples a step"})
    weights: Literal["all", "adapter"] = field(
        default="all", metadata={"help": "what is trained; of quantised weights only what is not quantised"}
    )
    max_length: int = field(
        default=512, metadata={"help": "tokens at most; longer answers are cut, longer texts split"}
    )
    seed: int = field(default=0, metadata={"help": "which examples, and their order"})

    def check(self) -> None:
        """What can be known to be wrong without a model.

        Raises:
            RecipeError: an option out of its range.
        """
        least: Mapping[str, tuple[int, Sequence[int]]] = {
            "steps": (1, self.steps), "batch_size": (1, [self.batch_size]),
            "max_length": (2, [self.max_length]),
            "examples": (1, [] if self.examples is None else [self.examples]),
        }  # fmt: skip
        for name, (smallest, values) in least.items():
            if wrong := [value for value in values if value < smallest]:
                raise RecipeError(f"relearn.{name} is {wrong[0]}; use {smallest} or more")
        if not self.steps:
            raise RecipeError("relearn.steps is empty; give at least one number of steps")
        if not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"relearn.learning_rate is {self.learning_rate}; use a number above 0")

    def refuse(self, subject: Subject) -> None:
        """Read the examples that `stages` would train on, and look for weights to train.

        Raises:
            DataError: no such data set or file, or no example that fits.
            ModelError: nothing can be trained.
        """
        _trained(subject.model, self.weights)
        self._tokens(_chosen(self._rows(subject), self.examples, self.seed), subject)

    @contextlib.contextmanager
    def stages(self, subject: Subject) -> Iterator[Iterator[Subject]]:
        """The subject after each number of `steps`, fewest first.

        Raises:
            DataError: no such data set or file, or no example that fits.
            ModelError: nothing can be trained, or the loss stopped being a number.
        """
        self.check()
        chosen = _chosen(self._rows(subject), self.examples, self.seed)
        tokens = self._tokens(chosen, subject)
        pad_id = subject.tokenizer.pad_token_id
        size = min(self.batch_size, len(tokens))
        with (
            separated(subject.model),
            restored(subject.model, trained := _trained(subject.model, self.weights)),
        ):
            training = Finetuning(
                subject.model, trained, tokens, _batches(tokens, size, self.seed), chunk=size,
                learning_rate=self.learning_rate,
                pad_id=subject.tokenizer.eos_token_id if pad_id is None else pad_id,
            )  # fmt: skip
            stages = self._stages(subject, training, chosen)
            try:
                yield stages
            finally:
                stages.close()

    def _rows(self, subject: Subject) -> Sequence[Mapping[str, Any]]:
        from unlearnkit.data.streams import load_stream
        from unlearnkit.recipe import StreamSpec
        from unlearnkit.strict import did_you_mean

        if self.source in subject.rows:
            return subject.rows[self.source]
        path = Path(self.source).expanduser()
        if not path.exists():
            raise DataError(
                f"relearn.source is {self.source!r}, which is neither a data set of the suite nor a file"
                f"{did_you_mean(self.source, subject.rows)}"
            )
        rows: list[Mapping[str, Any]] = load_stream(
            StreamSpec(path=str(path)), name="relearn.source"
        ).to_list()
        return rows

    def _tokens(self, rows: Sequence[Mapping[str, Any]], subject: Subject) -> list[Any]:
        """Token rows with at least one target."""
        from unlearnkit.data.formats import IGNORE, tokenize_stream
        from unlearnkit.evaluation.probes import most_tokens

        room = min(self.max_length, most_tokens(subject.model))
        try:
            tokenized = tokenize_stream(
                rows, subject.tokenizer, subject.template, max_length=room, truncate=True, name=self.source
            )
        except DataError as error:
            raise DataError(
                f"relearn: an example of {self.source} cannot be trained on with max_length={room} ({error})"
            ) from error
        usable = [row for row in tokenized.rows if any(label != IGNORE for label in row["labels"][1:])]
        if not usable:
            raise DataError(f"relearn: no example of {self.source} has a token to learn; give longer texts")
        return usable

    def _stages(
        self, subject: Subject, training: Finetuning, chosen: Sequence[Mapping[str, Any]]
    ) -> Generator[Subject]:
        known = {_asked(row) for row in chosen}
        # By what was asked: a file may hold forget examples too, and two examples may share a question.
        forget = subject.rows.get(FORGET, ())
        seen = frozenset(row["example_id"] for row in forget if _asked(row) in known)
        before = training.loss()
        done = 0
        for steps in sorted(set(self.steps)):
            training.run(steps - done)
            done = steps
            loss = training.loss()
            facts: dict[str, Any] = {
                "source": self.source, "examples": len(chosen), "learning_rate": self.learning_rate,
                "batch_size": training.chunk, "weights_trained": sum(p.numel() for p in training.trained),
                "loss_before": before, "loss": loss,
            }  # fmt: skip
            notes = [_too_weak(before, loss)]
            if forget and len(seen) == len(forget):
                notes.append(
                    "it disclosed every forget example, so that none is left to measure; lower examples"
                )
            if note := "; ".join(filter(None, notes)):
                facts["note"] = note
            variant = f"{steps} step{'s' if steps > 1 else ''}"
            yield replace(subject, variant=variant, level=float(steps), seen=subject.seen | seen, facts=facts)


ATTACK = Relearn


def _too_weak(before: float, loss: float) -> str:
    if before <= _KNOWN or loss < _HARDLY * before:
        return ""
    fell, advice = ("hardly fell", "raise") if loss <= before else ("rose", "lower")
    return (
        f"the loss on its own examples {fell} ({before:.3g} to {loss:.3g} nats a token), so that the attack "
        f"says nothing: {advice} learning_rate"
    )


def _asked(row: Mapping[str, Any]) -> str:
    """Names what a row asks; of a text the text itself."""
    from unlearnkit.data.formats import prompt_and_answer

    is_text = row.get("text") is not None and "prompt" not in row
    return fingerprint(row["text"] if is_text else prompt_and_answer(row)[0])


def _chosen(rows: Sequence[Mapping[str, Any]], count: int | None, seed: int) -> list[Mapping[str, Any]]:
    """`count` rows, whatever the order of all."""
    return sorted(rows, key=lambda row: fingerprint(seed, row["example_id"]))[:count]


def _batches(rows: Sequence[Any], size: int, seed: int) -> Iterator[list[Any]]:
    """Batches without end; every row comes once an epoch, in an order of the epoch's own."""
    waiting: list[Any] = []
    for epoch in itertools.count():
        waiting += sorted(rows, key=lambda row: fingerprint(seed, epoch, row["example_id"]))
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


def _trained(model: Any, weights: str) -> list[Any]:
    """The parameters that the attack changes."""
    from unlearnkit.evaluation.attacks.quantize import is_quantized_weight

    candidates = list(model.parameters()) if weights == "all" else _of_adapters(model)
    trained = [p for p in candidates if not is_quantized_weight(p)]
    if not trained:
        what = (
            "no adapter that is switched on; use weights: all"
            if weights == "adapter"
            else "no weight to train"
        )
        raise ModelError(f"the attack relearn cannot train this model: it has {what}")
    return trained


def _of_adapters(model: Any) -> list[Any]:
    """Parameters of the active adapters of a PeftModel."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            holders = [getattr(module, name) for name in module.adapter_layer_names]
        elif isinstance(module, ModulesToSaveWrapper):
            holders = [module.modules_to_save]
        else:
            continue
        for holder, name in itertools.product(holders, module.active_adapters):
            if name in holder:
                held = holder[name]
                found += held.parameters() if hasattr(held, "parameters") else [held]
    if hasattr(model, "prompt_encoder"):  # learned prompts
        found += model.prompt_encoder.parameters()
    return list({id(p): p for p in found}.values())
