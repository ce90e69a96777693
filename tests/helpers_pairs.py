"""A pair of a target model and an assistant that is not it."""

from __future__ import annotations

from typing import Any

import torch


def make_pair(target: Any, *, alpha: float = 0.75, rate: float | None = 0.01) -> Any:
    """The assistant is the target's first layer with other weights; its embeddings, norm and head lie in the
    target's memory."""
    from unlearnkit.models.assistant import build_assistant
    from unlearnkit.models.combined.modeling_combined import ULDForCausalLM

    assistant = build_assistant(target, 1, lora=None)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in assistant.model.layers.parameters():
            parameter.data = parameter + 0.3 * torch.randn_like(parameter)
    return ULDForCausalLM.pair(target, assistant, alpha=alpha, top_logit_filter=rate)
