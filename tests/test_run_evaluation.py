"""What a run evaluates, with what, and what it keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import NPO
from helpers_training import _freeze

from unlearnkit import commands

Runs = Callable[..., Path]
#: Answers with paraphrases and wrong answers, so that forget quality is measured.
FORGET = (
    "evaluation.data={forget: {name: forget10_perturbed, limit: 6}, "
    "retain: {name: retain_perturbed, limit: 6}}"
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A saved tiny model with its tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`make("folder", "training.beta=1")`: a run of the small NPO recipe; None for its own folder."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    _freeze()
    (tmp_path / "npo.yaml").write_text(NPO.replace("TARGET", str(target)))

    def make(folder: str | None, *overrides: str, stages: Any = ("train", "evaluate")) -> Path:
        return commands.run_recipe(str(tmp_path / "npo.yaml"), overrides, folder, stages=stages)

    return make


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_the_reference_may_be_the_folder_of_an_evaluation(make: Runs, target: Path) -> None:
    """Its records are taken over, and its metrics are those of the run's suite."""
    by_model = make("a", FORGET, f"evaluation.reference={target}")
    retain = by_model / "eval" / "forget@retain"
    (retain / "summary.json").write_text(json.dumps({**summary(retain), "metrics": {}}))
    by_folder = make("b", FORGET, f"evaluation.reference={retain}", stages=commands.ALL)
    taken = summary(by_folder / "eval" / "forget@retain")
    assert (taken["role"], taken["label"]) == ("retain", "retain model")
    assert taken["metrics"]["forget_probability"]["value"] > 0
    found = [summary(run / "eval" / "forget") for run in (by_model, by_folder)]
    assert found[0]["metrics"]["forget_quality"]["value"] is not None
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[1]["reference"]["fingerprint"] == taken["fingerprint"]["model"]
    assert (by_folder / "report.html").exists()
