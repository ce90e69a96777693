"""Tiny random models of the families that networks are combined from."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 61
LAYERS = 4
PAD, BOS, EOS = 0, 1, 2
#: Prompts of `prompts` are longer than the window of the families that have one.
WINDOW = 5
#: More than roundings make of float32, less than any wrong cache, mask or position does.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}

_GEMMA = {"head_dim": 8, "num_key_value_heads": 1}
_WINDOW = {"sliding_window": WINDOW}
#: Family -> its configuration's class, and what it says besides the sizes that all have.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen2, window": ("Qwen2Config", {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "Qwen3": ("Qwen3Config", {"head_dim": 8}),
    "Gemma": ("GemmaConfig", _GEMMA),
    "Gemma2": ("Gemma2Config", {**_GEMMA, **_WINDOW}),
    "Gemma3": (
        "Gemma3TextConfig",
        {**_GEMMA, **_WINDOW, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)},
    ),
    "Mistral": ("MistralConfig", _WINDOW),
    "Phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "Phi3": ("Phi3Config", {}),
    "GPT-2": ("GPT2Config", {"num_key_value_heads": None, "intermediate_size": None}),
}

#: Those whose caches forget what lies outside of the window.
WINDOWED = tuple(family for family, (_, own) in FAMILIES.items() if "sliding_window" in own)


def build(family: str = "Llama", *, tied: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A model of 4 layers, each of which matters, in eval mode."""
    import transformers

    name, own = FAMILIES[family]
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": tied,
        "initializer_range": 0.2, **own, **changes,
    }  # fmt: skip
    config = getattr(transformers, name)(
        **{key: value for key, value in settings.items() if value is not None}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms of 1 and biases of 0 would hide which of them is used
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def trained(assistant: Any, *, seed: int = 0) -> Any:
    """An assistant whose adapter says something, as after a training."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in assistant.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return assistant.eval()


def pair(family: str = "Llama", *, tied: bool = False, num_layers: int = 2, **options: Any) -> Any:
    """A random target with a random assistant; the filter leaves out about half of the tokens."""
    from unlearnkit.models.assistant import build_assistant
    from unlearnkit.models.combined.modeling_combined import ULDForCausalLM

    target = build(family, tied=tied)
    assistant = trained(build_assistant(target, num_layers))
    return ULDForCausalLM.pair(target, assistant, **{"alpha": 0.7, "top_logit_filter": 0.1, **options})


@functools.cache
def shared_pair(family: str) -> Any:
    """`pair(family)` once for all tests that change nothing."""
    return pair(family, tied=family in ("Llama", "Gemma"))


def prompts(lengths: tuple[int, ...] = (4, 9, 7), *, seed: int = 1) -> list[list[int]]:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def left(rows: list[list[int]]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, padded on the left."""
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
