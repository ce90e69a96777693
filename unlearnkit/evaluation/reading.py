"""What is read off one forward pass: token statistics, of a combined model at several weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearnkit.evaluation.serving import is_combined
from unlearnkit.training import logprobs

Weights = Mapping[str, float]


class Reading:
    """A model as scoring asks it.

    Of a combined model every network's logits are kept, [N, V] each, and combined chunk by chunk: all tokens
    of a batch at several weights never exist at once.

    Args:
        model: a causal language model in eval mode.
        weights: of a combined model: the weights of its networks, as often as there are results; by default
            its own.
    """

    def __init__(self, model: Any, weights: Sequence[Weights] = ()) -> None:
        self.model = model
        combined = is_combined(model)
        self.weights: list[Weights] = list(weights or ([model.config.weights] if combined else []))
        self._options = {"return_networks": True} if combined else {}

    @property
    def networks(self) -> int:
        """How many logits there are per token of the vocabulary."""
        return len(self.model.networks) if self.weights else 1

    @property
    def results(self) -> int:
        """How many results each token has."""
        return max(1, len(self.weights))

    def prompts(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], Any]:
        """The last logits of each prompt, [B, V] for each network, and the cache."""
        options = {"use_cache": True, "logits_to_keep": 1, **self._options}
        out = self.model(**batch, **logprobs.understood(self.model.forward, options))
        logits = out.network_logits if self.weights else (out.logits,)
        return tuple(one[:, -1] for one in logits), getattr(out, "past_key_values", None)

    def answers(self, batch: Mapping[str, Any], **options: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The logits at the target positions, [N, V] for each network, and the targets."""
        out = logprobs.target_logits(self.model, batch, **self._options, **options)
        return (out.networks if self.weights else (out.logits_NV,)), out.targets_N

    def statistics(self, logits: Sequence[Tensor], targets_N: Tensor) -> list[logprobs.ScoredTokens]:
        """Token statistics, once for each of the weights."""
        if not self.weights:
            return [logprobs.token_statistics(logits[0], targets_N)]
        parts: list[list[logprobs.ScoredTokens]] = [[] for _ in self.weights]
        chunk = logprobs.STATISTICS_CHUNK
        for start in range(0, max(len(targets_N), 1), chunk):
            rows = slice(start, start + chunk)
            some = [one[rows] for one in logits]
            each = self.model.combine_each(some, self.weights)
            for combined_NV, found in zip(each, parts, strict=True):
                found.append(logprobs.token_statistics(combined_NV, targets_N[rows]))
        return [
            logprobs.ScoredTokens(*(torch.cat(column) for column in zip(*found, strict=True)))
            for found in parts
        ]
