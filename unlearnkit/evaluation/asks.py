"""What a suite asks of which data set: the settings of its probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from unlearnkit.evaluation.records import (
    ANSWER_LIKELIHOOD,
    CONTINUE_TEXT,
    GENERATE_ANSWER,
    GRADIENT_NORM,
    JUDGED_LIKELIHOOD,
    LIST_TERMS,
    SAMPLE_ANSWER,
)
from unlearnkit.strict import Reader
from unlearnkit.yamlfile import show


@dataclass(frozen=True)
class Ask:
    """A data set, and how a probe asks about it.

    `max_new_tokens` bounds this generation (default: the suite's); `shots` names a data set whose examples
    stand before each question, answered; a generation is cut before the first of the texts in `stop`;
    `prefix_tokens` of a document are shown (default, and at most: half), or all but its last `suffix_tokens`
    (at least half); `limit` takes the first examples. `samples`, `temperature`, `top_p` and `seed` say how
    answers are drawn. With `parts` a list of terms has the first and the last word of each name too.
    """

    dataset: str
    limit: int | None = field(default=None, metadata={"least": 1})
    max_new_tokens: int | None = field(default=None, metadata={"least": 1})
    shots: str | None = None
    stop: list[str] = field(default_factory=list)
    prefix_tokens: int | None = field(default=None, metadata={"least": 1})
    samples: int = field(default=8, metadata={"least": 1})
    temperature: float = field(default=1.0, metadata={"least": 0.01})
    top_p: float = field(default=1.0, metadata={"least": 0})
    seed: int = field(default=0, metadata={"least": 0})
    suffix_tokens: int | None = field(default=None, metadata={"least": 1})
    parts: bool = False

    def __repr__(self) -> str:
        """What is asked, which names kept answers under attack: settings that came later and say nothing are
        left out, so that what was asked before keeps its name."""
        later = {"suffix_tokens": None, "parts": False}
        told = ((one.name, getattr(self, one.name)) for one in fields(self))
        said = (f"{key}={value!r}" for key, value in told if key not in later or value != later[key])
        return f"Ask({', '.join(said)})"


#: What can be said about a data set beside `dataset` and `limit`, for each probe.
_GENERATION = ("max_new_tokens", "shots", "stop")
ASK_OPTIONS: dict[str, tuple[str, ...]] = {
    ANSWER_LIKELIHOOD: (),
    GENERATE_ANSWER: _GENERATION,
    SAMPLE_ANSWER: (*_GENERATION, "samples", "temperature", "top_p", "seed"),
    CONTINUE_TEXT: ("max_new_tokens", "prefix_tokens", "suffix_tokens"),
    GRADIENT_NORM: (),
    JUDGED_LIKELIHOOD: (),
    LIST_TERMS: ("parts",),
}


@dataclass(frozen=True)
class ProbeSpec:
    """What each probe is asked (by the probe's name); `max_new_tokens` bounds a generation."""

    asks: dict[str, list[Ask]] = field(default_factory=dict)
    max_new_tokens: int = 200

    def of(self, probe: str) -> list[Ask]:
        """What one probe is asked."""
        return self.asks.get(probe, [])

    @property
    def datasets(self) -> set[str]:
        """Every data set that is asked about or shown."""
        asks = [ask for several in self.asks.values() for ask in several]
        return {ask.dataset for ask in asks} | {ask.shots for ask in asks if ask.shots}

    @property
    def term_lists(self) -> set[str]:
        """The data sets that are lists of terms: no model is asked about them."""
        return {ask.dataset for ask in self.of(LIST_TERMS)}


def read_probes(reader: Reader, section: dict[str, Any]) -> ProbeSpec | None:
    """A suite's section `probes`; what is wrong with it is noted in the reader."""
    most = reader.check(section.pop("max_new_tokens", 200), int, ("probes", "max_new_tokens"), least=1)
    asks: dict[str, list[Ask]] = {}
    for probe, items in section.items():
        if probe not in ASK_OPTIONS:
            reader.unknown(("probes", probe), [*ASK_OPTIONS, "max_new_tokens"])
            continue
        if not isinstance(items, list):
            reader.problem(("probes", probe), f"probes.{probe} must be a list, found {show(items)}")
            continue
        found = ((("probes", probe, str(number)), item) for number, item in enumerate(items))
        asks[probe] = [a for at, item in found if (a := _ask(reader, probe, at, item, most))]
    return None if most is None else ProbeSpec(asks, most)


def _ask(reader: Reader, probe: str, at: tuple[str, ...], item: Any, most: int | None) -> Ask | None:
    """A data set's name, or a section that names it."""
    values = {"dataset": item} if isinstance(item, str) else item
    allowed = ("dataset", *(() if probe == LIST_TERMS else ("limit",)), *ASK_OPTIONS[probe])
    for key in values if isinstance(values, Mapping) else ():
        if key not in allowed:
            reader.unknown((*at, str(key)), allowed)
            return None
    ask = reader.section(Ask, values, at)
    if ask is not None and (problem := _contradiction(ask, most or 0)):
        reader.problem(at, f"{'.'.join(at)}.{problem}")
    return ask


def _contradiction(ask: Ask, most: int) -> str:
    """What two settings of an ask say against each other; "" where they agree."""
    most = ask.max_new_tokens or most
    if ask.suffix_tokens is None:
        return ""
    if ask.prefix_tokens is not None:
        return "suffix_tokens and prefix_tokens both say where a document is split; leave one of them out"
    if ask.suffix_tokens > most:
        return (
            f"suffix_tokens is {ask.suffix_tokens}, but only max_new_tokens={most} would be generated; "
            "raise that"
        )
    return ""
