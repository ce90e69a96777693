"""Generation through a model's own `generate`: for models that our decoding loop does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from unlearnkit.evaluation.decode import Sampling
from unlearnkit.training.logprobs import understood


def through_generate(
    model: Any, names: Sequence[str], prompts: Sequence[Sequence[int]], *, max_new_tokens: int,
    stop: Sequence[int], pad_id: int, sampling: Sampling | None,
) -> list[list[int]]:  # fmt: skip
    """New tokens of each prompt; prompts of one length go together, so that nothing is padded.

    Not every model knows which tokens are padding, and a text may not depend on the rows beside it. Sampled
    rows go one by one, each with a seed of its own.

    Args:
        model: has `generate`, which takes `input_ids` [B, T] and returns them with the new tokens appended.
        names: one per prompt; with the seed they decide what is drawn.
    """
    found: list[list[int]] = [[] for _ in prompts]
    groups: dict[Any, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt) if sampling is None else place, []).append(place)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "eos_token_id": list(stop), "pad_token_id": pad_id, "num_beams": 1,
        "do_sample": sampling is not None,
    }  # fmt: skip
    if sampling is not None:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    for places in groups.values():
        ids_BT = torch.tensor([list(prompts[place]) for place in places])
        with torch.random.fork_rng():
            if sampling is not None:
                torch.manual_seed(_seed(names[places[0]], sampling.seed))
            out = _call(model, ids_BT.to(next(model.parameters()).device), options)
        for place, ids in zip(places, out[:, ids_BT.shape[1] :].tolist(), strict=True):
            found[place] = [int(token) for token in ids[:max_new_tokens]]
    return found


def _call(model: Any, ids_BT: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """In transformers' way where the model knows it, else with as many of the options as it takes."""
    from peft import PeftModel
    from transformers import GenerationConfig

    given = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    known = "generation_config" in inspect.signature(model.generate).parameters
    if known or isinstance(model, PeftModel):
        out = model.generate(**given, generation_config=GenerationConfig(**options))
    else:
        out = model.generate(**understood(model.generate, {**given, **options}))
    tokens: torch.Tensor = getattr(out, "sequences", out)
    return tokens


def _seed(name: str, seed: int) -> int:
    """From a sample's name, "HEX/INDEX"."""
    pair, _, index = name.partition("/")
    return int(pair[:12], 16) + 7919 * seed + int(index or 0)
