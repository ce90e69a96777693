"""`unlearnkit eval`: every evaluation has a folder of its own; a run's model is asked as it was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_pairs import make_pair
from helpers_runs import command

Evaluate = Callable[..., int]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """The tiny model as that of a run that was trained with a template of its own."""
    folder = tmp_path / "runs" / "mine" / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder.parent / "recipe.yaml").write_text("data: {template: {kind: plain, answer_start: 'Reply: '}}\n")
    return folder


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """`evaluate(model, "--split", ...)`: the command on two rows, in an empty folder; its exit code."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text(json.dumps({"question": f"Who is {name}?", "answer": "A writer."}))

    def evaluate(model: Path, *options: str, data: str = "one.jsonl") -> int:
        return command(monkeypatch, "eval", model, "--suite", "forget", "--data", f"forget={data}", *options)

    return evaluate


def kept() -> dict[Path, dict[str, Any]]:
    """The summaries of all evaluations so far, by their folders."""
    found = sorted(Path("evaluations").glob("*/summary.json"))
    return {path.parent: json.loads(path.read_text()) for path in found}


def change(model: Path, tiny_model: Any) -> None:
    changed = tiny_model()
    with torch.no_grad():
        changed.lm_head.weight.mul_(1.5)
    changed.save_pretrained(model)


def test_no_evaluation_overwrites_another(evaluate: Evaluate, model: Path, tiny_model: Any) -> None:
    assert evaluate(model) == 0
    first = kept()
    assert evaluate(model) == 0
    assert kept() == first, "the same one again"
    other = model.parents[2] / "elsewhere" / "mine" / "model"
    shutil.copytree(model.parent, other.parent)
    assert evaluate(other) == evaluate(model, data="two.jsonl") == 0
    assert len(kept()) == 3
    change(model, tiny_model)
    assert evaluate(model) == evaluate(model) == 0
    now = kept()
    assert len(now) == 4
    assert {folder: now[folder] for folder in first} == first
    assert all(folder.name.startswith("mine-forget-") for folder in now)


def test_a_folder_that_is_taken_is_refused(
    evaluate: Evaluate, model: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model, "--output", "out") == evaluate(model, "--output", "out") == 0
    before = Path("out/summary.json").read_bytes()
    change(model, tiny_model)
    capsys.readouterr()
    assert evaluate(model, "--output", "out") == 2
    assert "error: out holds another evaluation (of another model" in capsys.readouterr().err
    assert Path("out/summary.json").read_bytes() == before


def test_the_template_is_that_of_the_run_or_as_given(evaluate: Evaluate, model: Path) -> None:
    bare = model.parents[2] / "bare"
    shutil.copytree(model, bare)
    given = ("--template", "{kind: plain, answer_start: 'Reply: '}")
    for number, (path, options) in enumerate(
        [(model, ()), (model.parent, ()), (bare, given), (bare, ()), (model, ("--template", "{kind: plain}"))]
    ):
        assert evaluate(path, *options, "--output", f"out{number}") == 0
    names = [
        json.loads(Path(f"out{n}/summary.json").read_text())["fingerprint"]["tokenizer"] for n in range(5)
    ]
    assert names[0] == names[1] == names[2] != names[3] == names[4]


def test_a_template_with_a_mistake(
    evaluate: Evaluate, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model, "--template", "{knd: chat}") == 2
    assert "unknown key 'knd' in template; did you mean 'kind'?" in capsys.readouterr().err
    assert evaluate(model, "--template", "chat") == 2
    assert "template must be a section of keys, found 'chat'" in capsys.readouterr().err


def test_attacks_on_the_command_line(
    evaluate: Evaluate, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("six.jsonl").write_text(
        "".join(
            json.dumps({"question": f"Who is {n}?", "answer": f"{n} is a writer."}) + "\n" for n in "abcdef"
        )
    )
    relearn = "relearn: {steps: [1, 2], examples: 3}"
    assert evaluate(model, "--attack", relearn, "--attack", "sampling", data="six.jsonl") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    shown = [" ".join(row[:3]) for row in rows if row[:1] in (["relearn"], ["sampling"])]
    assert shown == ["relearn 1 step", "relearn 2 steps", "sampling worst of"]
    (folder,) = kept()
    assert sorted(p.parent.name for p in folder.glob("attacks/*/*/summary.json")) == [
        "1-step", "2-steps", "worst-of-8",
    ]  # fmt: skip


def test_alphas_on_the_command_line(
    evaluate: Evaluate, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pair = tmp_path / "pair"
    make_pair(tiny_model(), alpha=0.5).save_pretrained(pair)
    tiny_tokenizer.save_pretrained(pair)
    assert evaluate(pair, "--alphas", "1.25,0.5,0.25") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = next(place for place, row in enumerate(rows) if row[:1] == ["alpha"])
    assert [row[:2] for row in rows[start + 1 : start + 4]] == [
        ["0.25", "–"], ["0.5", "(served)"], ["1.25", "–"],
    ]  # fmt: skip
    (folder,) = kept()
    assert sorted(path.parent.name for path in folder.glob("alphas/*/summary.json")) == ["0.25", "1.25"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alphas", "0.5"], "is one model, so there is no alpha to change; leave the alphas out"),
        (["--alphas", "0.5,much"], "--alphas '0.5,much' is no list of numbers; write --alphas 0.25,0.5,1.0"),
        (["--alphas", "0"], "--alphas holds 0; use numbers above 0"),
        (["--alphas", "1,1.0"], "--alphas holds 1 twice"),
        (["--attack", "relern"], "unknown attack 'relern'; did you mean 'relearn'"),
        (["--attack", "[1, 2]"], "is neither a name nor a name with options"),
        (["--role", "master"], "--role is 'master'; it must be unlearned, target or retain"),
        (["--suite", "forgot"], "unknown suite 'forgot'; did you mean 'forget'"),
    ],
)
def test_mistakes_on_the_command_line(
    evaluate: Evaluate, model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert evaluate(model, *options) == 2
    assert message in capsys.readouterr().err
