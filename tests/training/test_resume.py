"""Runs that are killed and started again; checkpoints that were not written to the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers_training import data_sets, difference, logs, lora, make_trainer, weights
from transformers import TrainerCallback

from unlearnkit.files import write_json
from unlearnkit.training.callbacks import (
    COMPLETE,
    LogFile,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
)

SETTINGS = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}


class _Kill(TrainerCallback):
    """The process ends here, without any chance to tidy up."""

    def __init__(self, event, step):
        self.event, self.step = event, step

    def _at(self, event, state):
        if event == self.event and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args, state, control, **kwargs):
        self._at("training", state)

    def on_save(self, args, state, control, **kwargs):
        self._at("saving", state)  # before the checkpoint is marked as complete


def _command(folder: str, model, tokenizer, streams, kill=None, **settings) -> None:
    """What a user starts again after a crash."""
    remove_incomplete_checkpoints(folder)
    found = last_complete_checkpoint(folder)
    trainer = make_trainer(
        "npo",
        model,
        tokenizer,
        streams,
        Path(folder),
        callbacks=[kill] if kill else None,
        **{**SETTINGS, **settings},
    )
    trainer.add_callback(LogFile(Path(folder) / "log.jsonl"))
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    torch.save({"weights": weights(trainer.model), "logs": logs(trainer)}, Path(folder) / "result.pt")


def _in_a_process(*args, **kwargs) -> int:
    """Run the command in a process of its own; its exit code (-9: killed)."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=args, kwargs=kwargs)
    process.start()
    process.join()
    return process.exitcode


def _log_file(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(("event", "step"), [("training", 4), ("training", 6), ("saving", 5)])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path, event, step
):
    """SIGKILL in the middle of an epoch, at its border, and while a checkpoint is written."""
    streams = data_sets(fictional_rows)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = {"matrix_optimizer": "muon"} if event == "saving" else {}
    command = (tiny_model(), tiny_tokenizer, streams)
    assert _in_a_process(str(killed), *command, kill=_Kill(event, step), **settings) == -signal.SIGKILL
    assert not (killed / "result.pt").exists()
    left = last_complete_checkpoint(killed)
    assert left.name == f"checkpoint-{step if event == 'training' else step - 1}"
    assert (killed / f"checkpoint-{step}").is_dir()
    assert _in_a_process(str(killed), *command, **settings) == 0
    _command(str(straight), *command, **settings)
    one, other = (torch.load(folder / "result.pt") for folder in (killed, straight))
    assert all(torch.equal(one["weights"][n], p) for n, p in other["weights"].items())
    assert difference(other["weights"], weights(tiny_model())) > 1e-3
    assert one["logs"] == other["logs"]
    assert len(one["logs"]) == 9
    # The log on disk holds every step once.
    assert _log_file(killed) == _log_file(straight) == other["logs"]


def test_an_adapter_resumes_to_the_bit(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """With dropout, whose random state is part of a checkpoint."""

    tiny_model().save_pretrained(tmp_path / "target")

    def run(resume=None):
        trainer = make_trainer(
            "grad_diff", str(tmp_path / "target"), tiny_tokenizer, data_sets(fictional_rows), tmp_path,
            retain="kl", peft_config=lora(lora_dropout=0.2), save_total_limit=None, **SETTINGS,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = weights(run().model)
    for step in (2, 3):
        resumed = weights(run(str(tmp_path / f"checkpoint-{step}")).model)
        assert all(torch.equal(resumed[n], p) for n, p in straight.items())


# ---- Checkpoint folders ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three complete checkpoints of made-up files."""
    for step in (8, 9, 10):
        place = tmp_path / f"checkpoint-{step}"
        (place / "inner").mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"x" * step)
        (place / "inner" / "rng.pth").write_bytes(b"y")
        write_json(place / COMPLETE, {"step": step, "files": {"model.safetensors": step, "inner/rng.pth": 1}})
    return tmp_path


def test_the_newest_by_number(folder):
    assert last_complete_checkpoint(folder).name == "checkpoint-10"
    assert remove_incomplete_checkpoints(folder) == []
    assert last_complete_checkpoint(folder / "nowhere") is None
    assert remove_incomplete_checkpoints(folder / "nowhere") == []


@pytest.mark.parametrize("harm", ["no mark", "broken mark", "old mark", "file gone", "file cut"])
def test_what_is_not_complete_is_ignored_and_removed(folder, harm):
    newest = folder / "checkpoint-10"
    if harm == "no mark":
        (newest / COMPLETE).unlink()
    elif harm == "broken mark":
        (newest / COMPLETE).write_text('{"step": 1')
    elif harm == "old mark":
        write_json(newest / COMPLETE, {"step": 10})
    elif harm == "file gone":
        shutil.rmtree(newest / "inner")
    else:
        (newest / "model.safetensors").write_bytes(b"x")
    assert last_complete_checkpoint(folder).name == "checkpoint-9"
    assert remove_incomplete_checkpoints(folder) == [newest]
    assert not newest.exists()
    assert (folder / "checkpoint-8").exists()


def test_other_names_are_left_alone(folder):
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-11").write_text("a file")
    assert last_complete_checkpoint(folder).name == "checkpoint-10"
    assert remove_incomplete_checkpoints(folder) == []
    assert (folder / "checkpoint-best").exists()


def test_checkpoints_that_will_be_overwritten_lose_their_mark(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path
):
    """A run that goes on from an older checkpoint and is killed must not find the newer ones of before."""
    command = (str(tmp_path), tiny_model(), tiny_tokenizer, data_sets(fictional_rows))
    _command(*command, save_total_limit=None)
    (tmp_path / "checkpoint-9" / COMPLETE).unlink()
    (tmp_path / "checkpoint-5" / COMPLETE).unlink()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    trainer = make_trainer("npo", *command[1:], tmp_path, **SETTINGS, max_steps=4, save_total_limit=None)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"


def test_the_mark_lists_every_file_of_a_real_checkpoint(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    trainer = make_trainer(
        "grad_ascent",
        tiny_model(),
        tiny_tokenizer,
        data_sets(fictional_rows),
        tmp_path,
        save_strategy="epoch",
    )
    trainer.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    mark = json.loads((tmp_path / "checkpoint-6" / COMPLETE).read_text())
    assert mark["step"] == 6
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= set(mark["files"])
