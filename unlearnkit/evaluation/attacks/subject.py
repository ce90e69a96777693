"""What an attack takes and what it gives: a model and how it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from unlearnkit.data.formats import Template


@dataclass(frozen=True)
class Subject:
    """A model and how it is asked. An attack changes one or the other.

    Attributes:
        rows: data set -> canonical rows (see `data.columns`).
        variant: names one stage of an attack, such as "10 steps" or "nf4".
        level: a number to plot the stage against (steps, bits), where there is one.
        seen: examples that the attack itself disclosed; they are left out of what came back.
        facts: further numbers and notes, JSON-like, for the summary.
        best_of: above 1, each generation is replaced by the worst leak among that many samples.
        answer_prefix_tokens: so many first tokens of the true answer go into the prompt; the rest is
            measured.
    """

    model: Any
    tokenizer: Any
    template: Template
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    variant: str = ""
    level: float | None = None
    seen: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    best_of: int = 1
    answer_prefix_tokens: int = 0


class Attack(Protocol):
    """A frozen dataclass of options. Its docstring's first line is what `unlearnkit ls attacks` shows.

    It may also have `check()`, called before a model is loaded, and `refuse(subject)`, called before anything
    is asked: both raise a `UserError` where the attack cannot be made. `controlled = False` says that a
    recipe attacks the unlearned model alone.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def stages(self, subject: Subject) -> AbstractContextManager[Iterator[Subject]]:
        """The attacked subjects, one after another; on leaving, the model is what it was."""
        ...
