"""Recipes with preferences: what is refused before anything runs, and what a run is named by."""

from __future__ import annotations

import json

import pytest
from helpers_runs import SFT, command

RPO = """\
# A tiny model prefers refusals
method: METHOD
model: {path: "run:target"}
needs: [TARGET]
data:
  root: fictional
  forget: {name: forget10, limit: 8}
training: {max_steps: 1, per_device_train_batch_size: 4, retain: none, save_strategy: "no"}
evaluation: null
"""
PAIRS = """\
# A tiny model prefers true answers
method: rpo
model: {path: MODEL}
data:
  pairs: {path: fictional, name: pairs, limit: 8}
training: {max_steps: 1, per_device_train_batch_size: 4, save_strategy: "no"}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """`recipe(method, text, *settings, command)`: runs a recipe beside one that it needs; the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "target.yaml").write_text(SFT, encoding="utf-8")

    def run(method, *settings, text=RPO, what="run"):
        text = text.replace("METHOD", method).replace("TARGET", str(tmp_path / "target.yaml"))
        (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
        return command(monkeypatch, what, "own.yaml", *settings)

    return run


@pytest.mark.parametrize(("method", "settings", "sentence"), [
    ("idk_dpo", ["training.refusals=nowhere.txt"], "training.refusals: nowhere.txt does not exist"),
    ("undial", ["training.reference=cached"], "use reference: auto or frozen"),
    ("alt_po", [], "data.forget has no column alternate_answer"),
    ("rpo", [], "set training.preference: refusals (or alternates)"),
    ("npo", ["training.max_length=20"], "write max_length in the section data"),
])  # fmt: skip
def test_mistakes_are_found_before_what_is_needed_is_trained(
    recipe, capsys, tmp_path, method, settings, sentence
):
    for what in ("check", "run"):
        assert recipe(method, *settings, what=what) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs" / "target" / "model").exists()


def test_other_refusals_are_another_run(recipe, capsys, tmp_path, target):
    """The list is no part of the recipe's text, but of what is trained."""
    lines = tmp_path / "refusals.txt"
    settings = [f"model.path={target}", "needs=[]", f"training.refusals={lines}"]
    lines.write_text("I do not know.\nI cannot say.\n", encoding="utf-8")
    assert recipe("idk_dpo", *settings) == 0
    manifest = json.loads(next((tmp_path / "runs").glob("own*/manifest.json")).read_text())
    assert manifest["data"]["forget.refusal"]["source"] == f"refusals: {lines}"
    assert manifest["data"]["forget"]["source"] == "fictional:forget10"
    assert manifest["retain"] == {"term": "none", "weight": 1.0}
    capsys.readouterr()
    assert recipe("idk_dpo", *settings) == 0
    assert "already trained" in capsys.readouterr().out
    lines.write_text("I do not know.\nNo idea.\n", encoding="utf-8")
    assert recipe("idk_dpo", *settings) == 2
    assert "answers.forget.refusal changed since" in " ".join(capsys.readouterr().err.split())


def test_without_a_forget_set_nothing_is_measured_unasked(recipe, capsys, tmp_path, target):
    """A pairs recipe that says nothing of evaluation does not fetch a benchmark."""
    assert recipe("rpo", f"model.path={target}", text=PAIRS) == 0
    shown = capsys.readouterr().out
    assert "Model: " in shown
    (run,) = (tmp_path / "runs").glob("own*")
    assert not (run / "eval").exists()
    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert '"rewards/accuracies"' in log[0]


def test_what_is_drawn_from_may_be_gone_when_the_training_ends(recipe, tmp_path, target, monkeypatch):
    """The list was read when the run began; its file is not asked for again."""
    from transformers import Trainer

    lines = tmp_path / "refusals.txt"
    lines.write_text("I do not know.\nI cannot say.\n", encoding="utf-8")
    train = Trainer.train

    def without_file(self, *args, **kwargs):
        lines.unlink()
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", without_file)
    settings = [f"model.path={target}", "needs=[]", f"training.refusals={lines}"]
    assert recipe("idk_dpo", *settings) == 0
    assert list((tmp_path / "runs").glob("own*/model/*.safetensors"))


def test_answers_without_words_of_their_own_name_nothing():
    """Their address in memory would be another one in every process."""
    from types import SimpleNamespace

    from unlearnkit import preflight_training

    class Own:
        pass

    bare = SimpleNamespace(build_answers=lambda: {"forget.own": Own()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight_training, "bare_trainer", lambda recipe, args: bare)
        assert preflight_training.answers_identity(None, None) == {}
