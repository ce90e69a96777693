"""Inverse value learning (arXiv 2410.21027): silent at the start, what it learns, and another base."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers_training import data_sets, logs, lora, make_trainer, weights

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.methods.value import ValueConfig, logit_variance, transplant
from unlearnkit.models.load import load_model
from unlearnkit.models.tiny import create_model, train_tokenizer
from unlearnkit.training import logprobs

TOKENS = torch.arange(3, 33).reshape(2, 15)


@pytest.fixture
def save(tiny_tokenizer, tmp_path):
    """`save(name, **shape)`: the folder of another model; by default with the base's tokenizer."""

    def write(name, tokenizer=tiny_tokenizer, **shape):
        model = create_model(tokenizer, **{"hidden_size": 16, "num_layers": 1, "num_heads": 2, **shape})
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def make(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`make(**settings)`: a value trainer; the base may be given."""
    streams = data_sets(fictional_rows)

    def build(model=None, **settings):
        base = tiny_model() if model is None else model
        return make_trainer("value", base, tiny_tokenizer, streams, tmp_path / "run", **settings)

    return build


def logps(model, dtype=torch.float32):
    return torch.log_softmax(model(TOKENS).logits.to(dtype), -1)


def by_hand(base, value, alpha):
    """log p_base + alpha log p_value, normalised, in float64."""
    logits = (model(TOKENS).logits.double() for model in (base, value))
    first, second = (torch.log_softmax(z, -1) for z in logits)
    return torch.log_softmax(first + alpha * second, -1)


def test_the_variance_by_hand():
    """Of 1, 2, 3, 6: mean 3, squares 4, 1, 0, 9, so 14/4; a constant is free; gradient 2 (z - mean) / V."""
    z = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    values = logit_variance(z)
    assert values.tolist() == [3.5, 0.0]
    assert logit_variance(z + 100).tolist() == pytest.approx([3.5, 0.0])
    values.sum().backward()
    assert z.grad.tolist() == [[-1.0, -0.5, 0.0, 1.5], [0.0] * 4]
    assert logit_variance(z.detach().bfloat16()).dtype == torch.float32
    assert logit_variance(z[:0]).shape == (0,)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
def test_it_begins_as_the_base(make, tiny_model, save, own, adapter):
    """A head of zeros says the same of every token: log p_value = -log V everywhere."""
    target = tiny_model()
    trainer = make(
        model=target, small=None if own else save("small"), peft_config=lora() if adapter else None
    )
    policy = trainer.model.eval()
    with torch.no_grad():
        output = policy(TOKENS)
        assert output.network_logits[1].abs().max() == 0
        torch.testing.assert_close(
            torch.log_softmax(output.logits, -1), logps(tiny_model()), rtol=0, atol=5e-6
        )
    value = policy.network.get_base_model() if adapter else policy.network
    assert value.get_input_embeddings().weight.abs().max() > 0  # the head was tied to them
    assert target.get_output_embeddings().weight.abs().max() > 0


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_only_the_value_network_is_trained(make, tiny_model, save, adapter):
    """With an adapter: that and the head. The base has no gradient, and stays as it was to the bit."""
    trainer = make(small=save("small"), peft_config=lora() if adapter else None)
    before = weights(trainer.model)
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(n.startswith("networks.value.") for n in trainable)
    if adapter:
        assert {n for n in trainable if "lora_" not in n} == {
            "networks.value.base_model.model.lm_head.weight"
        }
    trainer.train()
    after = weights(trainer.model)
    assert {n for n in before if not torch.equal(after[n], before[n])} == trainable
    assert all(torch.equal(p, after[f"networks.base.{n}"]) for n, p in tiny_model().named_parameters())


def test_loss_and_gradient_are_those_of_the_formula(make, tiny_model):
    """Cross-entropy of the sum plus norm_weight times the variance, by hand in float64."""
    trainer = make(norm_weight=0.3, alpha=0.8, model=tiny_model().double())
    policy = trainer.model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        policy.network.get_output_embeddings().weight.normal_(std=0.5)
    rows = [trainer.mix[i] for i in range(3)]
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(policy, batch)
    gradient = torch.autograd.grad(loss, list(policy.network.parameters()))

    base, value = policy.networks["base"], policy.network
    nll, variance, count = 0.0, 0.0, 0
    for row in (part for item in rows for part in item["train"]):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        z = value(ids).logits
        log_sum = torch.log_softmax(base(ids).logits, -1) + 0.8 * torch.log_softmax(z, -1)
        combined = torch.log_softmax(log_sum, -1)
        for t in range(1, ids.shape[1]):
            if labels[0, t] != logprobs.IGNORE:
                nll = nll - combined[0, t - 1, labels[0, t]]
                variance = variance + z[0, t - 1].var(correction=0)
                count += 1
    expected = (nll + 0.3 * variance) / count
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, list(value.parameters())), rtol=1e-7, atol=1e-10
    )


def test_it_learns_and_the_norm_holds_it_back(make):
    plain, held = (make(norm_weight=w, learning_rate=3e-3, num_train_epochs=6) for w in (0.0, 5.0))
    for trainer in (plain, held):
        trainer.train()
        first, last = logs(trainer)[0], logs(trainer)[-1]
        assert first["train/value_variance"] == 0.0
        assert last["train/nll"] < first["train/nll"] - 0.05
    key = "train/value_variance"
    assert 0 < logs(held)[-1][key] < 0.5 * logs(plain)[-1][key]


def test_with_an_adapter_a_resumed_run_is_the_straight_run(make, save):
    settings = {"small": save("small"), "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    straight = make(peft_config=lora(), **settings)
    straight.train()
    resumed = make(peft_config=lora(), **settings)
    resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-4")
    after = weights(straight.model)
    assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_a_trained_value_network_is_saved_and_transplanted(make, save, tmp_path, named, own, adapter):
    """log p_large + alpha log p_value, whichever way the value network lay in the folder."""
    base = load_model(save("base", hidden_size=32)) if named else None
    trainer = make(
        model=base, small=None if own else save("small"), peft_config=lora() if adapter else None,
        num_train_epochs=1,
    )  # fmt: skip
    trainer.train()
    saved, out = str(tmp_path / "saved"), str(tmp_path / "out")
    trainer.save_model(saved)
    served = trainer.unlearned_model()
    loaded = load_model(saved)
    assert loaded.config.kind == "value"
    with torch.no_grad():
        torch.testing.assert_close(logps(loaded), logps(served), rtol=0, atol=1e-6)
        large = save("large", hidden_size=48, num_layers=3, seed=5)
        made = transplant(saved, large, out, alpha=0.6)
        expected = by_hand(load_model(large), served.networks["value"], 0.6)
        assert (expected - logps(load_model(large), torch.float64)).abs().max() > 1e-2
        for model in (made, load_model(out)):
            torch.testing.assert_close(logps(model, torch.float64), expected, rtol=0, atol=2e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sources"]["base"]["path"] == large
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_what_cannot_be_transplanted_is_refused(make, save, tmp_path):
    large = save("large", hidden_size=48)
    with pytest.raises(ModelError, match="holds no value network; name the model folder of a run"):
        transplant(large, large, tmp_path / "out")
    trainer = make(num_train_epochs=1)
    trainer.save_model(str(tmp_path / "saved"))
    other = save("other", train_tokenizer(["some other text"], vocab_size=300))
    with pytest.raises(ModelError, match=r"different vocabularies \(base \d+, value 512 tokens\)"):
        transplant(tmp_path / "saved", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, r"training\.alpha must be a number above 0, found -1"),
        ({"norm_weight": -0.1}, r"training\.norm_weight must not be negative, found -0\.1"),
        ({"norm_weight": math.inf}, r"training\.norm_weight must not be negative, found inf"),
    ],
)
def test_settings_that_cannot_work(settings, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        ValueConfig(output_dir=str(tmp_path), **settings)
