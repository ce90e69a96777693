"""What a run evaluates, with what, and what it keeps of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import NPO
from helpers_training import _freeze

from unlearnkit import commands
from unlearnkit.errors import RecordsError, UserError
from unlearnkit.models import load

Runs = Callable[..., Path]
#: Answers with paraphrases and wrong answers, so that forget quality is measured.
FORGET = (
    "evaluation.data={forget: {name: forget10_perturbed, limit: 6}, "
    "retain: {name: retain_perturbed, limit: 6}}"
)


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


def test_a_reference_with_other_data_is_refused_before_training(make: Runs, target: Path) -> None:
    retain = make("a", FORGET, f"evaluation.reference={target}") / "eval" / "forget@retain"
    with pytest.raises(
        RecordsError, match=r"other examples or answers in 'forget'.*\(2 example\(s\) differ\)"
    ):
        make("b", FORGET.replace("limit: 6", "limit: 4", 1), f"evaluation.reference={retain}")
    assert not (retain.parents[2] / "b").exists()


def test_a_reference_with_another_template_is_noted(make: Runs, target: Path) -> None:
    retain = make("a", FORGET, f"evaluation.reference={target}") / "eval" / "forget@retain"
    other = make("b", FORGET, f"evaluation.reference={retain}", "data.template.answer_start='A: '")
    notes = [
        summary(f)["metrics"]["forget_quality"]["note"]
        for f in (retain.with_name("forget"), other / "eval/forget")
    ]
    assert notes == ["", "the reference was evaluated with a template of its own"]


def test_what_the_answers_cost_stays(make: Runs) -> None:
    folder = make("a")
    cost = summary(folder / "eval" / "forget")["cost"]
    assert cost["scored_pairs"] > 0
    assert make("a") == folder
    assert summary(folder / "eval" / "forget")["cost"] == cost


def test_the_target_is_loaded_as_it_was_trained(
    make: Runs, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dtype, attention, revision and tokenizer; for the unlearned adapter too, but its own tokenizer."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for path in target.glob("tokenizer*"):
        shutil.copy(path, tokenizer)
    loaded, tokenizers = [], []
    model, words = load.load_model, load.load_tokenizer
    monkeypatch.setattr(load, "load_model", lambda path, **o: loaded.append((path, o)) or model(path, **o))
    monkeypatch.setattr(
        load, "load_tokenizer", lambda path, **o: tokenizers.append((path, o)) or words(path, **o)
    )
    settings = {"dtype": "bfloat16", "attn_implementation": "eager", "revision": "main"}
    folder = make(
        "a", *(f"model.{key}={value}" for key, value in settings.items()), f"model.tokenizer={tokenizer}"
    )
    bases = [options for path, options in loaded if path == str(target)]
    assert bases == [settings] * 4, "for training, as the target, under the adapter, and as its judge"
    assert (str(folder / "model"), settings) in loaded
    assert tokenizers.count((str(tokenizer), {"revision": "main"})) == 2
    target_name = summary(folder / "eval" / "forget@target")["fingerprint"]["model"]
    assert target_name == json.loads((folder / "manifest.json").read_text())["model"]["fingerprint"]
    adapter = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert adapter["revision"] == "main", "so that it finds the same base model without the recipe"


def test_another_evaluation_trains_nothing_again(
    make: Runs, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same folder, by its settings; recipe, evaluation and report follow."""
    folder = make(None, "training.beta=0.2", "evaluation.before=false")
    changed = ("training.beta=0.2", f"evaluation.reference={target}", FORGET)
    assert make(None, *changed, stages=commands.ALL) == folder
    assert "already trained" in capsys.readouterr().out
    assert f"reference: {target}" in (folder / "recipe.yaml").read_text()
    assert summary(folder / "eval" / "forget")["metrics"]["forget_quality"]["value"] is not None
    assert (folder / "eval" / "forget@target").is_dir()
    assert (folder / "report.html").exists()
    assert make(None, "training.beta=0.3", stages=("train",)) != folder


def test_attacks_and_further_suites_of_a_run(make: Runs, target: Path) -> None:
    """The retain model is attacked alike, as the control; further suites are asked without attacks."""
    data = FORGET.rstrip("}") + "}, holdout: {name: holdout10, limit: 4}}"
    attacks = "evaluation.attacks={relearn: {steps: [1], examples: 2}}"
    settings = (data, f"evaluation.reference={target}", attacks, "evaluation.also=[membership]")
    folder = make("a", *settings, stages=commands.ALL)
    stages = sorted(
        str(p.parent.relative_to(folder / "eval")) for p in folder.glob("eval/*/attacks/*/*/summary.json")
    )
    assert stages == ["forget/attacks/relearn/1-step", "forget@retain/attacks/relearn/1-step"]
    assert sorted(p.name for p in (folder / "eval").glob("membership*")) == [
        "membership", "membership@retain", "membership@target",
    ]  # fmt: skip
    assert summary(folder / "eval/membership")["metrics"]["membership_loss"]["n"] == 10
    report = summary(folder)
    assert [stage["variant"] for stage in report["attacks"]["by_name"]["relearn"]] == ["1 step"]
    assert "membership" in report["other_suites"]
    # The retain model's evaluation, attacked stages included, serves another run.
    other = make("b", data, f"evaluation.reference={folder}/eval/forget@retain", attacks)
    assert (other / "eval/forget@retain/attacks/relearn/1-step/records.parquet").is_file()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("evaluation.attacks=[relern]", "unknown attack 'relern'; did you mean 'relearn'"),
        ("evaluation.attacks={relearn: {step: 1}}", "no option 'step'"),
        ("evaluation.also=[membership]", "membership_loss needs the data set 'holdout'"),
        ("evaluation.also=[forget]", "the suite forget is named twice"),
        ("evaluation.also=[membrship]", "unknown suite 'membrship'; did you mean 'membership'"),
    ],
)
def test_mistakes_are_found_before_training(make: Runs, settings: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        make("a", FORGET, settings)
    assert not (tmp_path / "runs" / "a" / "model").exists()
