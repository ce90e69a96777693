"""Offset unlearning (arXiv 2404.11045): the combination as a policy, its gradient, its folder."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from helpers_training import data_sets, logs, lora, make_trainer, weights
from safetensors import safe_open

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.methods.offset import OffsetConfig
from unlearnkit.models.load import load_model
from unlearnkit.models.tiny import create_model, train_tokenizer
from unlearnkit.training import logprobs

TOKENS = torch.arange(3, 33).reshape(2, 15)


@pytest.fixture
def small(tiny_tokenizer, tmp_path):
    """The folder of a smaller model with the target's tokenizer."""
    model = create_model(tiny_tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=1)
    folder = tmp_path / "small"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`make(**settings)`: an offset trainer; the target may be given."""
    streams = data_sets(fictional_rows)

    def build(model=None, **settings):
        return make_trainer(
            "offset", tiny_model() if model is None else model, tiny_tokenizer, streams, tmp_path / "run",
            **settings,
        )  # fmt: skip

    return build


def logps(model, dtype=torch.float32):
    return torch.log_softmax(model(TOKENS).logits.to(dtype), -1)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
@torch.no_grad()
def test_it_begins_as_the_base_and_alpha_scales(make, tiny_model, small, own, adapter):
    """log p = s_b + alpha (s_t - s_u) up to a constant, by hand in float64; tuned = untuned leaves s_b."""
    trainer = make(small=None if own else small, alpha=1.5, peft_config=lora() if adapter else None)
    policy = trainer.model.eval()
    base = logps(tiny_model())
    torch.testing.assert_close(logps(policy), base, rtol=0, atol=5e-6)

    torch.manual_seed(0)
    for parameter in policy.network.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    untuned = tiny_model() if own else load_model(small)
    change = logps(policy.network, torch.float64) - logps(untuned, torch.float64)
    assert change.abs().max() > 0.1
    for alpha in (1.5, 0.5):
        trainer.served.alpha = alpha
        by_hand = torch.log_softmax(base.double() + alpha * change, -1)
        torch.testing.assert_close(
            logps(trainer.unlearned_model(), torch.float64), by_hand, rtol=0, atol=2e-5
        )
    torch.testing.assert_close(
        logps(policy, torch.float64), torch.log_softmax(base.double() + 1.5 * change, -1), rtol=0, atol=2e-5
    )


def test_the_target_as_its_own_small_model_is_plain_training(make, tiny_model, tiny_tokenizer, tmp_path):
    """alpha = 1: s_b + s_t - s_b = s_t, so the loss and the tuned weights are those of NPO on the target."""
    settings = {"optim": "sgd", "learning_rate": 0.05}
    trainer = make(**settings)
    streams = {name: trainer.mix.sources[name] for name in ()}  # the same rows, from the same fixture
    assert not streams
    trainer.train()
    plain = _plain(make, tiny_model, tiny_tokenizer, tmp_path, settings)
    assert len(logs(plain)) == len(logs(trainer))
    for one, other in zip(logs(trainer), logs(plain), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    after = weights(plain.model)
    start = weights(tiny_model())
    for name, p in weights(trainer.model.network).items():
        torch.testing.assert_close(p, after[name], rtol=0, atol=1e-5)
    assert max(float((after[n] - start[n]).abs().max()) for n in start) > 1e-2
