"""RMU (arXiv 2403.03218): value, control vector, what is trained and what is not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers_training import data_sets, logs, lora, make_trainer, weights
from safetensors.torch import load_file

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.methods import rmu
from unlearnkit.methods.rmu import (
    HeldInPlace,
    Misdirection,
    RMUConfig,
    RMUTrainer,
    Steering,
    control_vector,
    squared_distance,
)
from unlearnkit.models.tiny import create_model
from unlearnkit.recipe import MixSpec
from unlearnkit.training import hidden, reference
from unlearnkit.training.objective import Step, WeightedSum, as_counts, count_streams, tap_of

STREAMS = ("forget", "retain")


@pytest.fixture
def deep_model(tiny_tokenizer):
    """Five layers, so that there are some above and below those that are trained."""
    return lambda: create_model(tiny_tokenizer, hidden_size=32, num_layers=5, num_heads=2)


@pytest.fixture
def make(deep_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`make(**settings)`: an RMU trainer on the five-layer model."""
    streams = data_sets(fictional_rows)

    def build(model=None, **settings):
        settings = {"num_train_epochs": 1, **settings}
        return make_trainer(
            "rmu", deep_model() if model is None else model, tiny_tokenizer, streams, tmp_path, **settings
        )

    return build


# ---- The formula -------------------------------------------------------------------------------------------


def test_squared_distance():
    """(1, 2) to (4, -2) is 9 + 16 = 25, over s = 2; gradient 2 (h - goal) / s = (-3, 4)."""
    h = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = squared_distance(h, torch.tensor([4.0, -2.0], dtype=torch.float64), 2.0)
    assert loss.tolist() == [12.5]
    assert torch.autograd.grad(loss.sum(), h)[0].tolist() == [[-3.0, 4.0]]
    assert squared_distance(h.detach().bfloat16(), torch.zeros(2), 2).dtype == torch.float32


def test_the_control_vector_is_of_norm_one_in_the_positive_orthant():
    """|c u| = c. The mean of U[0, 1] is 1/2 and of its square 1/3: the mean entry of u is about
    (1/2) / sqrt(d/3) = sqrt(3) / (2 sqrt d).
    """
    u = control_vector(4096, seed=0)
    assert u.dtype == torch.float32
    assert (6.5 * u).norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (u >= 0).all()
    assert u.mean().item() == pytest.approx(math.sqrt(3) / 2 / 64, rel=0.03)


def test_the_control_vector_depends_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = control_vector(32, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(control_vector(32, seed=5), first)
    assert not torch.equal(control_vector(32, seed=6), first)


class _Shifted:
    """A reference whose hidden states are those of another model, plus a constant."""

    def __init__(self, model, shift):
        self.frozen, self.shift = reference.FrozenModel(model), shift

    def hidden_states(self, batch, layer):
        return self.frozen.hidden_states(batch, layer) + self.shift


def test_closed_form_on_a_step(tiny_model):
    """Three answer tokens to forget and one to keep, in float64.

    Forget: the mean over the three of |h - c u|^2 / s. Retain: the reference lies 0.5 away in each of the 32
    entries, so |h - h_ref|^2 = 32 / 4 = 8, over s.
    """
    model = tiny_model().double()
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORE, IGNORE, 7, 8, 9]}
    kept = {"input_ids": [11, 12, 13], "labels": [IGNORE, IGNORE, 13]}
    batch = StreamCollator(STREAMS, pad_id=0)([{"forget": [row], "retain": [kept]}])
    steering = Steering(3.0, layer=1)
    steering.load_state_dict(
        {
            "control_vector": control_vector(32, 0),
            "coefficient": torch.tensor(3.0),
            "divisor": torch.tensor(4.0),
        }
    )
    objective = WeightedSum(((1.0, Misdirection(steering)), (10.0, HeldInPlace(steering))))
    assert objective.streams == STREAMS
    counts = as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS)
    out = objective(Step(model, batch, counts, _Shifted(model, 0.5), tap=tap_of(objective)), batch)

    states = []
    handle = model.model.layers[1].register_forward_hook(lambda *args: states.append(args[2]))
    model(input_ids=torch.tensor([row["input_ids"]]))
    handle.remove()
    h = states[0][0, 2:].detach()
    u = control_vector(32, 0).double()
    expected = sum(((h[t] - 3 * u) ** 2).sum().item() / 4 for t in range(3)) / 3
    assert out.metrics["forget/rmu"].item() == pytest.approx(expected, rel=1e-12)
    assert out.metrics["retain/hidden"].item() == pytest.approx(8 / 4, rel=1e-12)
    assert out.loss.item() == pytest.approx(expected + 10 * 2, rel=1e-12)
    norms = [h[t].norm().item() for t in range(3)]
    assert out.metrics["forget/activation_norm"].item() == pytest.approx(sum(norms) / 3, rel=1e-12)
    cosines = [(h[t] @ u).item() / n for t, n in enumerate(norms)]
    assert out.metrics["forget/cosine"].item() == pytest.approx(sum(cosines) / 3, rel=1e-6)


# ---- What is trained ---------------------------------------------------------------------------------------


def test_only_what_was_chosen_changes(make):
    """All else to the bit: above the layer, below the trained ones, and beside the chosen matrices."""
    trainer = make(layer=3, train_layers=[2, 3], num_train_epochs=2)
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, p in weights(trainer.model).items() if not torch.equal(p, before[name])}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (2, 3)}


def test_parameters_can_be_named(make):
    trainer = make(layer=1, train_layers=[1], parameters=["self_attn.[qk]_proj", "mlp.up_proj"])
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {
        f"model.layers.1.{n}.weight" for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    }


@pytest.mark.parametrize(("settings", "layers"), [({}, {0, 1}), ({"layer": 4}, {2, 3, 4}),
                                                  ({"layer": 4, "train_layers": [1]}, {1})])  # fmt: skip
def test_adapters_that_the_loss_does_not_reach_are_frozen(make, settings, layers):
    trainer = make(peft_config=lora(), **settings)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in trained} == layers
    assert len(trained) == 14 * len(layers)
    assert all("lora_" in name for name in trained)


def test_an_adapter_can_be_narrowed(make):
    trainer = make(peft_config=lora(), layer=2, train_layers=[2], parameters=["down_proj"])
    trained = {name.split(".layers.")[1] for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {f"2.mlp.down_proj.lora_{part}.default.weight" for part in "AB"}


# ---- The run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_it_starts_at_the_reference_and_steers(make, adapter):
    """At step 0 the retain term is 0 and |h - c u|^2 / m^2 is near 1 + c^2 = 26 (h and u nearly at right
    angles); then the activations of the forget set turn towards u."""
    trainer = make(peft_config=lora() if adapter else None, num_train_epochs=8, layer=2, alpha=1.0)
    assert trainer.reference_name == ("adapter_off" if adapter else "frozen")
    trainer.train()
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert first["retain/hidden"] < 1e-12
    assert first["forget/rmu"] == pytest.approx(26, rel=0.15)
    assert last["forget/rmu"] < 0.5 * first["forget/rmu"]
    assert last["forget/cosine"] > 0.8
    assert last["forget/activation_norm"] > 2 * first["forget/activation_norm"]


def test_nothing_above_the_layer_is_computed(make):
    """Neither by the policy nor by the reference, whose copy holds the layers below alone."""
    trainer = make(layer=1)
    called = []
    for i, layer in enumerate(trainer.model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    trainer.train()
    assert set(called) == {0, 1}
    frozen = trainer._reference.model
    assert len(hidden.layer_list(frozen).layers) == frozen.config.num_hidden_layers == 2
    assert len(trainer.model.model.layers) == 5


@pytest.mark.parametrize(("retain", "metric"), [("nll", "retain/nll"), ("kl", "retain/kl"), ("none", None)])
def test_other_retain_terms_share_one_whole_pass(make, retain, metric):
    trainer = make(layer=1, retain=retain)
    passes = []
    trainer.model.model.layers[1].register_forward_hook(lambda *_: passes.append(1))
    trainer.train()
    steps = logs(trainer)
    assert len(passes) == len(steps) + len(steps)  # training, and the 3 batches whose norms were measured
    assert "retain/hidden" not in steps[0]
    assert metric is None or metric in steps[0]
    assert len(trainer.objective.terms) == 1 + (metric is not None)


def test_the_coefficient_is_measured_in_the_models_own_norms(make, deep_model):
    """c = 2 m, s = m^2 with m = mean |h| over all answer tokens of the forget set, whatever the batches."""
    trainer = make(layer=1, steering=2.0, per_device_train_batch_size=3)
    trainer.train()
    norms = []
    for row in trainer.tokenized["forget"].rows:
        out = deep_model()(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
        answer = torch.tensor(row["labels"]) != IGNORE
        norms.append(out.hidden_states[2][0][answer].detach().norm(dim=-1))
    m = torch.cat(norms).mean().item()
    assert trainer.steering.coefficient.item() == pytest.approx(2 * m, rel=1e-5)
    assert trainer.steering.divisor.item() == pytest.approx(m**2, rel=1e-5)
    assert logs(trainer)[0]["forget/activation_norm"] == pytest.approx(m, rel=0.2)


def test_an_absolute_coefficient_is_the_papers(make):
    trainer = make(steering=6.5, steering_scale="absolute", alpha=1200.0)
    trainer.train()
    assert trainer.steering.coefficient.item() == 6.5
    assert trainer.steering.divisor.item() == 32
    assert [weight for weight, _ in trainer.objective.terms] == [1.0, 1200.0]


def test_a_large_forget_set_is_measured_on_some_rows(make, monkeypatch):
    trainer = make(layer=1)
    monkeypatch.setattr(rmu, "_MEASURED_ROWS", 4)
    rows = trainer.tokenized["forget"].rows
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: seen.extend(item["forget"][0] for item in items) or collate(items)
    trainer.model_wrapped = trainer.model
    assert rmu.mean_activation_norm(trainer, 1, "forget") > 0
    assert seen == [rows[i] for i in (0, 3, 6, 9)]


def test_a_checkpoint_holds_the_goal(make, tmp_path):
    """And a resumed run takes it from there: also after the seed of the recipe was changed."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "layer": 1}
    trainer = make(**settings)
    torch.manual_seed(3)
    trainer.train()
    stored = load_file(tmp_path / "checkpoint-1" / "objective.safetensors")
    kept = {name.partition(".")[2]: value for name, value in stored.items()}
    assert torch.equal(kept["control_vector"], control_vector(32, trainer.args.seed))
    resumed = make(**settings, seed=9)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, value in resumed.steering.state_dict().items():
        assert torch.equal(value, kept[name])
        assert torch.equal(value, trainer.steering.state_dict()[name])


def test_a_second_training_keeps_the_goal(make):
    trainer = make()
    trainer.train()
    before = {name: value.clone() for name, value in trainer.steering.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.steering.state_dict().items())


def _child(folder, model, tokenizer, streams):
    settings = {"per_device_train_batch_size": 2, "peft_config": lora(), "layer": 2, "steering": 2.0}
    trainer = make_trainer("rmu", model, tokenizer, streams, Path(folder), **settings)
    trainer.train()
    rank = torch.distributed.get_rank()
    torch.save({**trainer.steering.state_dict(), "weights": weights(trainer.model), "logs": logs(trainer)},
               Path(folder) / f"{rank}.pt")  # fmt: skip
    torch.distributed.barrier()


def test_two_processes(deep_model, tiny_tokenizer, fictional_rows, tmp_path):
    """DDP sees no parameter without a gradient; the goal is the same in both, and that of one process."""
    import transformers  # noqa: F401  # imported once, before the fork
    from accelerate import debug_launcher

    streams = data_sets(fictional_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        debug_launcher(_child, (str(tmp_path), deep_model(), tiny_tokenizer, streams), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    single = make_trainer(
        "rmu", deep_model(), tiny_tokenizer, streams, tmp_path, peft_config=lora(), layer=2, steering=2.0
    )
    single.train()
    for name, value in single.steering.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=0)
    assert all(torch.equal(p, second["weights"][n]) for n, p in first["weights"].items())
    assert first["logs"][-1]["loss"] == pytest.approx(logs(single)[-1]["loss"], rel=1e-3)


# ---- Settings that cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"steering": 0.0}, r"training\.steering must be above 0, found 0\.0; the default"),
    ({"steering": -1.0}, r"training\.steering must be above 0"),
    ({"steering": math.nan}, r"training\.steering must be above 0"),
    ({"steering_scale": "norm"}, r"training\.steering_scale is 'norm'; use activation or absolute$"),
    ({"alpha": -1.0}, r"training\.alpha must not be negative, found -1\.0; 0 leaves"),
    ({"retain": "hiden"}, r"training\.retain is 'hiden'; use one of hidden, nll, kl, reverse_kl, none$"),
    ({"layer": -1}, r"training\.layer is -1; layers are counted from 0"),
    ({"layer": 3, "train_layers": [3, 4]}, r"train_layers names layer 4, .* output of layer 3; use layers"),
    ({"train_layers": []}, r"training\.train_layers is empty"),
    ({"parameters": []}, r"training\.parameters is empty"),
])  # fmt: skip
def test_refused_before_a_model_is_loaded(settings, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        RMUConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"layer": 5}, r"training\.layer is 5, but the model has 5 layers; use one of 0 to 4$"),
    ({"train_layers": [2]}, r"train_layers names layer 2, .* layer 1; use layers from 0 to 1"),
    ({"parameters": ["down_proj", "c_fc"]},
     r"training\.parameters names 'c_fc', which matches nothing trainable in layers 0, 1 of this model; set "
     r"training\.parameters to some of: .*self_attn\.q_proj, .*mlp\.down_proj"),
    ({"reference": "cached"}, r"needs reference hidden states, .* use reference: auto or frozen, or ret"),
    ({"reference": "adapter_off"}, r"adapter_off, but no new LoRA adapter is trained"),
])  # fmt: skip
def test_refused_before_training(make, settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make(**settings)


def test_an_adapter_elsewhere_is_refused(make):
    with pytest.raises(RecipeError, match=r"nothing is trainable there; name other training\.train_layers"):
        make(peft_config=lora(layers_to_transform=[4], target_modules=["down_proj"]))


def test_the_trainer_composes_terms_for_all_retain_streams(make):
    trainer = make(retain_weight=0.5, alpha=10.0, forget_weight=2.0)
    assert isinstance(trainer, RMUTrainer)
    assert [(weight, term.stream) for weight, term in trainer.objective.terms] == [
        (2.0, "forget"), (5.0, "retain"),
    ]  # fmt: skip
    assert len(make(alpha=0.0).objective.terms) == 1


def test_layers_that_are_frozen_stay_so_while_the_adapter_is_switched_off(make):
    """The adapter of layer 0 is not trained. If switching it off for the reference brought its gradient back,
    the norm by which all gradients are clipped would differ from that beside a frozen copy.
    """
    settings = {"layer": 1, "train_layers": [1], "max_grad_norm": 0.01, "num_train_epochs": 2}
    norms, trained = [], []
    for provider in ("adapter_off", "frozen"):
        trainer = make(peft_config=lora(), reference=provider, **settings)
        before = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        trainer.train()
        assert [name for name, p in trainer.model.named_parameters() if p.requires_grad] == before
        norms.append([step["grad_norm"] for step in logs(trainer)])
        trained.append(before)
    assert trained[0] == trained[1]
    assert not any(".layers.0." in name for name in trained[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_first_step_without_forget_rows_is_no_mistake(make):
    """The retain term has no gradient at the reference, and a step of a weighted mixture may hold nothing
    else: that says nothing about what can be learned."""
    mix = MixSpec(weights={"forget": 0.1, "retain": 0.9}, anchor=None)
    trainer = make(mix=mix, per_device_train_batch_size=1, num_train_epochs=1)
    trainer.train()
    norms = [step["grad_norm"] for step in logs(trainer)]
    assert norms[0] == 0.0
    assert max(norms) > 0.0


def test_zero_gradients_are_refused_once_every_stream_was_met(make):
    """One row a step: no step holds both streams, and still a run that learns nothing stops."""
    mix = MixSpec(weights={"forget": 0.5, "retain": 0.5}, anchor=None)
    trainer = make(mix=mix, per_device_train_batch_size=1, forget_weight=0.0, num_train_epochs=2)
    with pytest.raises(ModelError, match="all gradients are zero"):
        trainer.train()
