"""`unlearnkit export`: what is written opens elsewhere and says the same; nothing on the disk is lost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import NPO, SFT, command, die, files, in_a_process
from torch import Tensor

from unlearnkit import exporting
from unlearnkit.errors import DataError
from unlearnkit.models.load import load_model
from unlearnkit.training import callbacks

ULD = """\
# A pair that forgets 6 rows
method: uld
model: {path: TARGET}
data:
  root: fictional
  forget: {name: forget10, limit: 6}
  retain: {name: retain90, limit: 9}
training:
  num_train_epochs: 6
  per_device_train_batch_size: 3
  learning_rate: 0.03
  save_strategy: "no"
evaluation: {suite: forget, max_new_tokens: 6}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs: `weights`, `adapter` on it, and `pair` on it; read, never written to."""
    from unlearnkit import commands

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNKIT_RUNS", str(root / "runs"))
        patch.setenv("UNLEARNKIT_CACHE", str(root / "cache"))
        target = str(root / "runs" / "weights" / "model")
        sft = SFT.replace("num_layers: 1", "num_layers: 3").replace(
            "num_train_epochs: 2", "num_train_epochs: 12"
        )
        for name, text in (("weights", sft), ("adapter", NPO), ("pair", ULD)):
            (root / f"{name}.yaml").write_text(text.replace("TARGET", target))
            stages = commands.ALL if name == "pair" else ("train",)
            commands.run_recipe(str(root / f"{name}.yaml"), (), name, stages=stages)
    return root / "runs"


@pytest.fixture
def run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """`run("pair", "out", ...)`: `unlearnkit export`, its exit code and what it printed."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(runs))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command(monkeypatch, "export", *arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


IDS = torch.tensor([[5, 9, 30, 41, 2, 17], [8, 8, 100, 3, 60, 61]])


def logits(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS, **options).logits
    return found


# ---- A pair --------------------------------------------------------------------------------------------

ELSEWHERE = """
import importlib.machinery, json, sys
real = importlib.machinery.PathFinder.find_spec
absent = ("unlearnkit", "peft")
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] in absent else real(name, *rest)
)
for name in absent:
    try:
        __import__(name)
        raise SystemExit(f"{name} is there")
    except ModuleNotFoundError:
        pass
import torch, transformers
model = eval(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=True)
ids = torch.tensor(json.loads(sys.argv[3]))
said = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
found = {"logits": model(ids).logits.tolist(), "said": said.tolist(), "text": tokenizer.decode(said[0])}
print(json.dumps({**found, "class": type(model).__name__}))
"""


def test_a_pair_opens_where_unlearnkit_is_not_installed(run: Run, runs: Path, tmp_path: Path) -> None:
    """In a fresh interpreter that finds neither UnlearnKit nor peft, by the line that the command prints."""
    code, out, _ = run("pair", "out")
    assert code == 0
    line = out.partition("Open it with: ")[2].strip()
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, line, "out", json.dumps(IDS.tolist())], text=True,
        capture_output=True, cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    own = load_model(str(runs / "pair" / "model"))
    assert found["class"] == "ULDForCausalLM"
    assert torch.allclose(torch.tensor(found["logits"]), logits(own), atol=1e-5)
    assert found["said"] == own.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0).tolist()
    assert found["text"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "log p = log p_target - 0.75 log p_assistant" in card
    assert "is unchanged and still knows everything" in card
    assert "lie in `target/`" in card
    assert "method: uld" in card  # how it was made


@pytest.mark.parametrize("form", [(), ("--light",)], ids=["whole", "light"])
def test_another_alpha_and_no_filter(run: Run, runs: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    """What is written answers as the run's own pair does once it is served so; the run stays as it was."""
    before = files(runs / "pair")
    code, out, _ = run("pair", "out", "--alpha", "0.3", "--filter", "0", *form)
    assert code == 0
    made, own = load_model(str(tmp_path / "out")), load_model(str(runs / "pair" / "model"))
    assert (made.alpha, made.config.top_logit_filter) == (0.3, None)
    usual = logits(own)
    own.alpha, own.config.top_logit_filter = 0.3, None
    assert torch.allclose(logits(made), logits(own), atol=1e-5)
    assert not torch.allclose(logits(made), usual, atol=1e-3)
    assert files(runs / "pair") == before
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- 0.3 log p_assistant" in card
    assert "No filter is used" in card
    assert ("which this folder only names" in card) == bool(form)
    assert ("unlearnkit.models.load.load_model" in out) == bool(form)


def test_half_precision(run: Run, tmp_path: Path) -> None:
    assert run("pair", "out", "--dtype", "bfloat16")[0] == 0
    made = load_model(str(tmp_path / "out"))
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}


# ---- Ordinary models -----------------------------------------------------------------------------------


def test_an_adapter_is_copied_or_merged(run: Run, runs: Path, tmp_path: Path) -> None:
    assert run("adapter", "copied")[0] == 0
    own = runs / "adapter" / "model"
    copied = files(tmp_path / "copied")
    assert copied.pop("export.json")
    assert copied == files(own)
    code, out, _ = run("adapter", "merged", "--merge")
    assert code == 0
    assert "transformers.AutoModelForCausalLM.from_pretrained('merged')" in out
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = load_model(str(tmp_path / "merged"))
    assert torch.allclose(logits(merged), logits(load_model(str(own))), atol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_weights_are_copied_or_rounded(run: Run, runs: Path, tmp_path: Path) -> None:
    assert run("weights", "copied")[0] == 0
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == (
        runs / "weights" / "model" / "model.safetensors"
    ).read_bytes()
    assert run("weights", "rounded", "--dtype", "bfloat16")[0] == 0
    rounded, own = (load_model(str(f)) for f in (tmp_path / "rounded", runs / "weights" / "model"))
    for one, other in zip(rounded.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


# ---- Which run, and where to ---------------------------------------------------------------------------


def test_every_way_to_name_a_run(run: Run, runs: Path) -> None:
    one = exporting.find("pair")
    assert (one.kind, one.name, one.model) == ("pair", "pair", runs / "pair" / "model")
    for text in ("run:pair", str(runs / "pair"), str(runs / "pair" / "model")):
        other = exporting.find(text)
        assert (other.kind, other.name, other.model.resolve()) == ("pair", "pair", one.model.resolve())
        assert other.run is not None
        assert other.run.root.resolve() == (runs / "pair").resolve()
    assert exporting.find("adapter").kind == "adapter"
    assert exporting.find("weights").kind == "weights"


def test_a_model_of_no_run(run: Run, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "weights" / "model", tmp_path / "somewhere")
    assert exporting.find("somewhere").run is None
    code, out, _ = run("somewhere")
    assert code == 0
    assert "Wrote exports/somewhere (" in out


def test_the_same_export_again(run: Run, tmp_path: Path) -> None:
    """It is found, and another one is refused; an empty folder is filled."""
    (tmp_path / "out").mkdir()
    assert run("pair", "out", "--light")[0] == 0
    before = files(tmp_path / "out")
    code, out, _ = run("pair", "out", "--light")
    assert code == 0
    assert "holds this very export already" in out
    code, _, err = run("pair", "out", "--light", "--alpha", "0.5")
    assert code == 2
    assert err.strip() == "error: out exists and is not empty; name another folder, or remove it"
    assert files(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_default_folders_tell_what_was_asked_for(run: Run, tmp_path: Path) -> None:
    for asked in ([], ["--alpha", "0.5"], ["--light", "--filter", "0"]):
        assert run("pair", *asked)[0] == 0
    assert run("adapter", "--merge")[0] == 0
    assert sorted(p.name for p in (tmp_path / "exports").iterdir()) == [
        "adapter-merged", "pair", "pair-alpha0.5", "pair-filter0-light",
    ]  # fmt: skip


def test_an_interrupted_export_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_json", stop)  # the last file of a copy
    assert run("weights", "out")[0] == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pier"], "there is no run 'pier' in RUNS, and no folder of that name; did you mean 'pair'?"),
        (["pair", "out", "--alpha", "0"], "--alpha is 0; give a number above 0 (alpha 0 is the target model"),
        (["pair", "out", "--alpha", "nan"], "--alpha is nan; give a number above 0"),
        (["pair", "out", "--filter", "1"], "--filter is 1; give a number between 0 (no filter) and 1"),
        (["weights", "out", "--alpha", "0.5"], "is one model and no pair; leave out --alpha, --filter and"),
        (["adapter", "out", "--light"], "is one model and no pair; leave out --alpha, --filter and --light"),
        (["pair", "out", "--merge"], "so there is nothing to merge; leave out --merge (--distill makes one"),
        (["weights", "out", "--merge"], "is no adapter, so there is nothing to merge; leave out --merge"),
        (["weights", "out", "--dtype", "int8"], "--dtype is 'int8'; use one of float32, bfloat16, float16"),
        (["adapter", "out", "--dtype", "float16"], "here an adapter is copied; leave it out"),
        (["pair", "out", "--light", "--dtype", "float16"], "--dtype changes whole weights"),
        (["pair", "out", "--set", "seed=1"], "--set changes how a pair is distilled; add --distill"),
        (["pair", "out", "--answers", "5"], "--answers changes how a pair is distilled; add --distill"),
        (["pair", "file"], "file exists and is not empty; name another folder"),
        (["nothing"], "nothing holds no model and is no run; name a run, its folder or a model folder"),
        (["begun"], "the training in begun has not come to its end (it is started); give its `unlearnkit"),
        (["RUNS/pair/model/assistant"], "is only a part of the combined model around it; name"),
        (["adapter", "out", "--distill"], "so there is no pair to distil; name such a run"),
        (["pair", "out", "--distill", "--light"], "leave out --light, --merge and --dtype"),
        (["pair", "out", "--distill", "--alpha", "-1"], "--alpha is -1; give a number above 0"),
        (["pair", "file", "--distill"], "file is a file; name a folder for the distilled run"),
        (["pair", "full", "--distill"], "full is not empty and holds no distilled run (but mine.txt); name"),
        (["pair", "out", "--distill", "--set", "training.lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["pair", "out", "--distill", "--set", "training.filtered=no"], "use neutral or removed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes(
    run: Run, runs: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in one sentence before any model is loaded, and nothing is written."""
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "manifest.json").write_text('{"status": "started"}')
    before = files(tmp_path)
    code, _, err = run(*(one.replace("RUNS", str(runs)) for one in arguments))
    assert code == 2
    assert message.replace("RUNS", str(runs)) in err
    assert len(err.strip().splitlines()) == 1
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_pair_that_holds_its_target_has_no_light_form(run: Run) -> None:
    assert run("pair", "out")[0] == 0
    code, _, err = run("out", "again", "--light")
    assert code == 2
    assert "out holds its target model itself, so there is no light form" in err
    assert run("out", "again", "--alpha", "0.2")[0] == 0
    assert load_model("again").alpha == 0.2


# ---- Distillation --------------------------------------------------------------------------------------

SHORT = ("--set", "training.num_train_epochs=6", "--set", "training.save_strategy=steps",
         "--set", "training.save_steps=1")  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_distil_killed_and_taken_up_again(run: Run, runs: Path, tmp_path: Path) -> None:
    """An ordinary run comes out, the same as without the kill; pair and adapter stand in one report."""
    before = files(runs / "pair")

    def killed() -> None:
        log = callbacks.LogFile.on_log

        def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log(self, args, state, control, **kwargs)
            if state.global_step == 3:
                die()

        callbacks.LogFile.on_log = on_log  # type: ignore[method-assign]
        run("pair", "killed", "--distill", *SHORT)

    assert in_a_process(killed) == -signal.SIGKILL
    made = tmp_path / "killed"
    assert (made / "checkpoints").is_dir()
    assert not (made / "model").exists()
    answers = (made / "answers_forget.jsonl").read_bytes()
    for folder in ("killed", "straight"):
        code, out, err = run("pair", folder, "--distill", *SHORT)
        assert code == 0, err
    assert (made / "answers_forget.jsonl").read_bytes() == answers
    for file in ("model/adapter_model.safetensors", "answers_retain.jsonl", "eval/forget/records.parquet"):
        assert (made / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file
    assert files(runs / "pair") == before

    asked = lines(made / "answers_forget.jsonl")
    assert 0 < len(asked) <= 6  # empty ones are left out
    assert json.loads((made / "answers.json").read_text())["rows"]["forget"] == len(asked)
    assert all(row["prompt"] and row["completion"] for row in asked)
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["status"], manifest["method"]) == ("complete", "unlearnkit.training.distill")
    found = manifest["distilled_from"]
    assert found["name"] == "pair"
    assert found["serving"]["weights"] == {"target": 1.0, "assistant": -0.75}
    assert list(found["kl"]) == ["forget", "forget_answered", "retain", "retain_answered"]
    assert sum(one["kl"] for one in found["kl"].values()) < sum(
        one["kl_before"] for one in found["kl"].values()
    )
    assert (made / "comparison" / "report.html").is_file()
    assert "The pair and the adapter side by side" in out
    # The adapter is exported like any other.
    assert run(made, "merged", "--merge")[0] == 0


def test_another_pair_is_not_distilled_into_the_same_folder(run: Run, tmp_path: Path) -> None:
    one = ("--set", "training.max_steps=1", "--set", "evaluation=null")
    assert run("pair", "out", "--distill", *one)[0] == 0
    before = files(tmp_path)
    code, _, err = run("pair", "out", "--distill", "--alpha", "0.5", *one)
    assert code == 2
    assert "out was distilled from another pair (or this one trained again, served otherwise or asked" in err
    assert files(tmp_path) == before


def test_the_recipe_of_a_distillation(tmp_path: Path) -> None:
    """Everything that the pair's run read is distilled; what shaped the assistant is left behind."""
    from unlearnkit.distilling import distilled_recipe
    from unlearnkit.run import RunDir

    text = ULD.replace("TARGET", "some/model").replace(
        "training:",
        "  paraphrase: {name: forget10, columns: {prompt: paraphrased_question, completion: answer}}\n"
        "  mix: {anchor: forget, paraphrase_per_forget: 2}\n"
        "serving: {alpha: 0.5}\ntraining:\n  remember_streams: [forget, paraphrase]\n  bf16: true",
    )
    (tmp_path / "recipe.yaml").write_text(text)
    made = RunDir(tmp_path / "made")
    found = distilled_recipe(RunDir(tmp_path), made, {"alpha": 0.25}, ["data.mix.retain_per_forget=3"])
    assert found.training == {
        "per_device_train_batch_size": 3, "bf16": True, "pair": str(tmp_path / "model"), "alpha": 0.25,
        "forget_streams": ["forget", "forget_answered", "paraphrase"],
        "retain_streams": ["retain", "retain_answered"],
    }  # fmt: skip
    assert found.data.mix.anchor == "forget"
    assert found.data.mix.ratios == {
        "forget_answered": 1, "paraphrase": 1, "retain": 3, "retain_answered": 1,
    }  # fmt: skip
    assert found.data.streams["forget_answered"][0].path == str(tmp_path / "made" / "answers_forget.jsonl")
    assert (found.model.path, found.model.lora) == ("some/model", {"r": 32, "lora_alpha": 64})
    assert found.serving is None
    assert found.evaluation.max_new_tokens == 6
    (tmp_path / "recipe.yaml").write_text(SFT)
    with pytest.raises(DataError, match=r"has neither data\.forget nor data\.retain, on whose prompts"):
        distilled_recipe(RunDir(tmp_path), made)


def test_where_a_distilled_run_lies(runs: Path) -> None:
    """Beside the run; settings that train something else have a folder of their own, evaluations have not."""
    from unlearnkit.distilling import default_folder
    from unlearnkit.run import RunDir

    run = RunDir(runs / "pair")
    plain = default_folder(run, {}, ["evaluation.suite=tofu"])
    assert plain == runs / "pair-distilled"
    others = {default_folder(run, {"alpha": 0.5}, []), default_folder(run, {}, ["seed=1"]), plain}
    assert len(others) == 3
    assert all(folder.name.startswith("pair-distilled") for folder in others)


def test_more_prompts_than_are_answered() -> None:
    """Evenly spread, the first one among them, each once."""
    from unlearnkit.distilling_answers import MOST_ROWS, evenly

    rows = list(range(2 * MOST_ROWS + 7))
    chosen = evenly(rows)
    assert len(chosen) == len(set(chosen)) == MOST_ROWS
    assert {b - a for a, b in itertools.pairwise(chosen)} == {2, 3}
    assert evenly(rows[:5]) == rows[:5]
    assert evenly([]) == []
