"""Scoring several answers to one prompt with the prompt encoded once.

A benchmark asks for one correct, one paraphrased and five wrong answers to the same question. The prompts of
a batch go through the model once; their keys and values are then given to every answer. The log-prob of an
answer's first token comes from the prompt's last position, the others from the answer's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearnkit.data.formats import IGNORE
from unlearnkit.evaluation.decode import is_plain_cache, left_padded
from unlearnkit.evaluation.reading import Reading
from unlearnkit.training import logprobs

#: The share of all tokens that must be spared for the prompts to be worth a forward pass of their own.
_WORTH = 0.15


def pays(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether (prompt, answer) pairs repeat enough prompt tokens."""
    whole = sum(len(prompt) + len(answer) for prompt, answer in pairs)
    prompts = {tuple(prompt) for prompt, _ in pairs}
    spared = sum(len(prompt) for prompt, _ in pairs) - sum(len(prompt) for prompt in prompts)
    return spared > _WORTH * max(whole, 1)


class EncodedPrompts:
    """Prompts after one forward pass: their last logits, and a cache from which answers take theirs.

    Args:
        reading: a causal language model in eval mode, as it is to be read.
        prompts: distinct prompts, at least one token each.
    """

    def __init__(self, reading: Reading, prompts: Sequence[Sequence[int]], *, pad_id: int) -> None:
        self.reading, self.pad_id = reading, pad_id
        self._device = next(reading.model.parameters()).device
        batch = left_padded(prompts, pad_id, self._device)
        self._last_logits, self._cache = reading.prompts(batch)
        self._mask = batch["attention_mask"]

    @property
    def usable(self) -> bool:
        """Whether the model's cache lets rows be picked out."""
        return is_plain_cache(self._cache)

    def score(self, places: Sequence[int], answers: Sequence[Sequence[int]]) -> list[logprobs.ScoredTokens]:
        """Token statistics of each answer after the prompt at its place, answers one after another.

        Args:
            places: for each answer, which prompt it follows.
            answers: token ids, at least one each.

        Returns:
            As many as the reading has results.
        """
        device = self._device
        place_B = torch.tensor(places, device=device)
        first_B = torch.tensor([answer[0] for answer in answers], device=device)
        firsts = self.reading.statistics([logits[place_B] for logits in self._last_logits], first_B)
        length = max(len(answer) for answer in answers)
        if length == 1:
            return firsts
        ids_BT = torch.full((len(answers), length), self.pad_id, dtype=torch.long)
        labels_BT = torch.full((len(answers), length), IGNORE, dtype=torch.long)
        for row, answer in enumerate(answers):
            ids_BT[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
            labels_BT[row, 1 : len(answer)] = torch.tensor(answer[1:], dtype=torch.long)
        prompt_mask = self._mask[place_B]
        own_mask = (torch.arange(length) < torch.tensor([len(a) for a in answers])[:, None]).long()
        batch: Mapping[str, Tensor] = {
            "input_ids": ids_BT.to(device),
            "labels": labels_BT.to(device),
            "attention_mask": torch.cat([prompt_mask, own_mask.to(device)], dim=1),
            "position_ids": prompt_mask.sum(1, keepdim=True) + torch.arange(length, device=device),
        }
        # The last column predicts nothing, but the model is called with it: positions must match the cache.
        rests = self.reading.statistics(*self.reading.answers(batch, past_key_values=self._rows(place_B)))
        counts = [len(answer) - 1 for answer in answers]
        return [
            logprobs.ScoredTokens(*(_interleave(a, b, counts) for a, b in zip(first, rest, strict=True)))
            for first, rest in zip(firsts, rests, strict=True)
        ]

    def _rows(self, place_B: Tensor) -> Any:
        """A cache of its own for a batch of answers."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, layer in enumerate(self._cache.layers):
            cache.update(layer.keys[place_B], layer.values[place_B], number)
        return cache


def _interleave(first_B: Tensor, rest_N: Tensor, counts: Sequence[int]) -> Tensor:
    """One value of `first`, then `counts` values of `rest`, for each row."""
    parts: list[Tensor] = []
    for value, piece in zip(first_B, torch.split(rest_N, list(counts)), strict=True):
        parts += [value[None], piece]
    return torch.cat(parts)
