"""ULD (arXiv 2406.08607): the uniform term, the union of streams, the assistant, what is served and saved."""

from __future__ import annotations

import gc
import json
import math
import weakref

import pytest
import torch
from helpers_runs import SFT, command
from helpers_training import data_sets, logs, make_trainer, weights

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.methods.uld import ULDConfig, uniform_kl
from unlearnkit.models.load import load_model

ULD = """\
# A tiny pair forgets 12 rows
method: uld
model: {path: TARGET}
data:
  root: fictional
  forget: {name: forget10, limit: 12}
  retain: {name: retain90, limit: 12}
training: {num_train_epochs: 1, per_device_train_batch_size: 6, save_strategy: "no"}
serving: {alpha: 0.5}
evaluation: {suite: forget, max_new_tokens: 4}
"""


def test_the_uniform_term_by_hand():
    """p = (3/4, 1/4): -log 2 - (log 3/4 + log 1/4) / 2 = log(4 / 3) / 2; 0 where all tokens are alike."""
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]], dtype=torch.float64)
    expected = torch.tensor([math.log(4 / 3) / 2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(uniform_kl(logits), expected, rtol=1e-12, atol=1e-15)


def test_the_uniform_term_is_finite_and_pulls_to_the_middle():
    """One logit 200 above V - 1 others: log sum exp = 200, mean = 200 / V. Its slope is softmax - 1/V."""
    V = 7
    z = torch.zeros(1, V, requires_grad=True)
    far = torch.cat([z[:, :1] + 200, z[:, 1:]], dim=1)
    loss = uniform_kl(far)
    assert loss.item() == pytest.approx(200 - 200 / V - math.log(V), rel=1e-6)
    gradient = torch.autograd.grad(loss.sum(), z)[0]
    torch.testing.assert_close(gradient[0], torch.tensor([1.0, *[0.0] * (V - 1)]) - 1 / V)
    # A constant added to all logits is no knowledge.
    near = torch.randn(4, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(uniform_kl(near + 3.0), uniform_kl(near), rtol=1e-12, atol=1e-14)


def _streams(rows):
    """forget and retain, wordings of the first, and wrong answers to it."""
    sets = data_sets(rows)
    forget = sets["forget"].remove_columns("alternate_answer")
    other = [{"prompt": r["prompt"] + " Please.", "completion": r["completion"]} for r in forget]
    wrong = [{"prompt": r["prompt"], "completion": "No " + r["completion"]} for r in forget]
    kind = type(forget)
    return {**sets, "paraphrase": kind.from_list(other[:6]), "perturbed": kind.from_list(wrong[:5])}


AUGMENTED = {"remember_streams": ["forget", "paraphrase"], "perturbed_streams": ["perturbed"]}


@pytest.fixture
def trainer(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`trainer(model, **settings)`: with all streams, not yet trained."""

    def make(model=None, **settings):
        model = tiny_model() if model is None else model
        streams = _streams(fictional_rows)
        return make_trainer("uld", model, tiny_tokenizer, streams, tmp_path / "out", **settings)

    return make


def test_the_loss_is_the_mean_over_all_tokens_of_both_sides(trainer):
    """By hand, each row alone and without padding: CE over the tokens of both remembered streams together, KL
    to uniform over those of both others, 6.5 times."""
    one = trainer(
        per_device_train_batch_size=10, num_train_epochs=1, learning_rate=0.0, **AUGMENTED,
    )  # fmt: skip
    for name, parameter in one.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    one.model.eval()
    sums = {"remember": [0.0, 0], "rest": [0.0, 0]}
    items = one.data_collator([one.mix[i] for i in range(len(one.mix))])
    for stream, batch in items.items():
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            ids, labels = ids[mask == 1], labels[mask == 1]
            with torch.no_grad():
                logp = one.model(ids[None]).logits[0].double().log_softmax(-1)
            for place in range(1, len(ids)):
                if labels[place] == -100:
                    continue
                row = logp[place - 1]
                known = stream in AUGMENTED["remember_streams"]
                value = -row[labels[place]] if known else -math.log(len(row)) - row.mean()
                side = sums["remember" if known else "rest"]
                side[0], side[1] = side[0] + float(value), side[1] + 1
    assert set(items) == {"forget", "paraphrase", "retain", "perturbed"}
    expected = sums["remember"][0] / sums["remember"][1] + 6.5 * sums["rest"][0] / sums["rest"][1]
    one.train()
    assert logs(one)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert {"forget/nll", "paraphrase/nll", "retain/uniform", "perturbed/uniform"} <= logs(one)[0].keys()


def test_only_the_adapter_gets_a_gradient(trainer, tiny_model):
    one = trainer(**AUGMENTED)
    before = weights(one.model)
    one.train()
    assert all("lora_" in name for name, p in one.model.named_parameters() if p.requires_grad)
    assert all(p.grad is None for name, p in one.model.named_parameters() if "lora_" not in name)
    after = weights(one.model)
    assert all(torch.equal(after[name], p) for name, p in before.items() if "lora_" not in name)
    assert all(not torch.equal(after[name], p) for name, p in before.items() if "lora_B" in name)
    head = one.model.get_base_model().get_output_embeddings()
    assert type(head) is torch.nn.Linear  # no adapter on it


def test_under_a_frozen_norm_a_narrow_head_is_never_uniform(trainer):
    """RMSNorm fixes |h|, so |W h| is at least the smallest singular value of W times that, and logits that
    spread say something. With the norm's weight trained, an assistant can be silent about anything.

    All data are `retain` here, in effect: nothing is remembered (weight 0).
    """
    reached = {}
    for train_norm in (False, True):
        one = trainer(
            num_layers=2, train_norm=train_norm, forget_weight=0.0, retain_weight=1.0, learning_rate=0.1,
            num_train_epochs=12,
        )  # fmt: skip
        head = one.model.get_base_model().lm_head.weight
        torch.nn.init.normal_(head, generator=torch.Generator().manual_seed(0))  # it is random and tiny else
        one.train()
        reached[train_norm] = logs(one)[-1]["retain/uniform"]
        assert (
            any("norm" in name for name, p in one.model.named_parameters() if p.requires_grad) is train_norm
        )
    assert reached[True] < 0.1 * reached[False]


def test_the_target_is_let_go_of_while_the_assistant_is_trained(trainer, target):
    model = load_model(str(target))
    last, first = (weakref.ref(model.model.layers[i]) for i in (-1, 0))
    shared = model.model.embed_tokens.weight.data_ptr()
    one = trainer(model, **AUGMENTED)
    del model
    gc.collect()
    assert last() is None
    assert first() is None
    assert one.model.get_base_model().model.embed_tokens.weight.data_ptr() == shared
    pair = one.unlearned_model()
    assert torch.equal(pair.networks["target"].lm_head.weight, load_model(str(target)).lm_head.weight)
    memory = [net.model.embed_tokens.weight.data_ptr() for net in pair.networks.values()]
    assert memory[0] == memory[1]  # once for both


@pytest.mark.parametrize("train_norm", [False, True])
def test_what_is_saved_is_the_pair(trainer, target, tmp_path, train_norm):
    """Light where the target has a name, whole where it has none; both answer as the pair in memory does."""
    tokens = torch.arange(3, 33).reshape(2, 15)
    for model, light in ((load_model(str(target)), True), (None, False)):
        one = trainer(model, max_steps=2, train_norm=train_norm, **AUGMENTED)
        one.train()
        one.served.alpha = 1.25
        folder = tmp_path / ("light" if light else "full")
        one.save_model(str(folder))
        assert (folder / "assistant" / "adapter_model.safetensors").exists() is light
        assert (folder / "target" / "model.safetensors").exists() is not light
        assert (folder / "tokenizer.json").exists()
        with torch.no_grad():
            loaded, expected = load_model(str(folder)), one.unlearned_model()
            assert loaded.alpha == expected.alpha == 1.25
            torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits, rtol=0, atol=0)
            assert not torch.equal(
                expected(tokens).logits, loaded.networks["target"](tokens).logits.log_softmax(-1)
            )


def test_a_target_that_was_changed_since_it_was_loaded_is_not_mistaken_for_what_lies_there(
    trainer, target, tmp_path, monkeypatch
):
    """Its name is still that of the folder; the pair must hold the weights that the assistant was made for.
    One that was not changed is named, however it was loaded, and found from any working directory."""
    from transformers import AutoModelForCausalLM

    model = load_model(str(target))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    one = trainer(model, max_steps=1, **AUGMENTED)
    assert one.unlearned_model().networks["target"] is model
    one.save_model(str(tmp_path / "changed"))
    saved = load_model(str(tmp_path / "changed")).networks["target"]
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight)

    monkeypatch.chdir(target.parent)
    same = AutoModelForCausalLM.from_pretrained(target.name)
    two = trainer(same, max_steps=1, **AUGMENTED)
    two.save_model(str(tmp_path / "named"))
    assert not (tmp_path / "named" / "target").exists()
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_model("named").networks["target"].lm_head.weight, same.lm_head.weight)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_adapter_on_tied_embeddings_is_refused_before_training(trainer):
    from helpers_training import lora

    with pytest.raises(ModelError, match="leave embed_tokens and lm_head out"):
        trainer(peft_config=lora(target_modules=["q_proj", "embed_tokens"]))


@pytest.mark.parametrize(("nats", "said"), [(0.49, False), (0.51, True)])
def test_an_assistant_that_knows_the_rest_is_told_of(trainer, caplog, nats, said):
    one = trainer(max_steps=0, **AUGMENTED)
    one.state.log_history = [
        {"loss": 1.0, "retain/uniform": nats, "perturbed/uniform": 0.0},
        {"train_loss": 1.0},
    ]
    one._say_if_not_uniform()
    assert ("not uniform on retain" in caplog.text) is said
    assert "perturbed" not in caplog.text


def test_without_augmentation_it_warns(trainer, caplog):
    trainer(max_steps=1).train()
    assert "without paraphrases of the forget set" in caplog.text
    caplog.clear()
    trainer(max_steps=1, **AUGMENTED).train()
    assert "paraphrases" not in caplog.text


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"retain": "nll"}, "learns uniform"),
    ({"num_layers": 0}, "needs 1 layer"),
    ({"retain_weight": -1.0}, "must not be negative"),
    ({"remember_streams": []}, "would learn nothing"),
    ({"perturbed_streams": ["forget"]}, "'forget' is to be remembered by the assistant and unknown to it"),
])  # fmt: skip
def test_settings_that_cannot_work(tmp_path, settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        ULDConfig(output_dir=str(tmp_path), **settings)


def test_more_layers_than_the_target_has(trainer):
    with pytest.raises(ModelError, match="to have 3 layers, but the target model has 2"):
        trainer(num_layers=3)


# ---- Runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, target):
    """`run(*settings, what)`: the recipe on the saved target; the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "uld.yaml").write_text(ULD.replace("TARGET", str(target)), encoding="utf-8")
    return lambda *settings, what="run": command(monkeypatch, what, "uld.yaml", *settings)


def test_another_alpha_needs_no_training(run, tmp_path, capsys):
    """The run's folder stays, the adapter stays, and what is measured is measured anew."""
    assert run() == 0
    folder = tmp_path / "runs" / "uld"
    adapter = folder / "model" / "assistant" / "adapter_model.safetensors"
    before, manifest = adapter.read_bytes(), json.loads((folder / "manifest.json").read_text())
    summary = json.loads((folder / "eval" / "forget" / "summary.json").read_text())
    assert summary["serving"]["alpha"] == 0.5
    assert summary["fingerprint"]["model"] == manifest["unlearned_model"]["fingerprint"]
    capsys.readouterr()
    assert run("serving.alpha=1.5", "serving.top_logit_filter=0") == 0
    assert "already trained" in capsys.readouterr().out
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["uld"]
    assert adapter.read_bytes() == before
    again = json.loads((folder / "eval" / "forget" / "summary.json").read_text())
    assert again["serving"]["alpha"] == 1.5
    assert again["serving"]["top_logit_filter"] is None
    assert again["fingerprint"]["model"] != summary["fingerprint"]["model"]
    assert again["fingerprint"]["data"] == summary["fingerprint"]["data"]
    assert run("serving=null") == 0  # what is not said is the method's own
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["weights"]["assistant"] == -0.75
    assert config["top_logit_filter"] == 0.01


@pytest.mark.parametrize(("settings", "sentence"), [
    (["training.num_layers=9"], "is to have 9 layers, but the target model has 2"),
    (["serving.alpha=0"], "serving.alpha must be above 0"),
    (["serving.alpha=-1"], "serving.alpha must be above 0"),
    (["serving.top_logit_filter=1"], "must be below 1"),
    (["evaluation.alphas=[0.5, 0]"], "evaluation.alphas holds 0"),
    (["evaluation.alphas=[0.5, 0.5]"], "holds 0.5 twice"),
    (["data.perturbed=wrong.csv"], "name it in training.remember_streams, retain_streams or"),
    (["data.more=nowhere.csv", "training.remember_streams=[forget, more]"], "nowhere.csv does not exist"),
    (["method=npo", "training.retain=nll"], "serving is set, but the method npo ends in one model"),
    (["method=npo", "serving=null", "evaluation.alphas=[1]"], "evaluation.alphas is set, but the method npo"),
    (["serving.beta=1"], "beta"),
    (["evaluation.every=epoch"], "trains is the assistant alone"),
])  # fmt: skip
def test_mistakes_in_a_recipe(run, capsys, tmp_path, settings, sentence):
    for what in ("check", "run"):
        assert run(*settings, what=what) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("runs/*/model"))


def test_another_target_is_refused(run, tmp_path, capsys, tiny_tokenizer):
    """The adapter belongs to the weights that it was trained on."""
    from unlearnkit.models.tiny import create_model

    assert run("evaluation=null") == 0
    other = tmp_path / "other"
    create_model(tiny_tokenizer, hidden_size=32, num_layers=2, num_heads=2, seed=1).save_pretrained(other)
    config = tmp_path / "runs" / "uld" / "model" / "config.json"
    said = json.loads(config.read_text())
    said["sources"]["target"]["path"] = str(other)
    config.write_text(json.dumps(said))
    with pytest.raises(ModelError, match="is not the target model that this folder was made for"):
        load_model(str(config.parent))
    said["sources"]["target"]["path"] = str(tmp_path / "gone")
    config.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"lay in .*gone, which does not exist; write its new place"):
        load_model(str(config.parent))
    with pytest.raises(ModelError, match="only a part of the combined model around it"):
        load_model(str(config.parent / "assistant"))


def test_a_recipe_with_a_made_target(tmp_path, monkeypatch):
    """`run:NAME` of a target that the same command trains first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "target.yaml").write_text(SFT, encoding="utf-8")
    text = ULD.replace("TARGET", "run:target").replace("method:", "needs: [target.yaml]\nmethod:")
    (tmp_path / "uld.yaml").write_text(text, encoding="utf-8")
    assert command(monkeypatch, "run", "uld.yaml", "evaluation=null") == 0
    made = load_model(str(tmp_path / "runs" / "uld" / "model"))
    assert [len(net.model.layers) for net in made.networks.values()] == [1, 1]


def test_training_on_what_is_asked_is_said(tmp_path, monkeypatch, capsys, target):
    """The benchmark's own paraphrases and wrong answers are what forget quality compares."""
    monkeypatch.chdir(tmp_path)
    text = ULD.replace("TARGET", str(target)).replace(
        "suite: forget, max_new_tokens: 4", "suite: tofu, split: forget10"
    )
    (tmp_path / "uld.yaml").write_text(text, encoding="utf-8")
    own = "{name: forget10_perturbed, columns: {answer: perturbed_answer}, per_row: 1}"
    settings = [f"data.perturbed={own}", "training.perturbed_streams=[perturbed]"]
    assert command(monkeypatch, "check", "uld.yaml", *settings) == 0
    assert "data.perturbed is trained on perturbed_answer, which the evaluation asks" in " ".join(
        capsys.readouterr().out.split()
    )
    assert command(monkeypatch, "check", "uld.yaml") == 0
    assert "which the evaluation asks" not in capsys.readouterr().out
