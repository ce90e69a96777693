"""Muon and AdamW as one optimizer: the same steps, one schedule, exact checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnkit.errors import ModelError
from unlearnkit.training.optim import MuonWithAdamW, build_muon

SETTINGS = {"lr": 0.02, "adamw_lr": 0.003, "weight_decay": 0.1, "momentum": 0.9}


def tiny_model(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(model, optimizer, steps, scheduler=None):
    for step in steps:
        ids = torch.randint(24, (2, 7), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same(one, two):
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_two_optimizers_run_separately(tied):
    joined, separate = tiny_model(tied), tiny_model(tied)
    hidden = [p for n, p in separate.named_parameters() if p.ndim == 2 and "layers" in n]
    outer = [p for n, p in separate.named_parameters() if p.ndim == 2 and "layers" not in n]
    norms = [p for p in separate.parameters() if p.ndim == 1]
    assert len(hidden) == 14
    assert len(outer) == (1 if tied else 2)
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1, momentum=0.9)
    adamw = torch.optim.AdamW(
        [{"params": outer, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=0.003,
        betas=(0.9, 0.95),
    )

    class Both:
        def zero_grad(self):
            muon.zero_grad()
            adamw.zero_grad()

        def step(self):
            muon.step()
            adamw.step()

    train(joined, build_muon(joined, **SETTINGS), range(3))
    train(separate, Both(), range(3))
    assert_same(joined, separate)
    assert not torch.equal(joined.lm_head.weight, tiny_model(tied).lm_head.weight)


def schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def test_resumed_from_a_checkpoint_equals_a_straight_run(tmp_path):
    straight = tiny_model()
    optimizer = build_muon(straight, **SETTINGS)
    train(straight, optimizer, range(6), schedule(optimizer))

    first = tiny_model()
    optimizer = build_muon(first, **SETTINGS)
    scheduler = schedule(optimizer)
    train(first, optimizer, range(3), scheduler)
    file = tmp_path / "checkpoint.pt"
    torch.save([first.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)

    weights, state, position = torch.load(file, weights_only=True)
    second = tiny_model()
    second.load_state_dict(weights)
    optimizer = build_muon(second, **SETTINGS)
    scheduler = schedule(optimizer)
    optimizer.load_state_dict(state)
    scheduler.load_state_dict(position)
    train(second, optimizer, range(3, 6), scheduler)
    assert_same(straight, second)


def test_a_copy_goes_on_alike():
    model = tiny_model()
    optimizer = build_muon(model, **SETTINGS)
    train(model, optimizer, range(2))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(2, 4))
    train(twin, twin_optimizer, range(2, 4))
    assert_same(model, twin)


@pytest.mark.parametrize("frozen", ["muon", "adamw"])
def test_a_scheduler_reaches_both_algorithms(frozen):
    model = tiny_model()
    optimizer = build_muon(model, **SETTINGS)
    factors = [float(group["algorithm"] != frozen) for group in optimizer.param_groups]
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _, f=factor: f for factor in factors])
    train(model, optimizer, range(2))
    moved = {
        name: not torch.equal(a, b)
        for (name, a), b in zip(model.named_parameters(), tiny_model().parameters(), strict=True)
    }
    hidden = {name for name in moved if "proj" in name}
    assert {moved[name] for name in hidden} == {frozen != "muon"}
    assert {moved[name] for name in moved.keys() - hidden} == {frozen != "adamw"}


def test_accelerate_wraps_it():
    plain, wrapped = tiny_model(), tiny_model()
    train(plain, build_muon(plain, **SETTINGS), range(3))
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(wrapped, build_muon(wrapped, **SETTINGS))
    train(model, optimizer, range(3))
    assert_same(plain, wrapped)
    assert len(optimizer.state_dict()["state"]) == len(list(plain.parameters()))


def test_closure_is_called_and_its_loss_returned():
    layer = nn.Linear(2, 2)
    optimizer = build_muon(layer, **SETTINGS)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    before = layer.weight.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert not torch.equal(before, layer.weight)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_refused():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert [group["algorithm"] for group in build_muon(layer, **SETTINGS).param_groups] == ["muon"]
    layer.weight.requires_grad_(False)
    with pytest.raises(ModelError, match="trainable"):
        build_muon(layer, **SETTINGS)
    with pytest.raises(ModelError, match="algorithm 'sgd'"):
        MuonWithAdamW([{"params": [torch.zeros(2, 2)], "algorithm": "sgd"}])
