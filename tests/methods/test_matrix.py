"""What must hold for every method; a new one enters by lying in `unlearnkit/methods`."""

from __future__ import annotations

import math
import re

import pytest
import torch
from helpers_training import (
    assert_same_logs,
    assert_same_training,
    data_sets,
    difference,
    logs,
    lora,
    make_trainer,
    weights,
)

from unlearnkit import lookup
from unlearnkit.data.collate import StreamCollator
from unlearnkit.recipe import MixSpec
from unlearnkit.training.callbacks import last_complete_checkpoint

#: SGD: Adam divides rounding errors by themselves where a gradient is nearly zero.
SGD = {"optim": "sgd", "learning_rate": 0.05}


@pytest.fixture(params=lookup.methods())
def method(request):
    """Each method's name."""
    return request.param


@pytest.fixture
def trained(method, tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`trained(**settings)`: a trainer of the method that has been run; the model may be given."""
    streams = data_sets(fictional_rows)

    def run(model=None, resume=None, **settings):
        trainer = make_trainer(
            method, tiny_model() if model is None else model, tiny_tokenizer, streams, tmp_path, **settings
        )
        trainer.before = weights(trainer.model)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def test_the_loss_is_finite_and_falls(trained):
    """Every step sees everything, so that its loss is one function of the weights."""
    trainer = trained(
        per_device_train_batch_size=16, num_train_epochs=6, learning_rate=5e-3,
        mix=MixSpec(epoch_policy="fixed", anchor=None),
    )  # fmt: skip
    losses = [step["loss"] for step in logs(trainer)]
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 1e-3
    assert all(math.isfinite(value) for step in logs(trainer) for value in step.values())


@pytest.mark.parametrize(("rows", "steps"), [(2, 4), (1, 8)])
def test_accumulation_does_not_matter(trained, rows, steps):
    """Global batches of 8 and 2: unequal answers, and a last batch that is not full."""
    whole = trained(per_device_train_batch_size=8, gradient_accumulation_steps=1, **SGD)
    split = trained(per_device_train_batch_size=rows, gradient_accumulation_steps=steps, **SGD)
    assert len(logs(whole)) == 4
    assert_same_logs(logs(split), logs(whole), rel=1e-5)
    assert_same_training(weights(split.model), weights(whole.model), whole.before)


@pytest.mark.parametrize("layout", [{"side": "left"}, {"multiple_of": 16}])
def test_padding_does_not_matter(trained, tiny_tokenizer, layout):
    plain = trained(**SGD)
    streams = plain.data_collator.streams
    padded = trained(
        data_collator=StreamCollator(streams, pad_id=tiny_tokenizer.eos_token_id, **layout), **SGD
    )
    assert_same_logs(logs(padded), logs(plain), rel=1e-5)
    assert_same_training(weights(padded.model), weights(plain.model), plain.before)


def own_name(name):
    """A parameter's name in the target model, wherever that lies in what is trained."""
    return re.sub(r"^(networks\.\w+\.)?(base_model\.model\.)?", "", name).replace(".base_layer", "")


def test_only_the_adapter_is_trained_and_it_can_be_kept(trained, tiny_model, tmp_path):
    """LoRA: the base stays as it was to the bit; what is served answers alike once saved and loaded."""
    from unlearnkit.models.load import load_model, quiet_peft

    target = tmp_path / "target"
    tiny_model().save_pretrained(target)
    trainer = trained(model=load_model(str(target)), peft_config=lora())
    base = weights(tiny_model())
    parts = dict(trainer.model.named_parameters())
    # The embeddings are tied: only a value network has a head of its own, and it is trained.
    frozen = {n: p for n, p in parts.items() if "lora_" not in n and not n.endswith("lm_head.weight")}
    assert {own_name(n) for n in frozen} <= base.keys()
    assert all(torch.equal(p, base[own_name(n)]) for n, p in frozen.items())
    layers = len({n for n in parts if "lora_B" in n and "down_proj" in n})
    adapter = {n: p for n, p in parts.items() if "lora_B" in n}
    assert layers >= 1
    assert len(adapter) == 7 * layers
    assert all(float(p.detach().abs().max()) > 0 for p in adapter.values())

    tokens = torch.arange(3, 33).reshape(2, 15)
    with torch.no_grad():
        expected = trainer.unlearned_model().eval()(tokens).logits
        trainer.save_model(str(tmp_path / "adapter"))
        loaded = load_model(str(tmp_path / "adapter"))
        torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=0)
        if hasattr(trainer.model, "merge_and_unload"):
            own = trainer.model.eval()(tokens).logits
            with quiet_peft():
                merged = trainer.model.merge_and_unload(safe_merge=True)
            torch.testing.assert_close(merged(tokens).logits, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_activation_checkpointing_does_not_matter(trained, adapter, reentrant):
    runs = [
        trained(peft_config=lora(init_lora_weights=False) if adapter else None, **settings, **SGD)
        for settings in (
            {},
            {
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
            },
        )
    ]
    assert_same_logs(logs(runs[1]), logs(runs[0]), rel=1e-5)
    assert difference(weights(runs[1].model), weights(runs[0].model)) < 1e-6


def test_bf16_is_near_fp32(trained):
    """Losses are float32 sums of log-probs of rounded logits."""
    full, half = (
        trained(bf16=flag, per_device_train_batch_size=16, num_train_epochs=2, **SGD)
        for flag in (False, True)
    )
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert_same_logs(
        [{"loss": step["loss"]} for step in logs(half)],
        [{"loss": step["loss"]} for step in logs(full)],
        rel=1e-2,
    )


def test_a_resumed_run_is_the_straight_run(trained):
    """From the middle of an epoch (step 2 of 3) and from its end (step 3): equal to the bit."""
    settings = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    straight = trained(**settings)
    folder = straight.args.output_dir
    for step in (2, 3):
        resumed = trained(resume=f"{folder}/checkpoint-{step}", **settings)
        assert resumed.state.global_step == straight.state.global_step == 9
        after = weights(straight.model)
        assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())
        assert_same_logs(logs(resumed), logs(straight), rel=0.0)
    assert last_complete_checkpoint(folder).name == "checkpoint-9"
