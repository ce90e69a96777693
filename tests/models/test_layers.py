"""The first layers of a model: what they compute, on whose memory, and that the model stays whole."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers_families import FAMILIES, LAYERS, build, left, prompts
from torch import nn

from unlearnkit.models.combined import layers
from unlearnkit.models.combined.layers import find_layers, first_layers
from unlearnkit.models.combined.memory import shared_copy

every_family = pytest.mark.parametrize("family", FAMILIES)
both_heads = pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])


def head_of(model, hidden):
    """Final norm and LM head of any of the families, by name."""
    inner = getattr(model, "model", None) or model.transformer
    norm = next(getattr(inner, name) for name in ("norm", "final_layernorm", "ln_f") if hasattr(inner, name))
    logits = model.lm_head(norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@both_heads
@every_family
@torch.no_grad()
def test_all_layers_are_the_model_itself(family, tied):
    model, batch = build(family, tied=tied), left(prompts())
    assert torch.equal(first_layers(model, LAYERS)(**batch).logits, model(**batch).logits)


@both_heads
@every_family
@torch.no_grad()
def test_fewer_layers_are_norm_and_head_on_the_hidden_states_there(family, tied):
    model, batch = build(family, tied=tied), left(prompts())
    hidden = model(**batch, output_hidden_states=True).hidden_states
    found = [first_layers(model, count)(**batch).logits for count in range(1, LAYERS)]
    for count, logits in enumerate(found, start=1):
        assert torch.equal(logits, head_of(model, hidden[count]))
    assert not any(torch.allclose(a, b, atol=0.1) for a, b in itertools.pairwise(found))


@both_heads
@every_family
def test_the_configuration_is_cut_and_survives_a_folder(family, tied, tmp_path):
    model, batch = build(family, tied=tied), left(prompts())
    before = copy.deepcopy(model.config.to_dict())
    made = first_layers(model, 3)
    said, whole = made.config.to_dict(), model.config.to_dict()
    assert whole == before
    assert made.config.num_hidden_layers == len(find_layers(made).layers) == 3
    assert ("layer_types" in said) == ("layer_types" in whole)
    for name, value in whole.items():
        if isinstance(value, list) and len(value) == LAYERS:
            assert said[name] == value[:3]
        elif name not in ("num_hidden_layers", "n_layer"):
            assert said[name] == value
    made.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 3
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, made(**batch).logits)


@both_heads
@every_family
def test_nothing_is_copied(family, tied):
    model = build(family, tied=tied)
    made = first_layers(model, 2)
    theirs = dict(model.named_parameters())
    ours = dict(made.named_parameters())
    assert len(ours) < len(theirs)
    for name, parameter in ours.items():
        assert parameter.data_ptr() == theirs[name].data_ptr()
        assert parameter is not theirs[name]
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert theirs[name].requires_grad
    head, embeddings = made.get_output_embeddings().weight, made.get_input_embeddings().weight
    assert head.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert (head is embeddings) == tied
    # What is not in the common memory: tables of positions and masks.
    assert sum(b.numel() for b in made.buffers()) <= sum(b.numel() for b in model.buffers())


@pytest.mark.parametrize("make", [shared_copy, lambda model: first_layers(model, 2)])
def test_replacing_a_weight_does_not_touch_the_other(make):
    model, batch = build(tied=True), left(prompts())
    made = make(model)
    before = model(**batch).logits
    made.model.layers[0].mlp.up_proj.weight = nn.Parameter(
        torch.zeros_like(made.model.layers[0].mlp.up_proj.weight)
    )
    made.set_input_embeddings(nn.Embedding(61, 32))
    made.model.layers[1].mlp = nn.Identity()
    assert torch.equal(model(**batch).logits, before)
    after = made(**batch).logits
    assert not torch.allclose(after, before)
    model.model.layers[0].mlp = nn.Identity()
    model.lm_head = nn.Linear(32, 61)
    assert torch.equal(made(**batch).logits, after)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(training, fails, monkeypatch):
    model, batch = build().train(training), left(prompts())
    model(**batch).logits.sum().backward()  # gradients in place
    listed = model.model.layers
    state = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    config = copy.deepcopy(model.config.to_dict())
    if fails:
        monkeypatch.setattr(layers, "shared_copy", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first_layers(model, 2)
    else:
        assert not first_layers(model, 2).training
    assert model.model.layers is listed
    assert len(listed) == LAYERS
    assert all(module.training == training for module in model.modules())
    assert model.config.to_dict() == config
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == state[name][0]
        assert torch.equal(tensor, state[name][1])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, grads[name])


@pytest.mark.parametrize("count", [0, -1, LAYERS + 1])
def test_a_number_of_layers_that_there_is_not(count):
    with pytest.raises(
        ValueError, match=rf"{count} layers are wanted of a model that has 4; use a .* from 1 to 4"
    ):
        first_layers(build(), count)


def test_a_model_without_a_list_of_layers():
    model = build()
    model.config.num_hidden_layers = 7
    assert find_layers(model) is None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no list of decoder layers, so its first ones"):
        first_layers(model, 2)


def test_layers_are_found_under_wrappers():
    model = build()

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    found = find_layers(Wrapper(Wrapper(model)))
    assert (found.name, found.path) == ("layers", "module.module.model.layers")
    assert found.layers is model.model.layers
    assert found.parent is model.model
