"""One model that was distilled from a combination of networks: where it comes from, and how near it came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnkit.reporting.numbers import count, number, percent
from unlearnkit.reporting.views import RunView


def distilled_from(run: RunView) -> str:
    """The run of a combination that one model was distilled from; empty where it was not."""
    entry = run.manifest.get("distilled_from")
    if not isinstance(entry, Mapping):
        return str(entry or "")
    return str(entry.get("name") or entry.get("run") or "several networks")


def under_adapter(run: RunView) -> list[str]:
    """What a distilled model is, and what it is without its adapter."""
    name = distilled_from(run)
    if not name:
        return []
    return [
        f"Measured is one model: the target model under an adapter, distilled from {name}. Without the "
        "adapter the target model answers as before; merge the two before the model is handed on."
    ]


@dataclass(frozen=True)
class Near:
    """How far a distilled model is from what it was to match, on one stream of its training.

    `kl` is in nats a token, `same` the share of tokens at which both find one token likeliest; the others are
    those of the target model, without the adapter.
    """

    where: str
    kl: float
    kl_before: float
    same: float
    same_before: float
    tokens: float


def nearness(run: RunView) -> list[Near]:
    """How near a distilled model came, stream by stream; empty where that was not recorded."""
    entry = run.manifest.get("distilled_from")
    streams = entry.get("kl") if isinstance(entry, Mapping) else None
    if not isinstance(streams, Mapping):
        return []
    keys = ("kl", "kl_before", "same", "same_before", "tokens")
    return [
        Near(_where(str(name), distilled_from(run)), *(_number(one.get(key)) for key in keys))
        for name, one in streams.items()
        if isinstance(one, Mapping)
    ]


def near_sentences(run: RunView) -> list[str]:
    """The same for people."""
    return [
        f"On the {one.where} it is {number(one.kl)} nats a token (KL) from {distilled_from(run)}, the target "
        f"model {number(one.kl_before)}; the likeliest token is the same at {percent(one.same)} of the "
        f"tokens, the target model's at {percent(one.same_before)} (n = {count(one.tokens)})."
        for one in nearness(run)
    ]


def _where(stream: str, name: str) -> str:
    """A stream of true answers, or of the answers that the combination gave."""
    own, answered = stream.removesuffix("_answered"), stream.endswith("_answered")
    return f"{own} set, answered by {name}" if answered else f"{own} set"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
