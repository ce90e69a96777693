"""Decoding with a KV cache that forgets a row as soon as it has ended.

transformers' `generate` runs every row of a batch until the last one has ended. Here an ended row leaves the
batch, and what a row becomes does not depend on the rows beside it, sampled text included: each row draws
from a generator of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unlearnkit.training.logprobs import understood

#: (float32 logits [B, V], places of the rows in the whole batch [B], step) -> tokens int64 [B].
Pick: TypeAlias = Callable[[Tensor, list[int], int], Tensor]

#: The batch is made smaller once that share of its rows has ended.
_DROP_SHARE = 0.25
#: Generation settings that change no greedy text, or that are given here anyway.
_HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "typical_p",
    "max_length", "max_new_tokens", "use_cache", "transformers_version", "_from_model_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate",
}  # fmt: skip


class NotANumberError(Exception):
    """The model gives NaN for a row of a batch at a step."""

    def __init__(self, row: int, step: int) -> None:
        super().__init__(f"NaN in row {row} at step {step}")
        self.row, self.step = row, step


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `seed` and the name of a row decide all of its draws."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def greedy(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
    """The likeliest token."""
    return logits_BV.argmax(-1)


def sampler(sampling: Sampling, names: Sequence[str], max_new_tokens: int) -> Pick:
    """Draws by inverting the distribution function at one uniform number per row and step.

    Args:
        names: one name per row; equal names draw equal numbers.
    """
    uniforms = []
    for name in names:
        digest = hashlib.blake2b(f"{sampling.seed}|{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        uniforms.append(torch.rand(max_new_tokens, generator=generator, dtype=torch.float64))
    uniforms_RT = torch.stack(uniforms)

    def pick(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
        p_BV, order_BV = torch.softmax(logits_BV / sampling.temperature, dim=-1), None
        if sampling.top_p < 1:
            # Sorted by probability, so that top-p keeps a beginning; ties fall the same way on every device.
            p_BV, order_BV = p_BV.double().sort(dim=-1, descending=True, stable=True)
            p_BV = torch.where(p_BV.cumsum(-1) - p_BV < sampling.top_p, p_BV, 0.0)
        cdf_BV = p_BV.cumsum(-1, dtype=torch.float64)
        whole_B1 = cdf_BV[:, -1:]
        u_B1 = uniforms_RT[rows, step].to(cdf_BV.device)[:, None] * whole_B1
        # A product that rounds up to the whole must still fall to a token that can be drawn.
        u_B1 = torch.minimum(u_B1, whole_B1.nextafter(torch.zeros_like(whole_B1)))
        place_B1 = torch.searchsorted(cdf_BV, u_B1, right=True).clamp_(max=cdf_BV.shape[-1] - 1)
        return (place_B1 if order_BV is None else order_BV.gather(1, place_B1))[:, 0]

    return pick


def can_decode(model: Any, settings: Collection[str]) -> bool:
    """Whether `decode` gives what the model's own `generate` would.

    It does not where the model brings its own `generate` (a logit difference), keeps no KV cache, adds
    virtual tokens (prompt tuning), or has generation settings that change a greedy text (a repetition
    penalty).
    """
    from transformers import GenerationMixin

    if set(settings) - _HARMLESS or any(
        getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values()
    ):
        return False
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(inner, "config", None)
    return (
        isinstance(inner, GenerationMixin)
        and type(inner).generate is GenerationMixin.generate
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(inner, "_is_stateful", False)  # a state instead of keys and values
    )


def is_plain_cache(cache: Any) -> bool:
    """Whether every layer keeps all keys and values of every row, so that rows can be picked out."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `position_ids` [B, T] of prompts that end together."""
    length = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), length), pad_id, dtype=torch.long)
    mask_BT = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask_BT[row, length - len(prompt) :] = 1
    positions_BT = (mask_BT.cumsum(1) - 1).clamp_(min=0)
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
    return {name: values.to(device) for name, values in batch.items()}


@torch.no_grad()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: Collection[int], pad_id: int,
    pick: Pick = greedy, first_step: int = 0,
) -> list[list[int]] | None:  # fmt: skip
    """New tokens of each prompt, the ending token included; None if the model's cache cannot drop rows.

    Args:
        model: a causal language model for which `can_decode` holds, in eval mode.
        prompts: at least one token each.
        stop: tokens that end a row.
        pick: chooses the next tokens.
        first_step: the step that `pick` is told first, where the prompts end with tokens chosen before.
    """
    device = next(model.parameters()).device
    batch = left_padded(prompts, pad_id, device)
    own = getattr(model, "decoding_options", {})  # of networks that are combined
    out = model(**batch, **understood(model.forward, {"use_cache": True, "logits_to_keep": 1}), **own)
    cache: Any = getattr(out, "past_key_values", None)
    if not is_plain_cache(cache):
        return None
    mask_BT, last_B = batch["attention_mask"], batch["position_ids"][:, -1]
    new: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the places of the rows that are in the batch
    logits_BV, ended = out.logits[:, -1].float(), set[int]()
    for step in range(max_new_tokens):
        if bool(torch.isnan(logits_BV).any()):
            raise NotANumberError(rows[int(logits_BV.isnan().any(-1).nonzero()[0])], first_step + step)
        chosen_B = pick(logits_BV, rows, first_step + step)
        for row, token in zip(rows, chosen_B.tolist(), strict=True):
            if row not in ended:
                new[row].append(token)
                if token in stop:
                    ended.add(row)
        alive = [place for place, row in enumerate(rows) if row not in ended]
        if not alive or step + 1 == max_new_tokens:
            break
        if len(alive) <= (1 - _DROP_SHARE) * len(rows):
            keep = torch.tensor(alive, device=device)
            cache.batch_select_indices(keep)
            mask_BT, last_B, chosen_B = mask_BT[keep], last_B[keep], chosen_B[keep]
            rows = [rows[place] for place in alive]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        last_B = last_B + 1
        out = model(
            input_ids=chosen_B[:, None], attention_mask=mask_BT, position_ids=last_B[:, None],
            past_key_values=cache, use_cache=True, **own,
        )  # fmt: skip
        logits_BV = out.logits[:, -1].float()
    return new
