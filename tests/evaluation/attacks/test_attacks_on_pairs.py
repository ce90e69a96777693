"""Attacks on a combined model: the assistant left out, all networks trained, all networks rounded."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from helpers_pairs import make_pair
from helpers_subjects import Unchanged, logits, make_subject

from unlearnkit.errors import ModelError
from unlearnkit.evaluation.attacks.quantize import Quantize, quantized
from unlearnkit.evaluation.attacks.relearn import Relearn
from unlearnkit.evaluation.attacks.strip_adapter import StripAdapter
from unlearnkit.models.load import model_fingerprint


@pytest.fixture
def subject(tiny_model, tiny_tokenizer, fictional_rows):
    return make_subject(make_pair(tiny_model()), tiny_tokenizer, fictional_rows)


def shared(model):
    """Names of the assistant's parameters that lie in the target's memory."""
    target = {p.data_ptr() for p in model.networks["target"].parameters()}
    return {name for name, p in model.networks["assistant"].named_parameters() if p.data_ptr() in target}


def test_without_its_assistant_the_target_answers(subject, tiny_model):
    model = subject.model.train()
    unchanged = Unchanged(model)
    attack = StripAdapter()
    attack.refuse(subject)
    with attack.stages(subject) as stages:
        [stage] = stages
        assert torch.equal(logits(stage.model), logits(tiny_model()))
        assert not stage.model.training
        assert model_fingerprint(stage.model) == model_fingerprint(tiny_model()), "its answers may be known"
        assert (stage.variant, stage.facts) == ("stripped", {"left_out": ["assistant"]})
    unchanged.check()


def test_all_networks_are_trained_and_put_back(subject):
    model = subject.model
    unchanged, before, together = Unchanged(model), logits(model), shared(model)
    assert together == {"model.embed_tokens.weight", "model.norm.weight"}
    attack = Relearn(steps=[12], learning_rate=1e-2)
    attack.refuse(subject)
    with attack.stages(subject) as stages:
        stage = next(stages)
        moved = {n: not torch.equal(p, unchanged.weights[n]) for n, p in model.named_parameters()}
        assert all(moved.values()), [name for name, it in moved.items() if not it]
        assert shared(model) == set(), "each network moves by itself"
        assert stage.facts["weights_trained"] == sum(p.numel() for p in model.parameters())
        assert stage.facts["loss"] < 0.9 * stage.facts["loss_before"]
        attacked = logits(model)
    unchanged.check()
    assert torch.equal(logits(model), before)
    assert shared(model) == together
    for parameter in model.parameters():  # a pair that shares nothing is attacked alike
        parameter.data = parameter.data.clone()
    assert shared(model) == set()
    with attack.stages(subject) as stages:
        next(stages)
        torch.testing.assert_close(logits(model), attacked, rtol=1e-5, atol=1e-5)


def test_a_pair_has_no_adapter_to_train(subject):
    with pytest.raises(ModelError, match="use weights: all"):
        Relearn(weights="adapter").refuse(subject)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs unlearnkit[quantization]")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_each_network_is_rounded(subject, kind):
    model = subject.model
    unchanged = Unchanged(model)
    with Quantize(bits=[kind]).stages(subject) as stages:
        [stage] = stages
        made = stage.model
        assert (stage.facts["layers"], stage.facts["layers_left"]) == (14 + 7, 0)
        assert type(made) is type(model)
        assert made.config.weights == model.config.weights
        assert model_fingerprint(made) != model_fingerprint(model)
        parts = {role: quantized(network, kind)[0] for role, network in model.networks.items()}
        ids = torch.arange(3, 13).reshape(2, 5)
        with torch.no_grad():
            by_hand = model.combine([one(ids).logits for one in parts.values()])
        assert torch.equal(logits(made), by_hand)
        assert not torch.equal(by_hand, logits(model))
        with (
            pytest.raises(ModelError, match="quantised already"),
            Quantize().stages(replace(subject, model=made)),
        ):
            pass
    unchanged.check()
    assert shared(model), "the model itself shares as before"
