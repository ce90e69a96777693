"""UnlearnTrainer: what it logs, what it evaluates, what it refuses."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from helpers_training import SETTINGS, assert_same_logs, data_sets, logs, lora, make_trainer
from torch.nn import functional
from transformers import TrainerCallback

from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.training import logprobs, prepare
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.step_metrics import StepMetrics
from unlearnkit.training.trainer import UnlearnTrainer


@pytest.fixture
def build(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`build(method, **settings)`: a trainer, not yet run."""

    def make(method="npo", model=None, streams=None, **settings):
        return make_trainer(
            method, tiny_model() if model is None else model, tiny_tokenizer,
            data_sets(fictional_rows) if streams is None else streams, tmp_path, **settings,
        )  # fmt: skip

    return make


def _nll(model, rows):
    """Negative log-likelihoods of all target tokens, one row at a time through PyTorch's cross-entropy."""
    values = []
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
            labels = torch.tensor(row["labels"])
            values.append(
                functional.cross_entropy(logits[:-1], labels[1:], reduction="none")[labels[1:] >= 0]
            )
    return values


# ---- What is logged ----------------------------------------------------------------------------------------


class _Watch(TrainerCallback):
    """Computes every metric by hand from the weights before each step."""

    def __init__(self, order, mix, model, beta):
        self.order, self.mix, self.model, self.beta = order, mix, model, beta
        self.expected = []
        self.reference = None

    def on_train_begin(self, args, state, control, **kwargs):
        rows = [r for i in range(len(self.mix)) for r in self.mix[i]["forget"]]
        self.reference = {
            r["example_id"]: -v.sum() for r, v in zip(rows, _nll(self.model, rows), strict=True)
        }

    def on_step_begin(self, args, state, control, **kwargs):
        size, start = 4, state.global_step % 3 * 4
        items = [self.mix[n] for n in list(self.order())[start : start + size] if n >= 0]
        forget, retain = ([r for item in items for r in item[s]] for s in ("forget", "retain"))
        logps = torch.stack([-v.sum() for v in _nll(self.model, forget)])
        ratio = logps - torch.stack([self.reference[r["example_id"]] for r in forget])
        self.expected.append({
            "forget/npo": (2 / self.beta * functional.softplus(self.beta * ratio)).mean().item(),
            "forget/log_ratio": ratio.mean().item(),
            "forget/weight": (2 * torch.sigmoid(self.beta * ratio)).mean().item(),
            "retain/nll": torch.cat(_nll(self.model, retain)).mean().item(),
        })  # fmt: skip


@pytest.mark.parametrize(("rows", "steps"), [(4, 1), (1, 4)])
def test_logged_metrics_are_true_means_over_the_global_batch(build, rows, steps):
    """Steps of 4, 4 and 2 examples, by hand; the loss is their weighted sum."""
    trainer = build(
        beta=0.5, retain_weight=3.0, per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
        optim="sgd", learning_rate=0.02,
    )  # fmt: skip
    watch = _Watch(lambda: trainer._follow_epoch.order, trainer.mix, trainer.model, 0.5)
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.expected) == len(logs(trainer)) == 6
    for entry, expected in zip(logs(trainer), watch.expected, strict=True):
        for name, value in expected.items():
            # A log-ratio is the difference of two float32 sums of more than a hundred nats.
            assert entry[name] == pytest.approx(value, rel=2e-5, abs=2e-4), name
        assert entry["loss"] == pytest.approx(expected["forget/npo"] + 3 * expected["retain/nll"], rel=1e-5)


def test_logging_less_often_logs_means(build):
    every, third = (build(logging_steps=n, optim="sgd") for n in (1, 3))
    every.train()
    third.train()
    single = logs(every)
    for i, entry in enumerate(logs(third)):
        for name in ("loss", "forget/npo", "retain/nll", "forget/log_ratio"):
            mean = sum(step[name] for step in single[3 * i : 3 * i + 3]) / 3
            assert entry[name] == pytest.approx(mean, rel=1e-5, abs=1e-5)


def test_step_metrics_leave_out_a_stream_that_was_never_there():
    metrics = StepMetrics(("a", "b"))
    assert metrics.take(lambda x: x) == {}
    for a in (1.0, 3.0):
        metrics.begin_step(torch.tensor([[2, 5], [0, 0]]))
        metrics.add({"a/x": torch.tensor(a), "b/x": torch.tensor(0.0), "other": torch.tensor(a)})
    assert metrics.take(lambda x: x) == {"a/x": 2.0, "other": 2.0}
    metrics.begin_step(torch.tensor([[0, 0], [1, 1]]))
    metrics.add({"a/x": torch.tensor(0.0), "b/x": torch.tensor(7.0)})
    metrics.begin_step(torch.tensor([[1, 1], [0, 0]]))
    metrics.add({"a/x": torch.tensor(4.0), "b/x": torch.tensor(0.0)})
    assert metrics.take(lambda x: x) == {"a/x": 4.0, "b/x": 7.0}


@pytest.mark.parametrize("settings", [
    {"max_steps": 4}, {"train_sampling_strategy": "group_by_length"}, {"packing": "never"},
])  # fmt: skip
def test_tokens_seen_leaves_out_padding(build, settings):
    """Steps of 6 out of 10 rows: an epoch's last step is short."""
    trainer = build(**{"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, **settings})
    assert trainer.tokens_seen == 0
    seen, compute_loss = [], trainer.compute_loss

    def counted(model, inputs, *args, **kwargs):
        seen.append(sum(int(b["attention_mask"].sum()) for b in inputs.values()))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    trainer.train()
    assert trainer.tokens_seen == sum(seen) > 0


def test_the_order_of_a_run_does_not_depend_on_global_randomness(build):
    first = build("grad_diff")
    first.train()
    torch.manual_seed(123)
    torch.rand(17)
    second = build("grad_diff")
    torch.rand(5)
    second.train()
    assert_same_logs(logs(second), logs(first), rel=0.0)


# ---- Evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_the_evaluation_loss_is_the_mean_over_all_target_tokens(build, fictional_rows, batch_size):
    """Ten rows of unequal length in batches that do not divide them."""
    streams = data_sets(fictional_rows)
    trainer = build(eval_dataset=streams["forget"], per_device_eval_batch_size=batch_size)
    rows = trainer.tokenized["forget"].rows
    expected = torch.cat(_nll(trainer.model.eval(), rows)).mean().item()
    result = trainer.evaluate()
    assert result["eval_loss"] == pytest.approx(expected, rel=1e-6)
    other = trainer.evaluate(streams["retain"].select(range(3)), metric_key_prefix="test")
    kept = torch.cat(_nll(trainer.model, trainer.tokenized["retain"].rows[:3])).mean().item()
    assert other["test_loss"] == pytest.approx(kept, rel=1e-6)


def test_several_evaluation_sets_while_training(build, fictional_rows):
    streams = data_sets(fictional_rows)
    sets = {"forget": streams["forget"], "retain": streams["retain"]}
    trainer = build(
        "grad_ascent",
        eval_dataset=sets,
        eval_strategy="epoch",
        eval_on_start=True,
        load_best_model_at_end=False,
    )
    trainer.train()
    values = [e["eval_forget_loss"] for e in trainer.state.log_history if "eval_forget_loss" in e]
    assert len(values) == 3
    assert values[0] < values[1] < values[2]
    before = torch.cat(_nll(build().model, trainer.tokenized["forget"].rows)).mean().item()
    assert values[0] == pytest.approx(before, rel=1e-6)
    assert sum("eval_retain_loss" in entry for entry in trainer.state.log_history) == 3


# ---- What is refused, before training where that is possible -----------------------------------------------


def test_nothing_trainable(build, tiny_model):
    with pytest.raises(ModelError, match=r"no parameter of the model is trainable; .*model\.lora"):
        build(model=tiny_model().requires_grad_(False))


def test_an_adapter_that_fits_nothing(build):
    with pytest.raises(
        ModelError, match=r"the adapter does not fit the model .*check model\.lora\.target_modules"
    ):
        build(peft_config=lora(target_modules=["no_such_layer"]))


def test_an_adapter_on_an_adapter(build, tiny_model):
    from peft import get_peft_model

    from unlearnkit.models.load import quiet_peft

    with quiet_peft():
        model = get_peft_model(tiny_model(), lora())
    with pytest.raises(ModelError, match=r"an adapter itself.*merge it first"):
        build(model=model, peft_config=lora())


def test_gradients_cut_off_by_checkpointing(build, tiny_model, monkeypatch):
    """LoRA with reentrant checkpoints needs inputs that require a gradient; without them nothing is
    learned."""
    settings = {
        "peft_config": lora(), "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    }  # fmt: skip
    build("grad_diff", **settings).train()
    monkeypatch.setattr(type(tiny_model()), "enable_input_require_grads", lambda self: None)
    trainer = build("grad_diff", **settings)
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(
            ModelError, match="all gradients are zero after the first step, so nothing would be learned"
        ),
    ):
        trainer.train()


def test_all_gradients_zero(build):
    with pytest.raises(ModelError, match="all gradients are zero after the first step"):
        build("grad_diff", forget_weight=0.0, retain="none").train()


def test_several_gpus_in_one_process(tmp_path):
    args = UnlearnConfig(output_dir=str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.raises(ModelError, match=r"one process sees 2 GPUs.*--launch ddp"):
        prepare.refuse_settings(args)


@pytest.mark.parametrize(("setting", "sentence"), [
    ({"remove_unused_columns": True}, "remove_unused_columns must stay false"),
    ({"matrix_optimizer": "soap"}, "matrix_optimizer is 'soap'; use muon"),
    ({"retain": "l2"}, "training.retain is 'l2'; use one of nll, kl, reverse_kl, none"),
    ({"reference": "old"}, "training.reference is 'old'; use one of"),
])  # fmt: skip
def test_settings_that_cannot_work(build, setting, sentence):
    with pytest.raises(RecipeError, match=sentence):
        build(**setting)


def test_an_unknown_order_is_refused(tmp_path):
    args = UnlearnConfig(output_dir=str(tmp_path), use_cpu=True)
    args.train_sampling_strategy = "batch_rebalance"
    with pytest.raises(RecipeError, match="use one of random, sequential, group_by_length"):
        prepare.refuse_settings(args)


def test_overlap_is_refused_and_can_be_allowed(build, fictional_rows):
    streams = data_sets(fictional_rows)
    both = Dataset.from_list([*streams["retain"], streams["forget"][3]])
    with pytest.raises(DataError, match=r"forget row 3 = retain row 14.*allow_overlap: true"):
        build(streams={**streams, "retain": both})
    build(streams={**streams, "retain": both}, allow_overlap=True)


def test_a_missing_stream_is_named_with_the_way_out(build, fictional_rows):
    streams = data_sets(fictional_rows)
    with pytest.raises(
        DataError, match=r"'retain', but there is none; give data\.retain .*set training\.retain: none"
    ):
        build(streams={"forget": streams["forget"]})
    with pytest.raises(DataError, match=r"'forget', but there is none; give data\.forget in a recipe"):
        build(streams={"retain": streams["retain"]})
    build(streams={"forget": streams["forget"]}, retain="none")


def test_a_stream_that_is_not_read_is_mentioned(build, caplog):
    with caplog.at_level(logging.WARNING, logger="unlearnkit"):
        build("grad_ascent")
    assert "the stream 'retain' is not read by this objective and is left out" in caplog.text


def test_retain_weight_zero_needs_no_retain_set(build, fictional_rows):
    trainer = build(streams={"forget": data_sets(fictional_rows)["forget"]}, retain_weight=0.0)
    assert trainer.objective.streams == ("forget",)


def test_no_tokenizer(tiny_model, fictional_rows, tmp_path):
    model = tiny_model()
    model.config._name_or_path = ""
    with pytest.raises(ModelError, match="give processing_class"):
        make_trainer("npo", model, None, data_sets(fictional_rows), tmp_path)


def test_model_and_tokenizer_from_a_path(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "target")
    tiny_tokenizer.save_pretrained(tmp_path / "target")
    trainer = make_trainer(
        "npo", str(tmp_path / "target"), None, data_sets(fictional_rows), tmp_path, max_steps=1
    )
    trainer.train()
    assert logs(trainer)[0]["forget/npo"] == pytest.approx(13.862943611, rel=1e-6)


def test_a_trainer_without_an_objective_is_our_mistake(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(NotImplementedError):
        UnlearnTrainer(
            tiny_model(),
            UnlearnConfig(output_dir=str(tmp_path), use_cpu=True),
            processing_class=tiny_tokenizer,
        )


def test_the_head_computes_nothing_but_targets(build):
    """In the real loop no [B, T, V] tensor is ever made."""
    shapes = []
    trainer = build("grad_diff", per_device_train_batch_size=2)
    trainer.model.get_output_embeddings().register_forward_hook(lambda m, a, out: shapes.append(out.shape))
    trainer.train()
    batches = [trainer.data_collator([trainer.mix[n] for n in step]) for step in _steps(trainer)]
    table = [sum(len(logprobs.positions_of(part)) for part in batch.values()) for batch in batches]
    assert [tuple(shape) for shape in shapes] == [(n, trainer.model.config.vocab_size) for n in table]


def _steps(trainer):
    order = trainer._follow_epoch.order
    for epoch in range(2):
        order.set_epoch(epoch)
        numbers = list(order)
        yield from (numbers[i : i + 2] for i in range(0, len(numbers), 2))


def test_a_stream_may_be_given_by_its_name(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`pairs_dataset` as `forget_dataset`."""
    from unlearnkit import DPOConfig, DPOTrainer

    pairs = data_sets(fictional_rows)["pairs"]
    args = DPOConfig(output_dir=str(tmp_path), **{**SETTINGS, "num_train_epochs": 1})
    trainer = DPOTrainer(tiny_model(), args, pairs_dataset=pairs, processing_class=tiny_tokenizer)
    assert list(trainer.tokenized) == ["pairs.chosen", "pairs.rejected"]
    with pytest.raises(DataError, match=r"give data\.pairs in a recipe \(pairs_dataset in code\)"):
        DPOTrainer(tiny_model(), args, train_dataset=pairs, processing_class=tiny_tokenizer)
