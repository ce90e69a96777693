"""Relearn: a real fine-tuning, the same for every order of rows, that leaves no trace."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from helpers_subjects import Unchanged, logits, lora, make_subject

from unlearnkit.data.formats import tokenize_stream
from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.evaluation.attacks.relearn import Relearn
from unlearnkit.training.logprobs import sequence_logps


@pytest.fixture
def subject(tiny_model, tiny_tokenizer, fictional_rows):
    return make_subject(tiny_model(), tiny_tokenizer, fictional_rows)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def attacked(attack, subject):
    """Each stage as (stage, weights)."""
    with attack.stages(subject) as stages:
        return [(stage, weights(stage.model)) for stage in stages]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def nats_per_token(subject, rows):
    """Without the code under test: one example at a time."""
    tokens = tokenize_stream(rows, subject.tokenizer, subject.template, max_length=256).rows
    total = sum(
        sequence_logps(
            subject.model(torch.tensor([r["input_ids"]])).logits, torch.tensor([r["labels"]])
        ).item()
        for r in tokens
    )
    return -total / sum(label != -100 for r in tokens for label in r["labels"][1:])


def test_the_loss_falls_on_the_examples_and_those_with_their_form(subject):
    before = nats_per_token(subject, subject.rows["forget"])
    attack = Relearn(steps=[20, 5], examples=3, learning_rate=1e-2, batch_size=2)
    found = []
    with attack.stages(subject) as stages:
        for stage in stages:
            assert not stage.model.training
            own = [r for r in stage.rows["forget"] if r["example_id"] in stage.seen]
            unseen = [r for r in stage.rows["forget"] if r["example_id"] not in stage.seen]
            assert len(own) == len(unseen) == 3
            assert stage.facts["loss"] == pytest.approx(nats_per_token(stage, own), abs=1e-5)
            found.append((stage, nats_per_token(stage, unseen)))
    (few, unseen_few), (many, unseen_many) = found
    assert (few.variant, few.level, many.variant, many.level) == ("5 steps", 5.0, "20 steps", 20.0)
    assert few.facts["loss_before"] == many.facts["loss_before"] == pytest.approx(before, abs=0.3)
    assert many.facts["loss"] < few.facts["loss"] < 0.9 * few.facts["loss_before"]
    assert unseen_few < before
    assert unseen_many != unseen_few
    assert {"source": "forget", "examples": 3, "learning_rate": 1e-2, "batch_size": 2}.items() <= (
        many.facts.items()
    )
    assert many.facts["weights_trained"] == sum(p.numel() for p in subject.model.parameters())
    assert "note" not in many.facts
    assert json.loads(json.dumps(many.facts)) == many.facts


def test_the_update_is_adamw_on_the_mean_loss_of_a_token(subject):
    """One step of Adam from zero moments moves each weight by lr * g / (|g| + eps), eps = 1e-8."""
    model = copy.deepcopy(subject.model)
    tokens = tokenize_stream(subject.rows["forget"], subject.tokenizer, subject.template, max_length=256).rows
    count = sum(label != -100 for r in tokens for label in r["labels"][1:])
    for r in tokens:
        loss = sequence_logps(model(torch.tensor([r["input_ids"]])).logits, torch.tensor([r["labels"]]))
        (-loss.sum() / count).backward()
    [(stage, moved)] = attacked(Relearn(steps=[1], examples=None, batch_size=6, learning_rate=1e-3), subject)
    assert stage.variant == "1 step"
    for name, p in model.named_parameters():
        large = p.grad.abs() > 1e-5
        expected = p - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(moved[name][large], expected[large], atol=3e-6, rtol=0)


@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "adapter"])
def test_the_model_is_what_it_was_bit_for_bit(tiny_model, tiny_tokenizer, fictional_rows, wrap):
    model = wrap(tiny_model()).train()
    model.get_input_embeddings().eval()  # modes may differ from module to module
    next(model.parameters()).requires_grad_(False)
    parameter = list(model.parameters())[3].requires_grad_(True)
    parameter.grad = torch.ones_like(parameter)
    subject = make_subject(model, tiny_tokenizer, fictional_rows)
    attack, unchanged = Relearn(steps=[1, 2], learning_rate=1e-2), Unchanged(model)
    with attack.stages(subject) as stages:
        for stage in stages:
            assert stage.model is model
            assert {n: p.requires_grad for n, p in model.named_parameters()} == unchanged.flags
            assert all(p.grad is None for p in model.parameters())
    unchanged.check()
    kept = []

    def body():
        with attack.stages(subject) as stages:
            kept.append(stages)
            next(stages)
            for p in model.parameters():  # a body may leave more behind than it should
                p.grad = torch.zeros_like(p)
            for buffer in model.buffers():
                buffer.add_(1)
            model.train()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        body()
    unchanged.check()
    assert next(kept[0], None) is None
    unchanged.check()


def test_an_exception_while_training_leaves_the_model_too(subject):
    unchanged = Unchanged(subject.model)
    with pytest.raises(ModelError, match=r"loss .* is (nan|inf) after \d steps; lower learning_rate"):
        attacked(Relearn(steps=[9], learning_rate=1e30), subject)
    unchanged.check()
    for p in subject.model.parameters():
        torch.nn.init.constant_(p, torch.nan)
    with pytest.raises(ModelError, match="is nan after 0 steps"):
        attacked(Relearn(), subject)


def test_the_curve_is_the_straight_run(subject):
    def options(steps):
        return Relearn(steps=steps, examples=5, batch_size=2, learning_rate=1e-2)

    curve = attacked(options([1, 4, 7]), subject)
    assert not same(curve[0][1], curve[1][1])
    for stage, moved in curve:
        [(alone, straight)] = attacked(options([int(stage.level)]), subject)
        assert same(moved, straight)
        assert alone.facts == stage.facts


def test_measuring_and_the_global_random_state_change_nothing(subject):
    for module in subject.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    attack = Relearn(steps=[1, 3], learning_rate=1e-2)
    (stage, plain) = attacked(attack, subject)[-1]
    torch.manual_seed(5)
    subject.model.train()
    with torch.no_grad(), attack.stages(subject) as stages:
        assert next(stages).facts["loss_before"] == stage.facts["loss_before"]
        subject.model(torch.tensor([[3, 4]]))
        torch.rand(3)
        subject.model.requires_grad_(False).train()
        assert same(weights(next(stages).model), plain)


def test_the_order_of_rows_does_not_matter_and_the_seed_does(subject):
    def options(seed):
        return Relearn(steps=[3], examples=3, batch_size=2, learning_rate=1e-2, seed=seed)

    [(stage, moved)] = attacked(options(0), subject)
    turned = replace(subject, rows={"forget": subject.rows["forget"][::-1]})
    [(stage_turned, moved_turned)] = attacked(options(0), turned)
    assert stage_turned.seen == stage.seen
    assert same(moved, moved_turned)
    others = [attacked(options(seed), subject)[0] for seed in (1, 2, 3)]
    assert any(other.seen != stage.seen for other, _ in others)
    assert not any(same(moved, other) for _, other in others)


def test_seen_are_the_examples_trained_on_and_those_with_their_question(subject):
    attack = Relearn(steps=[1], examples=2)
    [(stage, _)] = attacked(attack, subject)
    assert len(stage.seen) == 2
    example = next(r for r in subject.rows["forget"] if r["example_id"] in stage.seen)
    twin = {**example, "example_id": "zz", "completion": "Another answer."}
    rows = {**subject.rows, "forget": [*subject.rows["forget"], twin]}
    seed = next(s for s in range(99) if "zz" not in _chosen_ids(rows["forget"], s) and _has(rows, example, s))
    [(stage, _)] = attacked(replace(attack, seed=seed), replace(subject, rows=rows, seen=frozenset({"x"})))
    assert {"zz", "x", example["example_id"]} <= stage.seen
    assert len(stage.seen) == 4


def _chosen_ids(rows, seed):
    from unlearnkit.evaluation.attacks.relearn import _chosen

    return [row["example_id"] for row in _chosen(rows, 2, seed)]


def _has(rows, example, seed):
    return example["example_id"] in _chosen_ids(rows["forget"], seed)


def test_what_was_hidden_comes_back_with_a_part_of_it(subject):
    """A model learns six answers, then a refusal in their place; four answers bring back the others too."""
    forget = subject.rows["forget"]
    rows = {**subject.rows, "refusals": [{**row, "completion": "I do not know."} for row in forget]}
    with Relearn(steps=[150], examples=None, learning_rate=1e-2).stages(subject) as stages:
        target = replace(subject, model=copy.deepcopy(next(stages).model), rows=rows)
    hide = Relearn(steps=[15], source="refusals", examples=None, learning_rate=3e-3)
    with hide.stages(target) as stages:
        unlearned = replace(target, model=copy.deepcopy(next(stages).model))
    nats = {}
    for name, hit in {"unlearned": unlearned, "never trained": subject}.items():
        with Relearn(steps=[10], examples=4, learning_rate=1e-3).stages(hit) as stages:
            stage = next(stages)
            unseen = [row for row in forget if row["example_id"] not in stage.seen]
            after = nats_per_token(stage, unseen)
        nats[name] = (nats_per_token(hit, unseen), after)
    hidden, back = nats["unlearned"]
    assert back < 0.7 * hidden, nats
    fresh, learned = nats["never trained"]
    assert learned > 0.7 * fresh, nats


def test_a_batch_holds_the_next_rows_of_an_order_that_each_epoch_has_of_its_own():
    from unlearnkit.evaluation.attacks.relearn import _batches

    rows = [{"example_id": letter} for letter in "abcdefg"]
    batches = list(itertools.islice(_batches(rows, 3, seed=0), 7))
    assert [len(batch) for batch in batches] == [3] * 7
    order = [row["example_id"] for batch in batches for row in batch]
    epochs = ["".join(order[i : i + 7]) for i in (0, 7, 14)]
    assert ["".join(sorted(epoch)) for epoch in epochs] == ["abcdefg"] * 3
    assert len(set(epochs)) == 3
    again = itertools.islice(_batches(rows[::-1], 3, seed=0), 7)
    assert [row["example_id"] for batch in again for row in batch] == order


def test_all_examples_leave_none_to_measure(subject):
    [(stage, _)] = attacked(Relearn(steps=[1], examples=None, learning_rate=1e-2), subject)
    assert stage.seen == {row["example_id"] for row in subject.rows["forget"]}
    assert "none is left to measure" in stage.facts["note"]


def test_other_sources_disclose_nothing(subject, tmp_path):
    [(stage, moved)] = attacked(Relearn(steps=[2], source="retain", learning_rate=1e-2), subject)
    assert stage.seen == frozenset()
    assert stage.facts["examples"] == 6
    text = tmp_path / "other.txt"
    text.write_text("The sea is wide. " * 40 + "\nThe sky is high.\n")
    attack = Relearn(steps=[2], source=str(text), max_length=32, learning_rate=1e-2)
    [(stage, moved_by_text)] = attacked(attack, subject)
    assert stage.seen == frozenset()
    assert stage.facts["examples"] == 2  # one of them in several pieces
    assert stage.facts["loss"] < stage.facts["loss_before"]
    assert not same(moved, moved_by_text)


def test_a_file_with_forget_examples_discloses_them(subject, tmp_path):
    row = subject.rows["forget"][4]
    path = tmp_path / "leak.jsonl"
    path.write_text(json.dumps({"prompt": row["prompt"], "completion": "I do not know."}))
    [(stage, _)] = attacked(Relearn(steps=[1], source=str(path)), subject)
    assert stage.seen == {row["example_id"]}


def test_an_attack_that_is_too_weak_says_so(subject):
    [(stage, _)] = attacked(Relearn(steps=[1], learning_rate=1e-7, examples=2), subject)
    assert "hardly fell" in stage.facts["note"]
    assert "raise learning_rate" in stage.facts["note"]
    [(stage, _)] = attacked(Relearn(steps=[2], learning_rate=3.0, examples=2), subject)
    assert "rose" in stage.facts["note"]
    assert "lower learning_rate" in stage.facts["note"]


def test_a_model_that_knows_its_examples_is_no_weak_attack(subject):
    with Relearn(steps=[60], examples=2, learning_rate=1e-2).stages(subject) as stages:
        known = next(stages)
        again = replace(subject, model=copy.deepcopy(known.model))
    [(stage, _)] = attacked(Relearn(steps=[1], examples=2, learning_rate=1e-6), again)
    assert stage.facts["loss_before"] < 0.1
    assert "note" not in stage.facts


@pytest.mark.parametrize("which", ["all", "adapter"])
def test_adapters(tiny_model, tiny_tokenizer, fictional_rows, which):
    model = lora(tiny_model(), modules_to_save=["norm"])
    subject, before = make_subject(model, tiny_tokenizer, fictional_rows), weights(model)
    [(stage, moved)] = attacked(Relearn(steps=[2], weights=which, learning_rate=1e-2), subject)
    changed = {name for name in before if not torch.equal(before[name], moved[name])}
    adapters = {name for name in before if "lora_" in name or "modules_to_save" in name}
    in_use = {name for name in before if "original_module" not in name}
    assert changed == (adapters if which == "adapter" else in_use)
    assert stage.facts["loss"] < stage.facts["loss_before"]
    with model.disable_adapter(), pytest.raises(ModelError, match="no part in the output"):
        attacked(Relearn(steps=[1], weights="adapter"), subject)


def test_small_steps_survive_bfloat16(subject):
    """Twenty steps of 1e-5 move a weight of 0.02 by at most 2e-4, and each is far below half its spacing,
    2^-14 = 6e-5: without float32 values none would move it."""
    subject.model.to(torch.bfloat16)
    before, unchanged = weights(subject.model), Unchanged(subject.model)
    [(_, moved)] = attacked(Relearn(steps=[20], learning_rate=1e-5), subject)
    exact = replace(subject, model=copy.deepcopy(subject.model).float())
    [(_, straight)] = attacked(Relearn(steps=[20], learning_rate=1e-5), exact)
    unchanged.check()
    name = next(n for n in before if n.endswith("up_proj.weight"))
    far = before[name].abs() > 1 / 64
    assert (moved[name] != before[name])[far].float().mean() > 0.5
    steps = (moved[name].float() - before[name].float())[far]
    expected = (straight[name] - before[name].float())[far]
    assert torch.corrcoef(torch.stack([steps, expected]))[0, 1] > 0.8


def test_several_processes_take_the_first_one_s_weights(subject, monkeypatch):
    """Here they are told to be: each weight a thousandth more than this process found."""
    [(_, alone)] = attacked(Relearn(steps=[1]), subject)

    def broadcast(tensor, src):
        assert src == 0
        tensor.add_(1e-3)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    unchanged = Unchanged(subject.model)
    [(_, moved)] = attacked(Relearn(steps=[1]), subject)
    unchanged.check()
    for name, value in alone.items():
        assert torch.equal(moved[name], value + 1e-3)
    subject.model.to(torch.bfloat16)
    before = weights(subject.model)
    [(_, moved)] = attacked(Relearn(steps=[1], learning_rate=1e-9), subject)
    for name, value in before.items():
        torch.testing.assert_close(moved[name], (value.float() + 1e-3).bfloat16(), atol=1e-6, rtol=0.01)


def test_a_trainer_s_autocast_is_not_used(subject):
    [(stage, plain)] = attacked(Relearn(steps=[2], learning_rate=1e-2), subject)
    from accelerate.utils.operations import convert_outputs_to_fp32

    model = subject.model
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    model.forward = convert_outputs_to_fp32(autocast(model.forward))
    wrapped = model.forward
    [(again, moved)] = attacked(Relearn(steps=[2], learning_rate=1e-2), subject)
    assert same(plain, moved)
    assert again.facts == stage.facts
    assert model.forward is wrapped


def test_of_quantised_weights_only_the_others_are_trained(tiny_model, tiny_tokenizer, fictional_rows):
    from unlearnkit.evaluation.attacks.quantize import quantized

    for kind in ("nf4", "int8"):
        model = lora(quantized(tiny_model(), kind)[0])
        subject, before = make_subject(model, tiny_tokenizer, fictional_rows), logits(model)
        unchanged = Unchanged(model)
        [(stage, moved)] = attacked(Relearn(steps=[3], learning_rate=1e-2), subject)
        unchanged.check()
        changed = {name for name, value in moved.items() if not torch.equal(value, unchanged.weights[name])}
        assert changed == {name for name in moved if "lora_" in name or "embed" in name or "norm" in name}
        assert stage.facts["loss"] < stage.facts["loss_before"]
        assert torch.equal(before, logits(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": []}, "steps is empty"),
        ({"steps": [5, 0]}, "steps is 0"),
        ({"examples": 0}, "examples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(RecipeError, match=message):
        Relearn(**options).check()


def test_bad_sources_and_models(subject, tmp_path):
    with pytest.raises(DataError, match=r"neither a data set of the suite nor a file; did you mean 'retain'"):
        attacked(Relearn(source="retian"), subject)
    with pytest.raises(DataError, match="max_length=8"):
        attacked(Relearn(max_length=8), subject)
    with pytest.raises(ModelError, match="no adapter"):
        attacked(Relearn(weights="adapter"), subject)
