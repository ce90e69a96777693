"""The command line: exit codes, messages, and every command on small inputs."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_runs import NPO, SFT, command
from helpers_training import _freeze

from unlearnkit import cli, launcher
from unlearnkit.errors import RecipeError, UserError

#: (arguments) -> (exit code, standard output, standard error)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("ls", "recipes")` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("UNLEARNKIT_RUNS", raising=False)
    monkeypatch.delenv("UNLEARNKIT_LAUNCHED", raising=False)
    _freeze()

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = command(monkeypatch, *arguments)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A saved tiny model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def qa(*names: str) -> list[dict[str, str]]:
    return [{"question": f"Who is {n}?", "answer": f"{n} is a writer."} for n in names]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FORGET, KEEP = qa("Ana", "Bo", "Cy", "Di"), qa("Ed", "Fay", "Gus", "Hal")
QUICK = (
    "training.max_steps=2", "training.per_device_train_batch_size=2", "evaluation.max_new_tokens=4",
    "training.save_strategy=no",
)  # fmt: skip


# ---- Exit codes ----------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    from unlearnkit import __version__

    assert run("version") == (0, f"{__version__}\n", "")


COMMANDS = ["quickstart", "run", "train", "eval", "compare", "report", "ls", "cp", "check", "data", "version"]


@pytest.mark.parametrize(
    "arguments", [[], *([c] for c in COMMANDS), ["data", "export"], ["data", "annotate"]], ids=" ".join
)
def test_help(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments, "--help")
    assert (code, err) == (0, "")
    assert "Usage:" in out
    for name in COMMANDS if not arguments else []:
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["run"], "Missing argument"),
        (["run", "fictional/npo", "--colour"], "No such option"),
        (["run", "fictional/npo", "--launch", "ddp", "--processes", "0"], "--processes"),
        (["run", "fictional/nope"], "error: unknown recipe 'fictional/nope'; did you mean 'fictional/npo'?"),
        (["check", "mine.yaml"], "error: mine.yaml does not exist"),
        (["ls", "recipe"], "error: cannot list 'recipe'; did you mean 'recipes'?"),
        (["cp", "tofu/npoo", "a.yaml"], "error: nothing is shipped as 'tofu/npoo'; did you mean 'tofu/npo'?"),
        (["data", "export", "tofu", "a"], "error: there is no built-in benchmark 'tofu'; use fictional"),
        (
            ["eval", "./nowhere", "--data", "root=fictional"],
            "error: ./nowhere does not exist; check the path to the tokenizer",
        ),
        (["eval", "run:nobody"], "error: run:nobody: there is no model in runs/nobody/model; make it first"),
        (["eval", ".", "--data", "root"], "error: --data 'root' is not key=value"),
        (["eval", ".", "--data", "roots=a"], "error: suite tofu has no data set 'roots'"),
        (["report", "./nowhere"], "error: "),
        (["train", "fictional/npo", "training.beta"], "write it as key=value"),
        (["train", "fictional/npo", "data.forgte=x"], "did you mean 'forget'?"),
        (["run", "forget", "--forget", "gone.jsonl"], "model has neither path nor create; give one"),
        (["run", "forget", "--model", "./m", "--forget", "gone.jsonl"], "the model ./m does not exist"),
        (["run", "forget", "--model", "m", "--forget", "gone.jsonl"], "gone.jsonl does not exist"),
    ],
)
def test_the_users_mistakes(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert not Path("runs").exists()


def test_a_fault_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the inside is broken")

    monkeypatch.setattr("unlearnkit.listing.listing", broken)
    code, _, err = run("ls")
    assert code == 1
    assert err == (
        "error: RuntimeError: the inside is broken (a fault of ours: please report it with the output of "
        "--debug)\n"
    )
    for line in (["--debug", "ls"], ["ls", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["unlearnkit", *line])
        with pytest.raises(RuntimeError, match="the inside is broken"):
            cli.main()
        os.environ.pop("UNLEARNKIT_DEBUG")


def test_debug_shows_the_users_mistake_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unlearnkit", "check", "nothing", "--debug"])
    with pytest.raises(RecipeError, match="unknown recipe 'nothing'"):
        cli.main()
    os.environ.pop("UNLEARNKIT_DEBUG")


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnkit.listing.listing", interrupt)
    assert run("ls") == (130, "", "error: interrupted; the same command goes on where it stopped\n")


def test_a_full_disk_under_another_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries wrap the system's error; safetensors only writes it into its text."""

    def fail(*args: Any) -> None:
        try:
            raise ValueError("I/O error: No space left on device (os error 28)")
        except ValueError as error:
            raise RuntimeError("cannot save") from error

    monkeypatch.setattr("unlearnkit.listing.listing", fail)
    code, _, err = run("ls")
    assert code == 2
    assert err.startswith("error: the disk is full; free some space")


@pytest.mark.parametrize(("free", "expected"), [(0, 2), (1 << 40, 1)])
def test_a_full_disk_that_torch_does_not_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:743] . unexpected pos 704 vs 598")

    usage = SimpleNamespace(total=1 << 40, used=0, free=free)
    monkeypatch.setattr("unlearnkit.listing.listing", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, _, err = run("ls")
    assert code == expected
    assert err.startswith("error: the disk is full; free some space") == (expected == 2)


def test_one_process_of_several_speaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("check", "nothing") == (2, "", "")


# ---- What is shipped -----------------------------------------------------------------------------------


def test_ls(run: Run) -> None:
    code, out, _ = run("ls")
    assert code == 0
    for what, name, text in (
        ("recipes", "fictional/npo", "4 of 40 fictitious authors"),
        ("suites", "tofu", "forget quality, model utility"),
        ("methods", "npo", "Negative Preference Optimization"),
        ("launch", "ddp", ""),
    ):
        code, part, _ = run("ls", what)
        assert code == 0
        lines = [line for line in part.splitlines() if line.split()[:1] == [name]]
        assert len(lines) == 1
        assert text in lines[0]
        assert lines[0] in out
    assert "README" not in out


def test_cp(run: Run) -> None:
    from unlearnkit import shipped

    source = shipped.find("recipes", "tofu/npo").read_bytes()
    assert run("cp", "tofu/npo", "mine.yaml")[:2] == (0, "Copied tofu/npo to mine.yaml\n")
    assert Path("mine.yaml").read_bytes() == source
    Path("mine.yaml").write_text("changed")
    code, _, err = run("cp", "tofu/npo", "mine.yaml")
    assert (code, Path("mine.yaml").read_text()) == (2, "changed")
    assert "mine.yaml exists; give another name, or --force to overwrite it" in err
    assert run("cp", "tofu/npo", "mine.yaml", "--force")[0] == 0
    assert Path("mine.yaml").read_bytes() == source
    Path("folder").mkdir()
    assert run("cp", "ddp", "folder")[0] == 0
    assert Path("folder/ddp.yaml").is_file()


def test_data_export(run: Run) -> None:
    from unlearnkit.data import fictional

    code, out, _ = run("data", "export", "fictional", "out")
    assert code == 0
    assert f"Wrote {len(list(Path('out').iterdir()))} files to out" in out
    with Path("out/forget01.json").open() as lines:
        assert [json.loads(line) for line in lines] == fictional.rows("forget01")


# ---- Run, eval, report ---------------------------------------------------------------------------------


def test_check_and_train(run: Run) -> None:
    Path("mine.yaml").write_text(SFT)
    code, out, _ = run("check", "mine.yaml")
    assert code == 0
    assert "mine is valid" in out
    assert run("train", "mine.yaml", *QUICK[:2])[0] == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("mine-")  # overrides have a folder of their own
    assert (folder / "model" / "model.safetensors").is_file()


def test_eval_of_a_saved_model(run: Run, model: Path) -> None:
    limited = [
        f"--data={name}={{name: {name}_perturbed, limit: 3}}" for name in ("real_authors", "world_facts")
    ]
    limited += [
        "--data=forget={name: forget01_perturbed, limit: 3}",
        "--data=retain={name: retain_perturbed, limit: 3}",
    ]
    code, out, _ = run("eval", model, "--data", "root=fictional", *limited, "--batch-tokens", "4096")
    assert code == 0
    assert "model_utility" in out
    assert "train or name a retain model to measure it" in out
    (first,) = Path("evaluations").glob("tiny-tofu-forget10-*")
    assert f"Records: {first}" in out
    summary = json.loads((first / "summary.json").read_text())
    assert summary["label"] == "tiny"
    assert summary["metrics"]["model_utility"]["value"] is not None
    code, out, _ = run(
        "eval", model, "--data", "root=fictional", *limited, "--reference", first,
        "--output", "second",
    )  # fmt: skip
    assert code == 0
    quality = json.loads(Path("second/summary.json").read_text())["metrics"]["forget_quality"]
    assert quality["value"] == 1.0  # the same model twice
    Path("second/records.parquet").write_bytes(b"half")
    code, _, err = run("eval", model, "--reference", "second", "--data", "root=fictional")
    assert code == 2
    assert "second/records.parquet" in err


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("models/tiny/", "tiny"), ("runs/tofu-npo/model", "tofu-npo"), ("run:tofu/npo", "npo"),
        ("org/Llama-1B", "Llama-1B"), ("model", "model"),
    ],
)  # fmt: skip
def test_an_evaluation_is_called_after_its_model(path: str, label: str) -> None:
    """Two runs' models must not share a folder."""
    from unlearnkit.commands import _label

    assert _label(path) == label


def test_a_deletion_request_on_own_files(run: Run, model: Path) -> None:
    """JSON lines; the same rows as a table with other columns; reports of one and of several runs."""
    write_jsonl(Path("mine.jsonl"), FORGET)
    write_jsonl(Path("keep.jsonl"), KEEP)
    options = ("--model", model, "--retain", "keep.jsonl")
    code, out, err = run("run", "forget", *options, "--forget", "mine.jsonl", "--name", "a", *QUICK)
    assert code == 0, err
    assert re.search(r"forget_quality[^:]*: not measured", out)
    assert "retain_probability" in out
    assert "retain term nll" in out
    # The tiny model has never been trained, and the last lines say so.
    assert "Even before unlearning the model hardly knew the 4 examples" in out
    with Path("mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["Q", "A"], *([r["question"], r["answer"]] for r in FORGET)])
    columns = "data.forget.columns={question: Q, answer: A}"
    code, out, err = run(
        "run",
        "forget",
        *options,
        "--forget",
        "mine.csv",
        columns,
        "--name",
        "b",
        "--method",
        "grad_diff",
        *QUICK,
    )
    assert code == 0, err
    one, other = (json.loads(Path(f"runs/{n}/manifest.json").read_text()) for n in "ab")
    assert one["data"]["forget"]["fingerprint"] == other["data"]["forget"]["fingerprint"]
    assert one["recipe"] == "forget"
    assert (one["method"], other["method"]) == ("npo", "grad_diff")
    assert Path("runs/a/model/adapter_model.safetensors").is_file()
    code, out, _ = run("report", "runs/a", "runs/b", "--out", "both")
    assert code == 0
    assert "\na, b\n" in Path("both/report.md").read_text()
    before = Path("runs/a/report.md").read_text()
    Path("runs/a/report.md").unlink()
    assert run("report", "runs/a")[0] == 0
    assert Path("runs/a/report.md").read_text() == before
    page = Path("runs/a/report.html").read_text()
    assert "not measured" in page
    assert str(Path(__file__).parent.parent) not in page + Path("runs/a/manifest.json").read_text()


def test_a_deletion_request_with_nothing_to_keep(run: Run, model: Path) -> None:
    """Documents, and no --retain: the retain term is off, and everything else works."""
    Path("mine.txt").write_text("".join(f"{r['question']} {r['answer']}\n" for r in FORGET))
    code, out, err = run("run", "forget", "--model", model, "--forget", "mine.txt", "--name", "a", *QUICK)
    assert code == 0, err
    found = json.loads(Path("runs/a/manifest.json").read_text())
    assert found["data"].keys() == {"forget"}
    assert found["data"]["forget"]["examples"] == 4
    assert "forget_probability" in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"forget": "a.jsonl"}, ['data.forget="a.jsonl"', "training.retain=none"]),
        ({"forget": "a", "retain": "b"}, ['data.forget="a"', 'data.retain="b"']),
        ({"forget": "a", "settings": ["data.retain.path=b"]}, ['data.forget="a"', "data.retain.path=b"]),
        ({"forget": "a", "recipe": "tofu/npo"}, ['data.forget="a"']),  # which has a retain set of its own
        ({"model": "m", "method": "npo"}, ['model.path="m"', 'method="npo"']),
        ({"reference": "r"}, ['evaluation.reference="r"']),
    ],
)
def test_short_options(given: dict[str, Any], expected: list[str]) -> None:
    nothing = dict.fromkeys(("settings", "model", "forget", "retain", "method", "reference"))
    assert cli._overrides(**{"recipe": "forget", **nothing, **given}) == expected


# ---- Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], (), "mine.jsonl is empty; put at least one row into it"),
        ([{"q": "a", "b": "c"}], (), "columns"),
        ([*FORGET, {"question": "Who?", "answer": " "}], (), "row 4"),
        (FORGET, ("data.max_length=8",), "do not fit data.max_length=8"),
        ([*FORGET, KEEP[1]], (), "1 example(s) are in the forget set and in the retain set (forget row 4 = "),
        (FORGET, ("data.template.kind=chat",), "the tokenizer has no chat template"),
    ],
)
def test_bad_data_stops_before_training(
    run: Run, model: Path, rows: list[dict[str, Any]], settings: tuple[str, ...], message: str
) -> None:
    write_jsonl(Path("mine.jsonl"), rows)
    write_jsonl(Path("keep.jsonl"), KEEP)
    code, out, err = run(
        "run", "forget", "--model", model, "--forget", "mine.jsonl", "--retain", "keep.jsonl", "--name", "a",
        *settings,
    )  # fmt: skip
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert not Path("runs/a/model").exists()


def test_a_half_written_model(run: Run, model: Path) -> None:
    import shutil

    shutil.copytree(model, "half")
    weights = Path("half/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    write_jsonl(Path("mine.jsonl"), FORGET)
    code, _, err = run("train", "forget", "--model", "./half", "--forget", "mine.jsonl")
    assert code == 2
    assert "half" in err
    assert "half-written" in err


def test_a_half_written_manifest(run: Run) -> None:
    Path("mine.yaml").write_text(SFT)
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, ')
    code, _, err = run("train", "mine.yaml")
    assert code == 2
    assert "runs/mine/manifest.json is not readable as JSON" in err


def test_a_tokenizer_without_padding(run: Run, model: Path) -> None:
    """Masks come from lengths, so no padding token is needed."""
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(model, "bare")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained("bare")
    write_jsonl(Path("mine.jsonl"), FORGET)
    code, _, err = run("train", "forget", "--model", "./bare", "--forget", "mine.jsonl", *QUICK)
    assert code == 0, err


# ---- Several processes ---------------------------------------------------------------------------------


def test_launch_starts_the_same_command_under_accelerate(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def execvp(file: str, arguments: list[str]) -> None:
        started.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvp", execvp)
    Path("mine.yaml").write_text(NPO.replace("TARGET", "org/model"))
    code, _, _ = run(
        "run", "mine.yaml", "--launch", "ddp", "training.beta=0.2", "--processes", "2", "--name", "a"
    )
    assert code == 0
    (line,) = started
    assert line[:4] == [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    config = line[line.index("--config_file") + 1]
    assert Path(config).name == "ddp.yaml"
    assert Path(config).is_file()
    end = ["--num_processes", "2", "-m", "unlearnkit", "run", "mine.yaml", "training.beta=0.2", "--name", "a"]
    assert line[-len(end) :] == end
    assert os.environ.pop("UNLEARNKIT_LAUNCHED") == "1"
    # A mistake is said once, before any process is started.
    code, _, err = run("run", "mine.yaml", "--launch", "ddp", "--processes", "2", "training.betta=1")
    assert code == 2
    assert "did you mean 'beta'?" in err
    assert len(started) == 1


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        (["run", "a", "--launch", "ddp", "--processes", "2", "b=1"], ["run", "a", "b=1"]),
        (["run", "--launch=ddp", "--processes=2", "a"], ["run", "a"]),
        (["run", "a", "--name", "launch"], ["run", "a", "--name", "launch"]),
    ],
)
def test_the_options_are_taken_off(line: list[str], rest: list[str]) -> None:
    made = launcher.launch_command("single", None, line)
    assert made[made.index("unlearnkit") + 1 :] == rest
    assert "--num_processes" not in made


def test_launch_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"--launch fsdp2 found no GPU; say how many processes"):
        launcher.launch_command("fsdp2", None, [])
    with pytest.raises(RecipeError, match="unknown launch file 'dpd'; did you mean 'ddp'"):
        launcher.launch_command("dpd", 2, [])
