"""Evaluation while training: it leaves no trace, keeps the best checkpoint, and survives a kill."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import NPO, SFT
from helpers_training import data_sets, logs, lora, make_trainer, weights
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from unlearnkit.errors import DataError, ModelError, RecipeError, UserError
from unlearnkit.evaluation import runner
from unlearnkit.evaluation.suite import load_suite
from unlearnkit.pipeline import Pipeline
from unlearnkit.preflight_evaluation import check_during, during_suite
from unlearnkit.recipe import Recipe, StreamSpec, load_recipe
from unlearnkit.run import RunDir
from unlearnkit.training import during as module
from unlearnkit.training.callbacks import LogFile, last_complete_checkpoint, remove_incomplete_checkpoints
from unlearnkit.training.during import EvaluateDuring
from unlearnkit.training.light_suite import choose, known_retain, lighten
from unlearnkit.training.trajectory import TRAJECTORY, read_trajectory
from unlearnkit.training.undisturbed import undisturbed

#: NPO with 3 steps an epoch; both probabilities fall.
SETTINGS = {"num_train_epochs": 3, "save_strategy": "no", "logging_steps": 1}
#: The lowest forget probability wins as long as any retain probability is left.
KEEP = {"lowest": "forget_probability", "with": "retain_probability", "at_least": 0.0}
HIGHEST = {"highest": "forget_probability", "with": "retain_probability", "at_least": 0.0}
NEVER = {**KEEP, "at_least": 100.0}


def during(streams: Any, **options: Any) -> EvaluateDuring:
    data = {name: streams[name] for name in ("forget", "retain")}
    return EvaluateDuring("forget", data, **{"every": "2 steps", "limit": 4, "max_new_tokens": 4, **options})


class Watch(TrainerCallback):  # type: ignore[misc]
    """The trainable weights after every step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.at[state.global_step] = weights(model)


def trained(
    model: Any, tokenizer: Any, streams: Any, folder: Path, watch: EvaluateDuring | None, *more: Any,
    resume: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    trainer = make_trainer(
        "npo", model, tokenizer, streams, folder, callbacks=[*([watch] if watch else []), *more],
        **{**SETTINGS, **settings},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], p) for n, p in other.items())


def evaluations(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if any(k.startswith("eval_") for k in entry)]


# ---- Without a trace ---------------------------------------------------------------------------------------


def test_weights_and_losses_are_the_same_to_the_bit(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """With dropout, and an evaluation that draws numbers, switches modes and leaves gradients behind."""

    def careless(model: Any, *args: Any, **kwargs: Any) -> Any:
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        found = runner.evaluate(model, *args, **kwargs)
        torch.rand(3), random.random(), np.random.rand(2)
        model.train()
        with torch.enable_grad():
            sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
        return found

    monkeypatch.setattr(module, "evaluate", careless)
    streams = data_sets(fictional_rows)
    found = []
    for name in ("with", "without"):
        watch = during(streams, every="3 steps") if name == "with" else None
        found.append(
            trained(
                tiny_model(), tiny_tokenizer, streams, tmp_path / name, watch,
                peft_config=lora(lora_dropout=0.3),
            )
        )  # fmt: skip
    one, other = found
    assert same(weights(one.model), weights(other.model))
    assert logs(one) == logs(other)
    assert [entry["step"] for entry in evaluations(one)] == [0, 3, 6, 9]
    assert not evaluations(other)


def test_a_model_is_left_as_it_was(tiny_model: Any) -> None:
    model = tiny_model().train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with contextlib.suppress(ZeroDivisionError), undisturbed(model):
        assert not any(m.training for m in model.modules())
        torch.rand(1), random.random(), np.random.rand()
        model.lm_head.weight.grad = None
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert bool((model.lm_head.weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


# ---- Trajectory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_the_trajectory_holds_what_an_evaluation_of_each_step_would_find(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path, bf16: bool
) -> None:
    """Target, every second step, the last step; the same values in the log, beside every loss.

    A model that is trained in mixed precision is measured in its own, as it will be once it is saved.
    """
    streams, steps = data_sets(fictional_rows), Watch()
    watch = during(streams)
    trainer = make_trainer(
        "npo", tiny_model(), tiny_tokenizer, streams, tmp_path, callbacks=[watch, steps],
        bf16=bf16, **SETTINGS,
    )  # fmt: skip
    trainer.add_callback(LogFile(tmp_path / "log.jsonl"))
    trainer.train()
    lines = read_trajectory(tmp_path / TRAJECTORY)
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8, 9]
    assert [line["epoch"] for line in lines] == [0, 0.666667, 1.333333, 2, 2.666667, 3]
    fresh = tiny_model()
    for line in lines:
        fresh.load_state_dict(steps.at.get(line["step"], weights(tiny_model())), strict=False)  # tied
        found = runner.evaluate(
            fresh, tiny_tokenizer, watch.suite, max_new_tokens=4, cache=False, progress=False
        )
        for name, result in found.metrics.items():
            numbers = line["metrics"][name]
            if result.measured:
                assert numbers == {k: getattr(result, k) for k in ("value", "low", "high", "n")}
            else:
                assert (numbers["value"], numbers["n"]) == (None, 0)
    assert lines[0]["metrics"]["forget_probability"]["n"] == 4
    assert lines[0]["metrics"]["forget_quality"]["value"] is None
    values = [line["metrics"]["forget_probability"]["value"] for line in lines]
    assert len(set(values)) == 6
    assert [entry["eval_forget_probability"] for entry in evaluations(trainer)] == values
    assert "eval_forget_quality" not in evaluations(trainer)[0]
    assert len(logs(trainer)) == 9
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in written if "eval_forget_rouge" in e] == [0, 2, 4, 6, 8, 9]
    assert watch.selection is None
    assert not (tmp_path / "best").exists()


def test_by_epochs_and_after_max_steps(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    streams = data_sets(fictional_rows)
    watch = during(streams, every="2 epochs")
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch)
    assert [line["step"] for line in watch.lines] == [0, 6, 9]
    # A new training in the same folder begins a new trajectory.
    watch = during(streams, every="epoch")
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, max_steps=4)
    assert [line["step"] for line in read_trajectory(tmp_path / TRAJECTORY)] == [0, 3, 4]

    class Enough(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    watch = during(streams, every="3 steps")
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, Enough())
    assert [line["step"] for line in watch.lines] == [0, 3, 5]


# ---- Keep and stop -----------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_what_remains(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    """NPO lowers the probability step by step, so the highest after step 0 is that of step 2."""
    streams, steps = data_sets(fictional_rows), Watch()
    watch = during(streams, keep=HIGHEST)
    trainer = trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, steps, save_strategy="epoch")
    values = {line["step"]: line["metrics"]["forget_probability"]["value"] for line in watch.lines}
    best = max((step for step in values if step), key=lambda step: values[step])
    assert best != 9
    assert watch.selection == {
        "rule": "highest forget_probability with retain_probability at least 0 % of the target's",
        "step": best, "of_steps": 9, "metrics": ["forget_probability", "retain_probability"],
        "satisfied": True,
    }  # fmt: skip
    assert same(weights(trainer.model), steps.at[best])
    assert [p.name for p in (tmp_path / "best").iterdir()] == [f"step-{best}.safetensors"]


def test_an_adapters_best_weights_are_its_own_only(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    streams, steps = data_sets(fictional_rows), Watch()
    watch = during(streams, keep=HIGHEST, every="3 steps")
    trainer = trained(
        tiny_model(), tiny_tokenizer, streams, tmp_path, watch, steps, peft_config=lora(lora_dropout=0.1)
    )
    assert watch.selection is not None
    step = watch.selection["step"]
    kept = load_file(tmp_path / "best" / f"step-{step}.safetensors")
    assert kept.keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in kept)
    assert same(weights(trainer.model), steps.at[step])


def test_where_nothing_satisfies_the_rule_the_last_weights_stay(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    streams, steps = data_sets(fictional_rows), Watch()
    watch = during(streams, keep=NEVER)
    trainer = trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, steps)
    assert watch.selection is not None
    assert (watch.selection["satisfied"], watch.selection["step"]) == (False, 9)
    assert "no checkpoint satisfied the rule" in watch.selection["note"]
    assert same(weights(trainer.model), steps.at[9])
    assert not (tmp_path / "best").exists()


def test_patience_and_a_level_end_the_training(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    streams = data_sets(fictional_rows)
    watch = during(streams, keep=NEVER, stop={"patience": 2})
    assert trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch).state.global_step == 4
    level = watch.lines[1]["metrics"]["forget_probability"]["value"]
    for other, last in ((level, 4), (2 * level, 2)):  # "below" is strict
        watch = during(streams, stop={"when": "forget_probability", "below": other})
        trainer = trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch)
        assert trainer.state.global_step == last
        assert watch.selection is not None
        assert (watch.selection["step"], watch.selection["of_steps"]) == (last, 9)


def test_a_model_that_diverges_does_not_win(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path, caplog: Any
) -> None:
    """Its NaN is said in the trajectory, and the checkpoint of before is kept."""

    class Break(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            if state.global_step == 3:
                model.lm_head.weight.data.fill_(torch.nan)

    streams, steps = data_sets(fictional_rows), Watch()
    watch = during(streams, keep=KEEP)
    trainer = trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, steps, Break(), max_steps=6)
    assert [line["step"] for line in watch.lines] == [0, 2, 4, 6]
    assert all("NaN" in line["error"] and not line["metrics"] for line in watch.lines[2:])
    assert "step 4 could not be measured" in caplog.text
    assert same(weights(trainer.model), steps.at[2])
    assert watch.selection is not None
    assert watch.selection["step"] == 2


# ---- Refusals ----------------------------------------------------------------------------------------------


def test_what_is_refused_before_training(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    streams = data_sets(fictional_rows)
    with pytest.raises(RecipeError, match=r"no metric 'forget_roug'; did you mean 'forget_rouge'\?"):
        during(streams, keep={**KEEP, "lowest": "forget_roug"})
    with pytest.raises(RecipeError, match="stop with patience needs a rule"):
        during(streams, stop={"patience": 1})
    watch = during(streams, keep={**KEEP, "with": "retain_truth_ratio"})
    with pytest.raises(
        RecipeError, match="goes by retain_truth_ratio, which cannot be measured on the target"
    ):
        trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch)


@pytest.mark.parametrize(
    ("kind", "stage", "named"),
    [("FSDP", None, "FSDP"), ("DEEPSPEED", 3, "ZeRO-3"), ("DEEPSPEED", 2, None), ("MULTI_GPU", None, None)],
)
def test_split_weights_are_refused(fictional_rows: Any, kind: str, stage: Any, named: str | None) -> None:
    from accelerate.utils import DistributedType

    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), distributed_type=DistributedType[kind]
    )
    watch = during(data_sets(fictional_rows))
    if named is None:
        watch.attach(SimpleNamespace(accelerator=accelerator))
        return
    with pytest.raises(ModelError, match=f"cannot run where .*{named} splits the weights over processes"):
        watch.attach(SimpleNamespace(accelerator=accelerator))


# ---- The light suite ---------------------------------------------------------------------------------------


@given(st.sets(st.text(max_size=5), max_size=20), st.integers(1, 25), st.randoms())
def test_the_chosen_examples_depend_on_their_ids_alone(ids: set[str], limit: int, rng: Any) -> None:
    one = sorted(ids)
    other = one.copy()
    rng.shuffle(other)
    chosen = choose(one, limit)
    assert chosen == sorted(chosen)
    assert len(chosen) == min(limit, len(one))
    assert {one[i] for i in chosen} == {other[i] for i in choose(other, limit)}
    assert choose(one, None) == list(range(len(one)))
    # A larger limit adds to the examples and takes none away.
    assert {one[i] for i in chosen} <= {one[i] for i in choose(one, limit + 1)}


def test_a_retain_models_answers_are_cut_to_the_same_examples(
    target: Path, fictional_rows: Any, tmp_path: Path
) -> None:
    """Forget quality of a model against itself: p = 1, on the examples that remain."""
    from datasets import Dataset

    table = Dataset.from_list(fictional_rows("forget10_perturbed"))
    table.to_parquet(str(tmp_path / "forget.parquet"))
    whole = load_suite("forget", {"forget": str(tmp_path / "forget.parquet")})
    run = tmp_path / "retain"
    runner.evaluate(
        target, suite=whole, output=run / "eval" / "forget", cache=False, progress=False, max_new_tokens=2
    )
    light, kept = lighten(whole, 3, tmp_path)
    assert [len(rows) for rows in runner.load_datasets(light).values()] == [3]
    for reference in (run, run / "model", run / "eval" / "forget"):
        known = known_retain(reference, light, kept)
        assert known is not None
        assert set(known.run.records["example_id"]) == kept["forget"]
    found = runner.evaluate(
        target, suite=light, reference=known, cache=False, progress=False, max_new_tokens=2
    )
    assert found["forget_quality"] == pytest.approx(1.0), found.metrics["forget_quality"].note
    assert known_retain(tmp_path, light, kept) is None
    assert known_retain(None, light, kept) is None
    # Answers to other examples say nothing about these.
    assert known_retain(run, lighten(whole, None, tmp_path)[0], {"forget": {"nobody"}}) is None


def test_a_retain_model_is_measured_once_where_its_answers_are_not_known(
    tiny_model: Any, tiny_tokenizer: Any, target: Path, fictional_rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The target as its own retain model: forget quality 1 at step 0, and below it once the weights moved."""
    from datasets import Dataset

    asked = []

    def count(*args: Any, **options: Any) -> Any:
        asked.append(options["role"])
        return runner.evaluate(*args, **options)

    monkeypatch.setattr(module, "evaluate", count)
    streams = data_sets(fictional_rows)
    forget = Dataset.from_list(fictional_rows("forget10_perturbed"))
    watch = EvaluateDuring(
        "forget", {"forget": forget}, every="3 steps", max_new_tokens=2, reference=str(target)
    )
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path / "run", watch, learning_rate=0.1)
    quality = [line["metrics"]["forget_quality"]["value"] for line in watch.lines]
    assert quality[0] == pytest.approx(1.0)
    assert all(value is not None for value in quality)
    assert min(quality) < 1
    assert asked == ["retain", *["unlearned"] * 4]


# ---- In a recipe -------------------------------------------------------------------------------------------


def recipe(folder: Path, target: Path, *overrides: str) -> Recipe:
    (folder / "npo.yaml").write_text(NPO.replace("TARGET", str(target)))
    return load_recipe(str(folder / "npo.yaml"), ["model.lora=null", "data.root=fictional", *overrides])


RULED = (
    "evaluation.every=2 steps",
    "evaluation.during_limit=3",
    "evaluation.keep={highest: forget_probability, with: retain_probability, at_least: 0}",
)


def test_a_run_keeps_its_trajectory_and_says_what_was_chosen(target: Path, tmp_path: Path) -> None:
    """6 steps; the model that is saved is the one of the step that the manifest names."""
    from safetensors.torch import load_file

    run, said = RunDir(tmp_path / "run"), list[str]()
    manifest = Pipeline(recipe(tmp_path, target, *RULED), run, said.append, progress=False).train()
    lines = read_trajectory(run.root / "trajectory.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert {line["metrics"]["forget_rouge"]["n"] for line in lines} == {3}
    values = {line["step"]: line["metrics"]["forget_probability"]["value"] for line in lines[1:]}
    selection = run.read_manifest()["selection"]  # type: ignore[index]
    assert selection == manifest["selection"]
    assert selection["step"] == max(values, key=lambda step: values[step]) != 6
    assert (selection["of_steps"], selection["satisfied"]) == (6, True)
    kept = load_file(run.checkpoints / "best" / f"step-{selection['step']}.safetensors")
    saved = load_file(run.model / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in kept.items())
    logged = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [e["step"] for e in logged if "eval_forget_rouge" in e] == [0, 2, 4, 6]
    # Another rule would have trained another model: the folder is not taken for it.
    with pytest.raises(UserError, match="holds a run that was made with something else"):
        Pipeline(recipe(tmp_path, target, *RULED[:2]), run, said.append, progress=False).train()


def test_a_mistake_in_a_rule_is_found_before_a_model_is_loaded(
    target: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Pipeline, "load_target", lambda *_: pytest.fail("a model was loaded"))
    for rule, words in (
        ("{lowest: forget_roug, with: retain_rouge}", "no metric 'forget_roug'; did you mean 'forget_rouge'"),
        (
            "{highest: forget_quality, with: retain_rouge}",
            "compares with a retain model; name its evaluation",
        ),
    ):
        wrong = recipe(tmp_path, target, "evaluation.every=epoch", f"evaluation.keep={rule}")
        with pytest.raises(RecipeError, match=words):
            Pipeline(wrong, RunDir(tmp_path / "run"), print, progress=False).train()
    (tmp_path / "sft.yaml").write_text(SFT)
    with pytest.raises(
        RecipeError, match=r"none of its data sets here \(forget, retain.*evaluation.during=NAME"
    ):
        check_during(load_recipe(str(tmp_path / "sft.yaml"), ["evaluation={suite: null, every: epoch}"]))
    missing = recipe(tmp_path, target, "evaluation.every=epoch", "evaluation.data={retain: gone.jsonl}")
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        check_during(missing)


def test_the_suite_that_is_run_meanwhile(target: Path, tmp_path: Path) -> None:
    """By default `forget` on the recipe's own streams, whatever is measured in the end."""
    tofu = "evaluation={suite: tofu, split: forget05, data: {root: fictional}, every: epoch}"
    assert during_suite(recipe(tmp_path, target)) is None
    light = during_suite(recipe(tmp_path, target, tofu))
    assert light is not None
    assert light.name == "forget"
    assert {name: sources for name, sources in light.data.items() if sources} == {
        n: recipe(tmp_path, target).data.streams[n] for n in ("forget", "retain")
    }
    same_suite = during_suite(recipe(tmp_path, target, tofu, "evaluation.during=tofu"))
    assert same_suite is not None
    assert (same_suite.name, same_suite.split, same_suite.root) == ("tofu", "forget05", "fictional")
    own = recipe(tmp_path, target, "evaluation={suite: forget, data: {retain: mine.jsonl}, every: epoch}")
    suite = during_suite(own)
    assert suite is not None
    assert suite.data["retain"] == [StreamSpec(path="mine.jsonl")]


# ---- Kills and resumes -------------------------------------------------------------------------------------


class Kill(TrainerCallback):  # type: ignore[misc]
    """The process ends here."""

    def __init__(self, event: str, step: int) -> None:
        self.event, self.step = event, step

    def _at(self, event: str, state: Any) -> None:
        if event == self.event and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("training", state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("evaluated", state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("ending", state)


RULES: dict[str, dict[str, Any]] = {
    "lowest": {"keep": KEEP},  # every evaluation wins
    "highest": {"keep": HIGHEST},  # the first one wins
    "patience": {"keep": HIGHEST, "stop": {"patience": 2}},  # stops at step 6
    "level": {"stop": {"when": "retain_probability", "below": 1.0}},  # stops at step 2
}


def _command(folder: Path, model: Any, tokenizer: Any, streams: Any, rule: str, kill: Any, save: int) -> None:
    """What a user starts again after a crash; full weights, and a checkpoint every `save` steps."""
    remove_incomplete_checkpoints(folder)
    found = last_complete_checkpoint(folder)
    watch, log = during(streams, **RULES[rule]), LogFile(folder / "log.jsonl")
    trainer = trained(
        model, tokenizer, streams, folder, watch, log, *([kill] if kill else []), save_strategy="steps",
        save_steps=save, resume=str(found) if found else None,
    )  # fmt: skip
    result = {"weights": weights(trainer.model), "selection": watch.selection, "logs": logs(trainer)}
    torch.save({**result, "step": trainer.state.global_step}, folder / "result.pt")


@pytest.mark.parametrize(
    ("rule", "event", "step", "save"),
    [
        ("lowest", "evaluated", 6, 3),  # its weights replaced those that the resume at 3 still needs
        ("highest", "training", 5, 2),
        ("patience", "evaluated", 6, 4),
        ("patience", "ending", 6, 1),  # stopped already: no step more
        ("level", "ending", 2, 1),
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path, rule: str, event: str,
    step: int, save: int, caplog: Any,
) -> None:  # fmt: skip
    """Weights, choice, log, trajectory: each line once, also where a step was evaluated twice."""
    streams, found = data_sets(fictional_rows), []
    for name in ("killed", "straight"):
        folder = tmp_path / name
        folder.mkdir()
        command = (folder, tiny_model(), tiny_tokenizer, streams, rule)
        if name == "killed":
            process = multiprocessing.get_context("fork").Process(
                target=_command, args=(*command, Kill(event, step), save)
            )
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert not (folder / "result.pt").exists()
        _command(*command, None, save)
        found.append((torch.load(folder / "result.pt"), (folder / TRAJECTORY).read_text()))
    (one, lines), (other, straight) = found
    assert same(one["weights"], other["weights"])
    assert (one["selection"], one["step"], one["logs"]) == (other["selection"], other["step"], other["logs"])
    assert lines == straight
    assert "are gone" not in caplog.text
    kept = [sorted(p.name for p in (tmp_path / n).glob("best/*")) for n in ("killed", "straight")]
    assert kept[0] == kept[1]


def test_a_rule_without_the_target_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    """Training went on for a while before the rule was added."""
    streams = data_sets(fictional_rows)
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path, None, save_strategy="epoch", max_steps=3)
    with pytest.raises(UserError, match="does not say what the target was like at step 0"):
        trained(
            tiny_model(), tiny_tokenizer, streams, tmp_path, during(streams, keep=KEEP),
            resume=str(tmp_path / "checkpoint-3"),
        )  # fmt: skip
    watch = during(streams)
    trained(tiny_model(), tiny_tokenizer, streams, tmp_path, watch, resume=str(tmp_path / "checkpoint-3"))
    assert [line["step"] for line in watch.lines] == [4, 6, 8, 9]


# ---- Two processes -----------------------------------------------------------------------------------------

#: One process takes 4 rows, two take 2 each; plain SGD, so that rounding does not grow.
SHARED = {"optim": "sgd", "learning_rate": 0.5, "num_train_epochs": 2}


def _child(folder: str, model: Any, tokenizer: Any, streams: Any) -> None:
    rank = torch.distributed.get_rank()
    watch = during(streams, keep=HIGHEST, stop={"patience": 1})
    trainer = trained(
        copy.deepcopy(model), tokenizer, streams, Path(folder), watch, per_device_train_batch_size=2, **SHARED
    )
    assert trainer.accelerator.num_processes == 2
    result = {"weights": weights(trainer.model), "lines": watch.lines, "selection": watch.selection}
    torch.save(result, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()


def test_two_processes_are_one(
    tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    """Trajectory, choice and the weights that are put back; both processes stop at the same step."""
    import transformers  # noqa: F401  # imported once, before the fork
    from accelerate import debug_launcher

    streams = data_sets(fictional_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        debug_launcher(_child, (str(tmp_path), tiny_model(), tiny_tokenizer, streams), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(first["weights"], second["weights"])
    assert (first["lines"], first["selection"]) == (second["lines"], second["selection"])
    assert read_trajectory(tmp_path / TRAJECTORY) == first["lines"]
    watch, steps = during(streams, keep=HIGHEST, stop={"patience": 1}), Watch()
    single = trained(tiny_model(), tiny_tokenizer, streams, tmp_path / "one", watch, steps, **SHARED)
    assert first["selection"] == watch.selection
    assert watch.selection is not None
    assert (watch.selection["step"], single.state.global_step) == (2, 4)
    assert [line["step"] for line in first["lines"]] == [0, 2, 4]
    for one, other in zip(first["lines"], watch.lines, strict=True):
        assert one["metrics"].keys() == other["metrics"].keys()
        for name, numbers in one["metrics"].items():
            assert numbers == pytest.approx(other["metrics"][name], abs=1e-4)
    for name, p in weights(single.model).items():
        torch.testing.assert_close(first["weights"][name], p, rtol=1e-5, atol=1e-6)
