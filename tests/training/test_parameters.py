"""Layers by number, parameters by name: whole components, every architecture, a way out."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from unlearnkit.errors import RecipeError
from unlearnkit.training.parameters import choose_by_name, matches, steered_layer, trained_layers


def test_default_layers():
    """A quarter of the depth: 7 of 32, as the authors; never the first, if there is another."""
    assert [steered_layer(None, n) for n in (1, 2, 3, 5, 12, 16, 32, 80)] == [0, 1, 1, 1, 2, 3, 7, 19]
    assert trained_layers(None, 7) == [5, 6, 7]
    assert trained_layers(None, 1) == [0, 1]
    assert trained_layers([3, 0, 3], 3) == [0, 3]


@pytest.mark.parametrize(("name", "pattern", "expected"), [
    ("mlp.down_proj.weight", "down_proj", True),
    ("mlp.down_proj.weight", "mlp.*", True),
    ("mlp.down_proj.weight", "*", True),
    ("mlp.down_proj.weight", "proj", False),
    ("mlp.down_proj.weight", "mlp.weight", False),
    ("mlp.experts.3.down_proj.weight", "experts.3.down_proj", True),
    ("mlp.experts.30.down_proj.weight", "experts.3.down_proj", False),
    ("attn.c_proj.weight", "mlp.c_proj", False),
    ("mlp.down_proj.lora_A.default.weight", "down_proj", True),
])  # fmt: skip
def test_a_pattern_matches_whole_components(name, pattern, expected):
    assert matches(name, pattern) == expected


def test_layer_3_is_not_layer_30():
    """The index is a component of the name, not its beginning."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=32,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )  # fmt: skip
    assert choose_by_name(model, [3], None) == ["model.layers.3.mlp.down_proj.weight"]


@pytest.mark.parametrize(("model_type", "expected"), [
    ("llama", "model.layers.1.mlp.down_proj.weight"),
    ("gemma3_text", "model.layers.1.mlp.down_proj.weight"),
    ("gpt2", "transformer.h.1.mlp.c_proj.weight"),
    ("gpt_neox", "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"),
    ("phi", "model.layers.1.mlp.fc2.weight"),
    ("opt", "model.decoder.layers.1.fc2.weight"),
    ("starcoder2", "model.layers.1.mlp.c_proj.weight"),
    ("bloom", "transformer.h.1.mlp.dense_4h_to_h.weight"),
    ("gptj", "transformer.h.1.mlp.fc_out.weight"),
])  # fmt: skip
def test_the_output_matrix_of_the_mlp_by_architecture(model_type, expected):
    """No bias, and no matrix of the attention."""
    config = AutoConfig.for_model(model_type)
    sizes = {
        "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "ffn_dim": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "rotary_dim": 4, "pad_token_id": 0,
        "word_embed_proj_dim": 8, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert choose_by_name(model, [1], None) == [expected]


def test_an_unknown_architecture_is_asked_for_names(tiny_model):
    model = tiny_model()
    for layer in model.model.layers:
        for module in layer.mlp._modules.copy():
            layer.mlp._modules[f"{module}_2"] = layer.mlp._modules.pop(module)
    with pytest.raises(RecipeError, match=r"output matrix of the MLP is not known .* some of: .*down_proj_2"):
        choose_by_name(model, [1], None)
