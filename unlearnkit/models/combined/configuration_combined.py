"""The configuration of networks that are served as one, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from .layers import text_config

#: Kind -> role -> its weight in units of alpha; the first network's weight is 1.
SIGNS = {
    "uld": {"target": None, "assistant": -1.0},
    "offset": {"base": None, "tuned": 1.0, "untuned": -1.0},
    "value": {"base": None, "value": 1.0},
}


class CombinedConfig(PretrainedConfig):  # type: ignore[misc]
    """How networks are combined.

    Args:
        kind: "uld", "offset" or "value".
        weights: role -> weight, in the order of the networks; the first is 1.
        top_logit_filter: rate of the filter; None or 0 compares all tokens.
        sources: role -> where its weights lie (see `folders.py`).
        other: `vocab_size`, `num_hidden_layers` (of all networks together), ids of special tokens.
    """

    model_type = "unlearnkit_combined"

    def __init__(
        self,
        kind: str = "uld",
        weights: Mapping[str, float] | None = None,
        top_logit_filter: float | None = None,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        **other: Any,
    ) -> None:
        super().__init__(**other)
        self.kind = kind
        # A file does not keep the order of the roles, but which network is the first one matters.
        given = dict(weights or {})
        self.weights = {role: given[role] for role in SIGNS.get(kind, given) if role in given}
        self.top_logit_filter = top_logit_filter
        self.sources = {role: dict(source) for role, source in (sources or {}).items()}


def weights_for(kind: str, alpha: float) -> dict[str, float]:
    """Role -> weight of a kind of combination at alpha.

    Raises:
        ValueError: alpha is not above 0, or an unknown kind.
    """
    check_alpha(alpha)
    if kind not in SIGNS:
        raise ValueError(f"the kind of combination is {kind!r}; use one of {', '.join(SIGNS)}")
    return {role: 1.0 if sign is None else sign * float(alpha) for role, sign in SIGNS[kind].items()}


def alpha_of(config: CombinedConfig) -> float:
    """The strength of a combination: what the weights are units of."""
    role, sign = next((role, sign) for role, sign in SIGNS[config.kind].items() if sign is not None)
    return float(config.weights[role]) / sign


def refuse_other_weights(kind: str, weights: Mapping[str, float]) -> None:
    """Raises ValueError: weights that are not those of any alpha above 0 (a sign turned round, say)."""
    alphas = {weights[role] / sign for role, sign in SIGNS[kind].items() if sign is not None}
    first = next(role for role, sign in SIGNS[kind].items() if sign is None)
    if weights[first] != 1 or len(alphas) != 1 or not 0 < min(alphas) < float("inf"):
        told = ", ".join(f"{sign:+g} alpha" if sign else "1" for sign in SIGNS[kind].values())
        raise ValueError(
            f"the weights of a combination of kind {kind!r} are {told} with one alpha above 0, found "
            f"{dict(weights)}; set them so in config.json"
        )


def check_alpha(alpha: float) -> None:
    """Raises ValueError: alpha is not a number above 0."""
    if not 0 < alpha < float("inf"):
        raise ValueError(
            f"alpha must be a number above 0, found {alpha}; 0.75 is a good start, the target alone is 0"
        )


def check_filter(rate: float | None) -> None:
    """Raises ValueError: the filter's rate is not below 1 (0 and None switch the filter off)."""
    if rate is not None and not 0 <= rate < 1:
        raise ValueError(
            f"top_logit_filter must lie between 0 and 1, found {rate}; use 0.01, or 0 for no filter"
        )


def refuse_other_vocabularies(networks: Mapping[str, Any]) -> None:
    """Raises ValueError: networks whose logits do not stand for the same tokens."""
    sizes = {role: int(text_config(net).vocab_size) for role, net in networks.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{role} {size}" for role, size in sizes.items())
        raise ValueError(
            f"the networks have different vocabularies ({told} tokens); take models of one family, with one "
            "tokenizer"
        )


def config_of(
    networks: Mapping[str, Any], weights: Mapping[str, float], kind: str, top_logit_filter: float | None
) -> CombinedConfig:
    """What the combination says of itself: the first one's tokens, the layers of all."""
    configs = [text_config(network) for network in networks.values()]
    windows = [getattr(one, "sliding_window", None) for one in configs]
    positions = [getattr(one, "max_position_embeddings", None) for one in configs]
    own = {key: getattr(configs[0], key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CombinedConfig(
        kind=kind, weights=dict(weights), top_logit_filter=top_logit_filter, vocab_size=configs[0].vocab_size,
        hidden_size=configs[0].hidden_size, num_hidden_layers=sum(one.num_hidden_layers for one in configs),
        max_position_embeddings=min((p for p in positions if p), default=None),
        sliding_window=min((w for w in windows if w), default=None), tie_word_embeddings=False,
        dtype=getattr(configs[0], "dtype", None), **own,
    )  # fmt: skip
