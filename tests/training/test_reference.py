"""Reference models: three providers, one set of numbers; the cache on disk."""

from __future__ import annotations

import pytest
import torch
from helpers_training import (
    SETTINGS,
    assert_same_logs,
    assert_same_training,
    data_sets,
    logs,
    lora,
    make_trainer,
    weights,
)

from unlearnkit.errors import RecipeError
from unlearnkit.methods.npo import NPO, NPOTrainer
from unlearnkit.training import logprobs, reference
from unlearnkit.training.objective import Needs, WeightedSum


@pytest.fixture
def npo(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`npo(**settings)`: an NPO trainer of three steps, not yet run."""

    def build(model=None, streams=None, **settings):
        return make_trainer(
            "npo", tiny_model() if model is None else model, tiny_tokenizer,
            streams or data_sets(fictional_rows), tmp_path, **{"num_train_epochs": 1, **settings},
        )  # fmt: skip

    return build


def _cache_files():
    return sorted((reference.cache_folder() / "reference").glob("*"))


# ---- The same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_providers_give_the_same_training(npo, adapter, checkpointing):
    """N9: at step 0 and after three steps; the losses in the logs and the weights."""
    runs = {}
    for name in ("cached", "frozen", *(["adapter_off"] if adapter else [])):
        trainer = npo(
            reference=name,
            peft_config=lora() if adapter else None,
            activation_checkpointing=checkpointing,
            beta=1.0,
        )
        start = weights(trainer.model)
        assert trainer.reference_name == name
        trainer.train()
        runs[name] = trainer
    first = runs.pop("cached")
    assert len(logs(first)) == 3
    for other in runs.values():
        assert_same_logs(logs(other), logs(first), rel=1e-5)
        assert_same_training(weights(other.model), weights(first.model), start)


def test_kl_with_the_adapter_off_is_kl_with_a_frozen_copy(npo):
    runs = []
    for name in ("adapter_off", "frozen"):
        trainer = npo(reference=name, retain="kl", peft_config=lora())
        start = weights(trainer.model)
        trainer.train()
        runs.append(trainer)
    assert_same_logs(logs(runs[0]), logs(runs[1]), rel=1e-5)
    assert_same_training(weights(runs[0].model), weights(runs[1].model), start)


def test_dropout_of_the_policy_does_not_reach_the_reference(npo, tiny_model):
    """The reference is in eval mode: neither the adapter's dropout nor the model's own changes anything."""
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = npo(model, reference="adapter_off", peft_config=lora(lora_dropout=0.5, init_lora_weights=False))
    batch = trainer.data_collator([trainer.mix[0]])["forget"]
    trainer.model.train()
    provider = reference.AdapterOff(trainer.model, trainer.model)
    first = provider.token_logps(batch)
    torch.testing.assert_close(provider.token_logps(batch), first, rtol=0, atol=0)
    assert trainer.model.training
    with trainer.model.disable_adapter():
        out = logprobs.target_logits(trainer.model.eval(), batch)
    torch.testing.assert_close(first, logprobs.label_logps(out.logits_NV, out.targets_N), rtol=0, atol=0)


def test_the_reference_stays_the_model_before_training(npo):
    """Trained twice, NPO still compares with the first weights."""
    trainer = npo(retain="none")
    trainer.train()
    ratio = logs(trainer)[-1]["forget/log_ratio"]
    trainer.train()
    assert logs(trainer)[0]["forget/log_ratio"] < ratio < 0


@pytest.mark.parametrize("batch_tokens", [1, 64, 8192])
def test_scores_do_not_depend_on_the_batches(npo, tiny_model, batch_tokens):
    trainer = npo()
    rows = trainer.tokenized["forget"].rows
    model = tiny_model().train()
    scores = reference.score_rows(model, rows, device="cpu", pad_id=0, batch_tokens=batch_tokens)
    assert model.training
    for row, values in zip(rows, scores, strict=True):
        tokens, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        expected = logprobs.token_logps(model.eval()(tokens).logits.detach(), labels)[0]
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        model.train()


def test_two_streams_may_ask(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """With an adapter, which is switched off for each of them."""

    class Twice(NPOTrainer):
        def build_objective(self):
            return WeightedSum(((1.0, NPO(0.1)), (1.0, NPO(0.1, stream="retain"))))

    from unlearnkit.methods.npo import NPOConfig

    streams = data_sets(fictional_rows)
    trainer = Twice(
        tiny_model(), NPOConfig(output_dir=str(tmp_path), **{**SETTINGS, "max_steps": 1}), streams=streams,
        processing_class=tiny_tokenizer, peft_config=lora(),
    )  # fmt: skip
    trainer.train()
    assert logs(trainer)[0]["loss"] == pytest.approx(2 * 13.862943611, rel=1e-5)
    assert len(_cache_files()) == 2


@pytest.mark.parametrize("name", ["cached", "adapter_off", "frozen"])
def test_a_batch_without_rows_has_no_scores(npo, name):
    """The last micro-batch of one process among several may be empty."""
    trainer = npo(reference=name, peft_config=lora())
    trainer.train()
    empty = trainer.data_collator([{}])["forget"]
    assert trainer._reference.token_logps(empty).shape == (0,)


# ---- The cache ---------------------------------------------------------------------------------------------


def test_the_model_is_asked_once_and_never_again(npo, monkeypatch):
    calls = []
    score = reference.score_rows
    monkeypatch.setattr(reference, "score_rows", lambda *a, **k: calls.append(1) or score(*a, **k))
    first = npo()
    first.train()
    assert len(calls) == len(_cache_files()) == 1
    again = npo()
    again.train()
    assert len(calls) == 1
    assert_same_logs(logs(again), logs(first), rel=0.0)


@pytest.mark.parametrize("harm", ["cut", "empty", "not safetensors", "other length", "other name"])
def test_a_broken_cache_file_is_computed_anew(npo, harm):
    from safetensors.torch import save_file

    first = npo()
    first.train()
    (path,) = _cache_files()
    good = path.read_bytes()
    if harm == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "not safetensors":
        path.write_bytes(b"half a word" * 10)
    else:
        save_file({"logps" if harm == "other length" else "x": torch.zeros(3)}, path)
    again = npo()
    again.train()
    assert_same_logs(logs(again), logs(first), rel=0.0)
    assert _cache_files() == [path]
    assert path.read_bytes() == good


def test_other_weights_data_template_or_precision_have_another_key(npo, tiny_model, fictional_rows):
    from unlearnkit.recipe import TemplateSpec

    def keys(trainer):
        before = set(_cache_files())
        trainer._attach_cached_logps()
        return set(_cache_files()) - before

    assert len(keys(npo())) == 1
    assert not keys(npo(learning_rate=0.5, retain="none", seed=7))
    changed = tiny_model()
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert len(keys(npo(model=changed))) == 1
    streams = data_sets(fictional_rows)
    assert len(keys(npo(streams={**streams, "forget": streams["forget"].select(range(9))}))) == 1
    assert len(keys(npo(streams={**streams, "forget": streams["forget"].select(range(9, -1, -1))}))) == 1
    assert len(keys(npo(bf16=True))) == 1
    trainer = npo()
    other = type(trainer)(
        tiny_model(), trainer.args, streams=streams, processing_class=trainer.processing_class,
        template=TemplateSpec(question_start="Q: "),
    )  # fmt: skip
    assert len(keys(other)) == 1


def test_a_model_that_is_placed_when_training_begins(npo, monkeypatch):
    """FSDP and DeepSpeed leave it on the CPU till then: it is lent to the device, and only to be asked."""
    asked, moved, score = [], [], reference.score_rows
    monkeypatch.setattr(
        reference, "score_rows",
        lambda *a, device, **k: asked.append((device, *moved)) or score(*a, device="cpu", **k),
    )  # fmt: skip
    trainers = npo(), npo()
    there = torch.device("meta")
    monkeypatch.setattr(type(trainers[0].accelerator), "device", there)
    for trainer in trainers:
        monkeypatch.setattr(trainer.model, "to", moved.append)
        trainer._attach_cached_logps()
    assert asked == [(there, there)]
    assert moved == [there, torch.device("cpu")]


def test_an_adapter_does_not_change_the_key(npo):
    npo()._attach_cached_logps()
    npo(peft_config=lora())._attach_cached_logps()
    assert len(_cache_files()) == 1


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path))
    assert reference.cache_folder() == tmp_path
    monkeypatch.delenv("UNLEARNKIT_CACHE")
    assert reference.cache_folder().parts[-2:] == (".cache", "unlearnkit")


# ---- The choice --------------------------------------------------------------------------------------------

LOGPS, LOGITS, STATES = Needs.REFERENCE_LOGPS, Needs.REFERENCE_LOGITS, Needs.REFERENCE_HIDDEN_STATES


@pytest.mark.parametrize(("setting", "needs", "fresh_adapter", "expected"), [
    ("auto", Needs.NOTHING, True, "none"),
    ("frozen", Needs.NOTHING, False, "none"),
    ("auto", LOGPS, False, "cached"),
    ("auto", LOGPS, True, "cached"),
    ("auto", LOGITS, True, "adapter_off"),
    ("auto", LOGITS, False, "frozen"),
    ("auto", LOGPS | LOGITS, True, "adapter_off"),
    ("frozen", LOGPS, True, "frozen"),
    ("adapter_off", LOGPS, True, "adapter_off"),
    ("auto", Needs.HIDDEN_STATES, True, "none"),
    ("auto", STATES | Needs.HIDDEN_STATES, True, "adapter_off"),
    ("auto", STATES | LOGPS, False, "frozen"),
])  # fmt: skip
def test_the_cheapest_that_is_enough(setting, needs, fresh_adapter, expected):
    assert reference.choose(setting, needs, has_fresh_adapter=fresh_adapter) == expected


@pytest.mark.parametrize(("setting", "needs", "fresh_adapter", "sentence"), [
    ("cached", LOGITS, False, r"needs reference logits, .* log-probs only; use reference: auto or frozen$"),
    ("cached", STATES, True, r"reference hidden states, .* log-probs only; use reference: auto or frozen$"),
    ("adapter_off", LOGPS, False, r"adapter_off, but no new LoRA adapter is trained; set model\.lora"),
    ("lazy", LOGPS, False, r"training\.reference is 'lazy'; use one of auto, cached, adapter_off, frozen$"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(setting, needs, fresh_adapter, sentence):
    with pytest.raises(RecipeError, match=sentence):
        reference.choose(setting, needs, has_fresh_adapter=fresh_adapter)


def test_cached_with_kl_is_refused_before_training(npo):
    with pytest.raises(RecipeError, match="frozen, or retain: nll in place of kl"):
        npo(reference="cached", retain="kl")


def test_a_float64_model_is_scored_too(tiny_model):
    """Reference log-probs are kept in float32, whatever the model's precision."""
    rows = [{"example_id": "a", "input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}]
    single, double = (
        reference.score_rows(model, rows, device="cpu", pad_id=0)[0]
        for model in (tiny_model(), tiny_model().double())
    )
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, single, rtol=1e-5, atol=1e-5)


def test_switching_an_adapter_off_trains_no_more_of_it(tiny_model):
    """peft switches all gradients on when the adapter comes back, those of frozen layers too."""
    from peft import get_peft_model

    model = get_peft_model(tiny_model(), lora())
    frozen = [p for name, p in model.named_parameters() if "lora_" in name and ".layers.0." in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    with reference.without_adapter(model):
        pass
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
