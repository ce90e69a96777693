"""Run folders: killed and started again, complete and called again, changed, on a full disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import NPO, SFT, command, die, files, in_a_process
from helpers_training import _freeze

from unlearnkit import commands, measuring, run
from unlearnkit.errors import ModelError, UserError
from unlearnkit.evaluation import runner, store
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.training import callbacks

Runs = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`make("sft", "folder", "training.beta=1", recipe=..., stages=...)`: a run, with its own cache."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    _freeze()
    (tmp_path / "sft.yaml").write_text(SFT)
    (tmp_path / "npo.yaml").write_text(NPO.replace("TARGET", str(target)))

    def make(name: str, folder: str, *overrides: str, stages: Any = commands.ALL) -> Path:
        monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / f"cache-{folder}"))
        return commands.run_recipe(str(tmp_path / f"{name}.yaml"), overrides, folder, stages=stages)

    return make


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def weights(folder: Path) -> bytes:
    return next((folder / "model").glob("*model.safetensors")).read_bytes()


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no model may be run."""
    import transformers

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)


# ---- Killed --------------------------------------------------------------------------------------------


def kill_at_step(step: int) -> None:
    """The third line of the log is written, and then the process is gone."""
    log = callbacks.LogFile.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log(self, args, state, control, **kwargs)
        if state.global_step == step:
            die()

    callbacks.LogFile.on_log = on_log  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["sft", "npo"])
def test_killed_in_training_ends_like_an_undisturbed_run(make: Runs, tmp_path: Path, name: str) -> None:
    """From scratch with full weights; and an adapter with cached reference log-probs."""

    def killed() -> None:
        kill_at_step(3)
        make(name, "killed", stages=("train",))

    assert in_a_process(killed) == -signal.SIGKILL
    folder = tmp_path / "runs" / "killed"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (folder / "model").exists()
    # A checkpoint that was not written to the end is left out.
    half = folder / "checkpoints" / "checkpoint-3"
    shutil.copytree(folder / "checkpoints" / "checkpoint-2", half)
    (half / "complete.json").unlink()
    if name == "npo":
        # The reference stays that of the target model: it is not asked for again after the resume.
        assert len(list((tmp_path / "cache-killed" / "reference").iterdir())) == 1
    make(name, "killed", stages=("train",))
    straight = make(name, "straight", stages=("train",))
    assert weights(folder) == weights(straight)
    assert losses(folder) == losses(straight)
    assert len(losses(folder)) == 6
    assert not half.exists()
    one, other = manifest(folder), manifest(straight)
    assert one["unlearned_model"] == other["unlearned_model"]
    assert one["tokens_seen"] == other["tokens_seen"] > 0


def test_killed_in_evaluation_asks_only_what_is_missing(
    make: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FLUSH_EVERY", 4)
    settings, stages = ("evaluation.batch_tokens=256", "training.num_train_epochs=1"), ("train", "evaluate")

    def killed() -> None:
        flush = store.ResultStore.flush

        def flush_and_die(self: Any) -> None:
            flush(self)
            if self.folder is not None and len(list(self.folder.glob("*.parquet"))) == 1:
                die()

        store.ResultStore.flush = flush_and_die  # type: ignore[method-assign]
        make("npo", "killed", *settings, stages=stages)

    assert in_a_process(killed) == -signal.SIGKILL
    folder = tmp_path / "runs" / "killed"
    assert manifest(folder)["status"] == "trained"
    chunks = list((tmp_path / "cache-killed" / "answers").rglob("*.parquet"))
    assert len(chunks) == 1
    known = len(store._read(chunks[0]))
    asked = count_pairs(monkeypatch)
    make("npo", "killed", *settings, stages=stages)
    killed_pairs = len(asked)
    asked.clear()
    straight = make("npo", "straight", *settings, stages=stages)
    assert 4 <= known < len(asked)
    assert killed_pairs == len(asked) - known
    assert manifest(folder)["status"] == "complete"
    for name in ("forget", "forget@target"):
        one, other = (EvalRun.load(f / "eval" / name) for f in (folder, straight))
        assert one.records.equals(other.records)
        assert one.meta["metrics"] == other.meta["metrics"]
        assert one.meta["fingerprint"] == other.meta["fingerprint"]


def count_pairs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every pair that the scoring pass is given from here on."""
    from unlearnkit.evaluation import probes

    score, asked = probes.score_answers, list[str]()

    def counted(model: Any, questions: Any, **options: Any) -> Any:
        asked.extend(q.pair for q in questions)
        return score(model, questions, **options)

    monkeypatch.setattr(probes, "score_answers", counted)
    return asked


@pytest.mark.parametrize("moment", ["before the manifest", "before the rename"])
def test_killed_while_the_model_gets_its_name(
    make: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """`model.part` is left over; the same command goes on from the last checkpoint and finishes."""
    with monkeypatch.context() as patch:

        def stop(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        if moment == "before the rename":
            patch.setattr(Path, "rename", stop)
        else:
            patch.setattr("unlearnkit.models.card.write_card", stop)
        with pytest.raises(KeyboardInterrupt):
            make("sft", "a")
    folder = tmp_path / "runs" / "a"
    assert (folder / "model.part").is_dir()
    assert not (folder / "model").exists()
    make("sft", "a")
    assert manifest(folder)["status"] == "trained"
    assert not (folder / "model.part").exists()
    assert weights(folder) == weights(make("sft", "b"))


# ---- Called again --------------------------------------------------------------------------------------


def test_a_complete_run_is_used_again(
    make: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ("train", "evaluate")
    folder = make("npo", "a", stages=stages)
    before = files(folder)
    no_forward(monkeypatch)
    make("npo", "a", stages=stages)
    assert "already trained" in capsys.readouterr().out
    after = files(folder)
    assert {n for n in before if before[n] != after[n]} == set()


def test_what_changed_is_named(make: Runs, tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(8)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    own = ("data.root=null", f"data.train={data}")
    folder = make("sft", "a", *own)
    before = files(folder)
    with pytest.raises(UserError, match=r"\(training.learning_rate changed since\).*--name"):
        make("sft", "a", *own, "training.learning_rate=0.02")
    data.write_text("".join(json.dumps(r) + "\n" for r in rows[1:]))
    with pytest.raises(UserError, match=r"\(data.train changed since\)"):
        make("sft", "a", *own)
    assert files(folder) == before
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds a model but no manifest.json"):
        make("sft", "a", *own)


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    """The second is told who works there; the lock goes with the first."""
    held = run.RunDir(tmp_path / "a")
    with (
        held.in_use(),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}; wait"),
        held.in_use(),
    ):
        pass
    with held.in_use():
        pass


def test_a_changed_target_model_is_named(make: Runs, tmp_path: Path, target: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(target, copy)
    make("npo", "a", f"model.path={copy}", stages=("train",))
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match=r"\(model changed since\)"):
        make("npo", "a", f"model.path={copy}", stages=("train",))


def test_a_folder_without_training_is_claimed_anew(make: Runs, tmp_path: Path) -> None:
    """Nothing of the first try stays: neither its streams in the identity nor its manifest's entries."""
    with pytest.raises(ModelError, match=r"does not exist"):
        make("npo", "a", "model.path=./nowhere")
    with pytest.raises(UserError, match=r"data\.max_length"):
        make("npo", "a", "data.max_length=10")
    assert manifest(tmp_path / "runs" / "a")["status"] == "started"
    settings = ("training.retain=none", "data.retain=null", "evaluation=null")
    folder = make("npo", "a", *settings)
    assert "data.retain" not in manifest(folder)["identity"]
    make("npo", "a", *settings)  # the same command finds the same run


# ---- Names ---------------------------------------------------------------------------------------------


def test_a_run_that_was_not_made(make: Runs) -> None:
    with pytest.raises(
        ModelError, match=r"run:tiny/target: .*make it first with `unlearnkit run tiny/target`"
    ):
        make("npo", "a", "model.path=run:tiny/target")


def test_a_missing_retain_model_is_found_before_training(make: Runs, tmp_path: Path) -> None:
    for reference, message in (("run:nothing", "make it first"), ("./nothing", "does not exist")):
        with pytest.raises(ModelError, match=message):
            make("npo", "a", f"evaluation.reference={reference}")
    with pytest.raises(UserError, match=r"evaluation.data.forget.path: gone.jsonl does not exist"):
        make("npo", "a", "evaluation.data.forget=gone.jsonl")
    assert not (tmp_path / "runs" / "a").exists()


def test_needed_recipes_run_first(
    make: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = tmp_path / "house" / "recipes" / "tiny" / "target.yaml"
    needed.parent.mkdir(parents=True)
    needed.write_text(SFT)
    monkeypatch.setattr("unlearnkit.shipped.folders", lambda kind: [
        f for f in (tmp_path / "house" / kind, Path(__file__).parent.parent / kind) if f.is_dir()
    ])  # fmt: skip
    make(
        "npo", "a", "model.path=run:tiny/target", "needs=[tiny/target]", "model.lora=null",
        "evaluation=null", stages=("train",),
    )  # fmt: skip
    assert "needs tiny/target, which has not been run yet" in capsys.readouterr().out
    target = tmp_path / "runs" / "tiny-target"
    found = manifest(tmp_path / "runs" / "a")
    assert found["model"]["fingerprint"] == manifest(target)["unlearned_model"]["fingerprint"]
    # It is a shipped recipe: the folder where it lies is nobody's business.
    assert manifest(target)["recipe"] == "tiny/target"
    assert str(needed.parent) not in (target / "manifest.json").read_text()


def test_manifest(make: Runs, target: Path) -> None:
    folder = make("npo", "a", "seed=3", stages=("train", "evaluate"))
    found = manifest(folder)
    assert found["format"] == 1
    assert found["status"] == "complete"
    assert found["seed"] == 3
    assert found["method"] == "npo"
    assert found["reference"] == "cached"
    assert found["processes"] == 1
    assert {"torch", "transformers", "peft", "unlearnkit"} <= found["versions"].keys()
    assert found["seconds"].keys() == {"train", "evaluate"}
    assert found["peak_memory_bytes"] > 1 << 24
    assert found["steps"] == 6
    for name in ("forget", "retain"):
        data = found["data"][name]
        assert data["examples"] == 12
        assert 0 < data["target_tokens"] < data["tokens"]
        assert re.fullmatch(r"[0-9a-f]{16}", data["fingerprint"])
    both = sum(found["data"][name]["tokens"] for name in ("forget", "retain"))
    assert found["tokens_seen"] == 2 * both  # two epochs, without padding
    assert found["model"]["path"] == str(target)
    assert 0 < found["model"]["trainable"] < found["model"]["parameters"]
    assert found["model"]["fingerprint"] != found["unlearned_model"]["fingerprint"]
    assert (folder / "recipe.yaml").read_text().startswith("method: npo")
    card = (folder / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "method `npo`" in card


# ---- Full disk -----------------------------------------------------------------------------------------


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["checkpoint", "model", "records", "answers", "reference"])
def test_a_full_disk(
    make: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Exit code 2, one sentence, nothing lost; with space again the same command ends well."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "cache"))
    stage = "run" if what in ("records", "answers") else "train"
    arguments = [stage, tmp_path / "npo.yaml", "--name", "a"]
    arguments += ["training.save_strategy=no"] if what == "model" else []
    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full)
        elif what == "model":
            patch.setattr("transformers.Trainer.save_model", full)
        elif what == "records":
            patch.setattr(EvalRun, "save", full)
        elif what == "answers":
            patch.setattr("pyarrow.parquet.write_table", full)
        else:
            patch.setattr("safetensors.torch.save_file", full)
        assert command(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: the disk is full")
    assert "free some space" in message
    folder = tmp_path / "runs" / "a"
    assert not list(folder.rglob("*.part"))[1:]
    kept = files(folder / "model") if (folder / "model").exists() else {}
    assert bool(kept) == (what in ("records", "answers"))
    assert command(monkeypatch, *arguments) == 0
    assert manifest(folder)["status"] == ("complete" if stage == "run" else "trained")
    if kept:
        assert files(folder / "model") == kept


def test_names_are_those_of_the_library() -> None:
    """The tests above replace these; a renamed one would make them pass for nothing."""
    assert runner.evaluate is measuring.evaluate
    assert run.RunDir(Path("a")).evaluation("tofu", "target") == Path("a/eval/tofu@target")
