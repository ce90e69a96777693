"""The assistant: only its adapter is trained, on the layers alone; the other weights are the target's."""

from __future__ import annotations

import pytest
import torch
from helpers_families import FAMILIES, LAYERS, TOLERANCE, build, left, prompts, trained
from helpers_training import lora
from torch import nn

from unlearnkit.errors import ModelError
from unlearnkit.models.assistant import build_assistant, default_depth
from unlearnkit.models.combined.layers import find_layers, first_layers
from unlearnkit.models.load import quiet_peft

every_family = pytest.mark.parametrize("family", FAMILIES)
both_heads = pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])


@both_heads
@every_family
def test_only_the_adapter_is_trained(family, tied):
    model, batch = build(family, tied=tied), left(prompts())
    assistant = trained(build_assistant(model, 2)).train()
    assistant(**batch).logits.logsumexp(-1).sum().backward()
    for name, parameter in assistant.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == ("lora_" in name)
        if "lora_" in name:
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.parameters())


@both_heads
@every_family
def test_the_adapter_is_on_every_linear_layer_and_not_on_the_head(family, tied):
    from transformers.pytorch_utils import Conv1D

    assistant = build_assistant(build(family, tied=tied), 2)
    plain = first_layers(build(family, tied=tied), 2)
    where = find_layers(plain)
    expected = {
        f"{where.path}.{name}"
        for name, module in where.layers.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in assistant.named_modules()
        if hasattr(module, "lora_A")
    }
    assert adapted == expected
    config = assistant.peft_config["default"]
    assert (config.r, config.lora_alpha) == (32, 32)


@every_family
@torch.no_grad()
def test_before_any_training_it_is_the_first_layers(family):
    model, batch = build(family), left(prompts())
    assistant = build_assistant(model, 2)
    plain = build_assistant(model, 2, lora=None)
    assert not hasattr(plain, "peft_config")
    assert torch.equal(plain(**batch).logits, first_layers(model, 2)(**batch).logits)
    torch.testing.assert_close(assistant(**batch).logits, plain(**batch).logits, **TOLERANCE)
    # All layers and no adapter: the target itself.
    assert torch.equal(build_assistant(model, LAYERS, lora=None)(**batch).logits, model(**batch).logits)


def test_frozen_weights_lie_in_the_targets_memory_and_are_not_changed():
    model, batch = build(tied=True), left(prompts())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assistant = build_assistant(model, 2).train()
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    for name, parameter in assistant.named_parameters():
        assert (parameter.data_ptr() in theirs) == ("lora_" not in name)
    optimizer = torch.optim.AdamW([p for p in assistant.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        assistant(**batch).logits.square().sum().backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.allclose(assistant(**batch).logits, first_layers(model, 2)(**batch).logits)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_seed_decides_the_adapter():
    one, same, other = (build_assistant(build(), 2, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_adapter_of_ones_own():
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assistant = build_assistant(build(), 2, lora=config)
    trainable = [tuple(p.shape) for p in assistant.parameters() if p.requires_grad]
    assert trainable == [(2, 32), (32, 2)] * 2


@pytest.mark.parametrize(("layers", "depth"), [(1, 1), (4, 1), (7, 1), (16, 4), (32, 8)])
def test_a_quarter_of_the_layers_by_default(layers, depth):
    assert default_depth(layers) == depth


def test_the_default_depth_is_taken():
    assert len(find_layers(build_assistant(build())).layers) == 1


@pytest.mark.parametrize("count", [0, -3, LAYERS + 1])
def test_a_depth_that_the_target_does_not_have(count):
    with pytest.raises(
        ModelError,
        match=rf"have {count} layers, but the target model has 4; set .*num_layers to a number from 1 to 4$",
    ):
        build_assistant(build(), count)


def test_an_adapter_is_no_target():
    from peft import get_peft_model

    with quiet_peft():
        adapted = get_peft_model(build(), lora())
    with pytest.raises(
        ModelError, match=r"is an adapter itself, .*; merge it first .* and name the merged folder"
    ):
        build_assistant(adapted, 2)


def test_a_model_without_layers_is_no_target():
    model = build()
    model.config.num_hidden_layers = 9
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM has no list of decoder layers, .*; use a decoder-only"
    ):
        build_assistant(model, 1)
