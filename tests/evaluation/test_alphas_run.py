"""Alphas of a recipe: the unlearned model's; serving it with one of them asks and trains nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlearnkit import commands
from unlearnkit.errors import RecipeError
from unlearnkit.evaluation import probes

ULD = """\
# A tiny model forgets 6 rows by an assistant
method: uld
model: {path: TARGET}
data:
  root: fictional
  forget: {name: forget10_perturbed, limit: 6}
  retain: {name: retain_perturbed, limit: 6}
training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.01, save_strategy: "no"}
evaluation: {suite: SUITE, alphas: [0.25, 0.5], reference: TARGET, attacks: [strip_adapter, sampling]}
"""
SUITE = """\
suite: small
version: 1
data: {forget: null}
probes: {answer_likelihood: [forget], generate_answer: [forget], max_new_tokens: 4}
metrics:
  quality: {kind: forget_quality, dataset: forget}
"""


@pytest.fixture
def run(tmp_path, target, monkeypatch):
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "small.yaml").write_text(SUITE)
    text = ULD.replace("TARGET", str(target)).replace("SUITE", str(tmp_path / "small.yaml"))
    (tmp_path / "uld.yaml").write_text(text)

    def call(*overrides):
        return commands.run_recipe(str(tmp_path / "uld.yaml"), overrides, None, stages=("train", "evaluate"))

    return call


def summary(folder: Path):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.filterwarnings("ignore:the assistant is trained without")
def test_another_alpha_needs_no_training_and_no_questions(run, monkeypatch, capsys):
    folder = run()
    measured = folder / "eval" / "small"
    assert sorted(p.parent.parent.name for p in folder.glob("eval/*/alphas/alphas.json")) == ["small"]
    first = {alpha: summary(measured / "alphas" / alpha) for alpha in ("0.25", "0.5")}
    served = summary(measured)
    assert served["serving"]["alpha"] == 0.75
    assert {s["role"] for s in (served, *first.values())} == {"unlearned"}
    assert first["0.5"]["metrics"]["quality"]["value"] is not None
    assert first["0.5"]["reference"] == served["reference"]
    attacked = sorted(p.parents[1].name + "/" + p.name for p in folder.glob("eval/*/attacks/*"))
    assert attacked == ["small/sampling", "small/strip_adapter", "small@retain/sampling"]
    stripped = summary(measured / "attacks" / "strip_adapter" / "stripped")
    assert "serving" not in stripped
    target = summary(folder / "eval" / "small@target")
    assert stripped["fingerprint"] == target["fingerprint"], "without its assistant the target answers"
    assert "alpha" in capsys.readouterr().out

    def nothing(*args, **kwargs):
        raise AssertionError("everything is known")

    for name in ("score_answers", "score_at", "generate_answers"):
        monkeypatch.setattr(probes, name, nothing)
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("model/**/*.safetensors")}
    assert weights
    assert run("serving.alpha=0.5", "evaluation.attacks=[strip_adapter]") == folder
    assert {path: path.stat().st_mtime_ns for path in weights} == weights, "not trained again"
    now = summary(measured)
    assert now["serving"]["alpha"] == 0.5
    assert now["fingerprint"] == first["0.5"]["fingerprint"]
    assert now["metrics"] == first["0.5"]["metrics"]
    listed = json.loads((measured / "alphas" / "alphas.json").read_text())
    assert (listed["own"], listed["alphas"]) == (0.5, [0.25, 0.5])


def test_a_method_with_one_model_has_no_alphas(run):
    with pytest.raises(RecipeError, match=r"evaluation.alphas is set, but the method npo"):
        run("method=npo")
