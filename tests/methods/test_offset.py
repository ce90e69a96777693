"""Offset unlearning (arXiv 2404.11045): the combination as a policy, its gradient, its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers_runs import command
from helpers_training import data_sets, logs, lora, make_trainer, weights
from safetensors import safe_open

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.methods.offset import OffsetConfig
from unlearnkit.models.load import load_model
from unlearnkit.models.tiny import create_model, train_tokenizer

TOKENS = torch.arange(3, 33).reshape(2, 15)
SGD = {"optim": "sgd", "learning_rate": 0.05}


@pytest.fixture
def save_small(tiny_tokenizer, tmp_path):
    """`save_small(tokenizer)`: the folder of a smaller model; by default with the target's tokenizer."""

    def save(tokenizer=tiny_tokenizer):
        folder = tmp_path / "small"
        create_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def make(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`make(**settings)`: an offset trainer; the target and the method may be given."""
    streams = data_sets(fictional_rows)

    def build(model=None, method="offset", **settings):
        target = tiny_model() if model is None else model
        return make_trainer(method, target, tiny_tokenizer, streams, tmp_path / "run", **settings)

    return build


def logps(model, dtype=torch.float32):
    return torch.log_softmax(model(TOKENS).logits.to(dtype), -1)


def disturb(model):
    """Change what is trained."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
@torch.no_grad()
def test_it_begins_as_the_base_and_alpha_scales(make, tiny_model, save_small, own, adapter):
    """log p = s_b + alpha (s_t - s_u) up to a constant, by hand in float64; tuned = untuned leaves s_b."""
    small = None if own else save_small()
    trainer = make(small=small, alpha=1.5, peft_config=lora() if adapter else None)
    policy = trainer.model.eval()
    base = logps(tiny_model())
    torch.testing.assert_close(logps(policy), base, rtol=0, atol=5e-6)

    disturb(policy)
    untuned = tiny_model() if small is None else load_model(small)
    change = logps(policy.network, torch.float64) - logps(untuned, torch.float64)
    assert change.abs().max() > 0.1
    for alpha, model in ((1.5, policy), (1.5, None), (0.5, None)):
        trainer.served.alpha = alpha
        by_hand = torch.log_softmax(base.double() + alpha * change, -1)
        found = logps(model or trainer.unlearned_model(), torch.float64)
        torch.testing.assert_close(found, by_hand, rtol=0, atol=2e-5)


def test_the_target_as_its_own_small_model_is_plain_training(make, tiny_model):
    """alpha = 1: s_b + s_t - s_b = s_t, so losses and tuned weights are those of NPO on the target."""
    offset, plain = make(**SGD), make(method="npo", **SGD)
    for trainer in (offset, plain):
        trainer.train()
    assert [s["loss"] for s in logs(offset)] == pytest.approx([s["loss"] for s in logs(plain)], rel=1e-5)
    tuned, after, start = weights(offset.model.network), weights(plain.model), weights(tiny_model())
    assert max(float((after[n] - start[n]).abs().max()) for n in start) > 1e-2
    for name, p in tuned.items():
        torch.testing.assert_close(p, after[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_only_tuned_is_trained(make, tiny_model, save_small, adapter):
    """The gradient is alpha that of s_t; base and untuned have none, and end as they began."""
    small = save_small()
    trainer = make(small=small, alpha=2.0, peft_config=lora() if adapter else None, **SGD)
    policy = trainer.model
    before = weights(policy)
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert all(n.startswith("networks.tuned.") for n in trainable)
    assert all("lora_" in n for n in trainable) == adapter

    # d log p(y) / d z_t = alpha (onehot - softmax(l)), with l the combined logits.
    disturb(policy)
    output = policy(TOKENS)
    z_t = output.network_logits[1]
    logp = torch.log_softmax(output.logits, -1)[0, 3, 7]
    (found,) = torch.autograd.grad(logp, z_t, retain_graph=True)
    onehot = torch.nn.functional.one_hot(torch.tensor(7), z_t.shape[-1])
    # s_t = z_t - logsumexp z_t moves all combined logits alike, so only the direct part is left.
    expected = 2.0 * (onehot - torch.softmax(output.logits[0, 3], -1))
    torch.testing.assert_close(found[0, 3], expected, rtol=0, atol=1e-6)
    logp.backward()
    assert {n for n, p in policy.named_parameters() if p.grad is not None} == trainable

    trainer.train()
    after = weights(policy)
    assert {n for n in before if not torch.equal(after[n], before[n])} == trainable
    assert all(torch.equal(p, after[f"networks.base.{n}"]) for n, p in tiny_model().named_parameters())


def test_memory_is_shared_and_stays_so_when_it_moves(make):
    """Base, untuned and the weights below the adapter are one; another dtype is another memory for all."""
    policy = make(peft_config=lora()).model
    name = "model.layers.1.self_attn.v_proj"
    before = policy.networks["base"].get_submodule(name).weight.detach().clone()

    def places():
        tuned = policy.network.get_base_model().get_submodule(name).base_layer
        others = (policy.networks[role].get_submodule(name) for role in ("base", "untuned"))
        return {layer.weight.data_ptr() for layer in (tuned, *others)}

    assert len(places()) == 1
    old = places()
    policy.double()
    assert len(places()) == 1
    assert places() != old
    assert torch.equal(policy.networks["base"].get_submodule(name).weight, before.double())


def test_the_reference_is_the_base_itself(make, tiny_model):
    """Live: its memory, and an adapter that begins elsewhere changes nothing; cached: as for npo."""
    live = make(retain="kl", peft_config=lora(init_lora_weights=False))
    assert live.reference_name == "frozen"
    parameter = next(live._reference.model.parameters())
    assert parameter.data_ptr() == next(live.model.networks["base"].parameters()).data_ptr()
    torch.testing.assert_close(logps(live._reference.model), logps(tiny_model()), rtol=0, atol=0)
    with pytest.raises(RecipeError, match="adapter_off, but no new LoRA adapter"):
        make(reference="adapter_off", peft_config=lora())

    stored = []
    for method in ("npo", "offset"):
        trainer = make(method=method, peft_config=lora(init_lora_weights=False))
        trainer._attach_cached_logps()
        stored.append([row["reference_logps"] for row in trainer.tokenized["forget"].rows])
    assert all(torch.equal(a, b) for a, b in zip(*stored, strict=True))


def test_npo_begins_at_two_ln_two_over_beta_and_forgets(make, save_small):
    trainer = make(small=save_small(), retain="none", num_train_epochs=6, beta=0.2)
    trainer.train()
    steps = logs(trainer)
    assert steps[0]["loss"] == pytest.approx(10 * math.log(2), rel=1e-5)
    assert steps[-1]["forget/log_ratio"] < -1


def test_gradient_ascent_with_a_retain_term(make, save_small):
    """The first loss is the target's: minus the forget NLL, plus the retain NLL."""
    trainer = make(small=save_small(), forget="grad_ascent", num_train_epochs=4)
    trainer.train()
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert first["loss"] == pytest.approx(first["retain/nll"] - first["forget/nll"], abs=1e-5)
    assert last["forget/nll"] > first["forget/nll"] + 0.1


@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
def test_with_an_adapter_a_resumed_run_is_the_straight_run(make, save_small, own):
    """A checkpoint holds the adapter and nothing else of the networks."""
    settings = {
        "small": None if own else save_small(), "num_train_epochs": 2, "save_strategy": "steps",
        "save_steps": 2, "save_total_limit": None,
    }  # fmt: skip
    straight = make(peft_config=lora(), **settings)
    straight.train()
    folder = f"{straight.args.output_dir}/checkpoint-2"
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        assert all(n.startswith("networks.tuned.") and "lora_" in n for n in file.keys())  # noqa: SIM118
    resumed = make(peft_config=lora(), **settings)
    resumed.train(resume_from_checkpoint=folder)
    after = weights(straight.model)
    assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "smaller"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@torch.no_grad()
def test_what_is_saved_answers_alike(make, tiny_model, save_small, tmp_path, named, own, adapter):
    """Names and what was trained, if the target has a name; else everything."""
    target = tmp_path / "target"
    if named:
        tiny_model().save_pretrained(target)
    trainer = make(
        model=load_model(str(target)) if named else None, small=None if own else save_small(), alpha=0.7,
        peft_config=lora() if adapter else None,
    )  # fmt: skip
    disturb(trainer.model)
    trainer.served.top_logit_filter = 0.01
    trainer.save_model(str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["weights"] == {"base": 1.0, "tuned": 0.7, "untuned": -0.7}
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    if named:
        assert config["sources"]["base"]["path"] == str(target)
        size = sum(p.stat().st_size for p in (tmp_path / "saved" / "tuned").glob("*.safetensors"))
        trained = sum(p.numel() for p in trainer.model.network.parameters() if p.requires_grad)
        assert 0 < size - 4 * trained < 4000  # the names of the tensors
    loaded = load_model(str(tmp_path / "saved"))
    assert loaded.config.kind == "offset"
    torch.testing.assert_close(logps(loaded), logps(trainer.unlearned_model()), rtol=0, atol=1e-6)
    ids = trainer.unlearned_model().generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert torch.equal(loaded.generate(TOKENS, max_new_tokens=4, do_sample=False), ids)


def test_other_models_are_refused(make, save_small, tiny_tokenizer):
    """Another number of tokens, other tokens, an adapter."""
    larger = train_tokenizer(["some other text, of which more is known"], vocab_size=300)
    with pytest.raises(ModelError, match=r"different vocabularies \(target 512, small \d+ tokens\)"):
        make(small=save_small(larger))
    folder = save_small(tiny_tokenizer)
    path = Path(folder, "tokenizer.json")
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = (token for token, number in vocabulary.items() if number in (300, 301))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"is another one \(the token .* is 30[01] there and 30[01] here"):
        make(small=folder)
    trainer = make(method="npo", peft_config=lora())
    with pytest.raises(ModelError, match="the target model is an adapter or a combination itself; merge"):
        make(model=trainer.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"training\.alpha must be a number above 0, found 0"),
        ({"alpha": math.nan}, r"training\.alpha must be a number above 0, found nan"),
        ({"beta": -1.0}, r"training\.beta must be a number above 0, found -1"),
        ({"forget": "npi"}, r"training\.forget is 'npi'; use one of npo, grad_ascent"),
    ],
)
def test_settings_that_cannot_work(settings, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        OffsetConfig(output_dir=str(tmp_path), **settings)


OFFSET = """\
# A small model's offset forgets 8 rows
method: offset
model: {path: TARGET}
data:
  root: fictional
  forget: {name: forget10, limit: 8}
  retain: {name: retain90, limit: 8}
training: {small: SMALL, num_train_epochs: 1, per_device_train_batch_size: 4, save_strategy: "no"}
evaluation: {suite: forget, before: false, max_new_tokens: 4}
"""


@pytest.fixture
def run(target, tmp_path, monkeypatch):
    """`run(small, *settings, what=...)`: the recipe above by the command line; its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))

    def start(small, *settings, what="run"):
        text = OFFSET.replace("TARGET", str(target)).replace("SMALL", small)
        Path("own.yaml").write_text(text, encoding="utf-8")
        return command(monkeypatch, what, "own.yaml", *settings)

    return start


def test_a_run_is_measured_and_belongs_to_its_small_model(run, save_small, tmp_path, capsys):
    """Another strength needs no training; another small model is another run."""
    small = save_small()
    assert run(small, "serving.alpha=0.5") == 0
    folder = tmp_path / "runs" / "own"
    summary = json.loads((folder / "eval" / "forget" / "summary.json").read_text())
    assert summary["serving"]["weights"] == {"base": 1.0, "tuned": 0.5, "untuned": -0.5}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert summary["fingerprint"]["model"] == manifest["unlearned_model"]["fingerprint"]
    capsys.readouterr()
    assert run(small) == 0
    assert "already trained" in capsys.readouterr().out
    config = Path(small, "config.json")
    config.write_text(config.read_text() + " ")
    assert run(small) == 2
    assert "made with something else (small changed" in capsys.readouterr().err.replace("\n", " ")


def test_a_small_model_that_does_not_fit_is_told_before_anything_is_loaded(run, save_small, capsys):
    other = save_small(train_tokenizer(["some other text"], vocab_size=300))
    for what in ("check", "run"):
        assert run(other, what=what) == 2
        assert "training.small has 272 tokens and the target model 512" in _said(capsys)
        assert run("./nowhere", what=what) == 2
        assert "the model ./nowhere does not exist" in _said(capsys)


def _said(capsys):
    return " ".join(capsys.readouterr().err.split())
