"""Comparisons run, resumed, interrupted and killed; most with an injected runner instead of processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_runs import NPO, SFT, command, die, in_a_process

from unlearnkit.errors import UserError
from unlearnkit.files import write_atomic, write_json
from unlearnkit.grid import Request, execute, run_comparison
from unlearnkit.grid.compare import plan
from unlearnkit.recipe import load_recipe
from unlearnkit.reporting import grid as report
from unlearnkit.run import RunDir, claim, model_identity, own_settings, resolve_path, run_dir

GRAD_DIFF = NPO.replace("method: npo", "method: grad_diff")


@pytest.fixture
def bench(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of two methods on a tiny model; runs and comparisons go to runs/ beside it."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "bench"
    folder.mkdir()
    quick = {"num_train_epochs: 2": "num_train_epochs: 1", "TARGET": str(target)}
    for name, text in {"npo": NPO, "grad_diff": GRAD_DIFF}.items():
        for old, new in quick.items():
            text = text.replace(old, new)
        (folder / f"{name}.yaml").write_text(text)
    return folder


class Fake:
    """Does in no time what `unlearnkit run` does: a finished run in the folder that `run` would use.

    Args:
        broken: command words -> what the command prints before it fails, or an action of its own.
    """

    def __init__(self, broken: Mapping[str, str | Callable[[], int]] | None = None) -> None:
        self.broken = broken or {}
        self.commands: list[list[str]] = []

    def __call__(self, words: Sequence[str], log: Path, variables: Mapping[str, str]) -> Any:
        self.commands.append(list(words[3:]))  # behind `python -m unlearnkit`
        code = self._work(" ".join(words), log, *words[3:])
        return SimpleNamespace(poll=lambda: code, interrupt=lambda: None, stop=lambda: None)

    def _work(self, line: str, log: Path, kind: str, source: str, *overrides: str) -> int:
        for words, what in self.broken.items():
            if words in line:
                if callable(what):
                    return what()
                log.write_text(what)
                return 2
        recipe = load_recipe(source, overrides, check_training=False)
        run = run_dir(recipe, own_settings(source, overrides))
        (run.model).mkdir(parents=True, exist_ok=True)
        write_atomic(run.recipe, recipe.to_yaml())
        if kind == "run":
            metrics = {"forget_quality": {"value": 0.2}, "forget_rouge": {"value": 0.1 * recipe.seed}}
            write_json(run.evaluation("forget") / "summary.json", {"metrics": metrics})
            identity = {
                "recipe": recipe.training_fingerprint,
                "model": model_identity(resolve_path(recipe.model.path)),
            }
            seconds = {"train": 12.0, "evaluate": 3.0}
            run.update_manifest(status="complete", identity=identity, seconds=seconds)
        else:
            write_json(run.model / "config.json", {})
        return 0


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The comparisons that a report was written for; fabricated runs have no records to read."""
    written: list[Path] = []

    def write(folder: Path) -> Any:
        written.append(folder)
        return SimpleNamespace(html=folder / "report.html")

    monkeypatch.setattr(report, "write_grid_report", write)
    return written


def book(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "comparison.json").read_text()))


def statuses(folder: Path) -> dict[str, str]:
    return {f"{c['method']} {c['seed']}": c["status"] for c in book(folder)["cells"]}


# ---- Real runs -----------------------------------------------------------------------------------------


def test_a_real_comparison_and_the_same_command_again(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two processes, one report; the second call starts none."""
    words = ("compare", bench, "--methods", "npo,grad_diff", "--name", "both", "--jobs", 2)
    assert command(monkeypatch, *words) == 0
    folder = tmp_path / "runs" / "compare-both"
    assert statuses(folder) == {"npo 0": "done", "grad_diff 0": "done"}
    assert [cell["run"] for cell in book(folder)["cells"]] == ["../npo", "../grad_diff"]
    assert all((folder / name).stat().st_size for name in ("report.html", "report.md", "summary.json"))
    out = capsys.readouterr().out
    assert "[1/2] npo-seed0 begins" in out
    assert "2 of 2 cells done" in out
    assert "forget ROUGE-L" in out
    before = (folder / "summary.json").read_bytes()

    monkeypatch.setattr(execute, "start_process", lambda *_: pytest.fail("a process was started"))
    assert command(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "2 of 2 cells were done before" in out
    assert (folder / "summary.json").read_bytes() == before


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    """However the comparison dies, no run is left behind that would hold its folder."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has died")
    log = tmp_path / "log"
    words = [sys.executable, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()"]

    def parent() -> None:
        execute.start_process(words, log, dict(os.environ))
        while not log.exists() or not log.read_text().strip():
            time.sleep(0.01)
        die()

    assert in_a_process(parent) == -signal.SIGKILL
    pid = int(log.read_text())
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_running_process_is_told_and_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # A shell's background job begins with SIGINT ignored, and so would what these tests start.
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); print('up', flush=True); s.pause()"
    words = [sys.executable, "-c", code]
    process = execute.start_process(words, log, dict(os.environ))
    while "up" not in log.read_text():
        time.sleep(0.01)
    assert process.poll() is None
    process.interrupt()
    process.stop()
    assert process.poll() not in (None, 0)
    assert "KeyboardInterrupt" in log.read_text()


# ---- The grid ------------------------------------------------------------------------------------------


def test_finished_cells_are_not_started_again(bench: Path, reports: list[Path]) -> None:
    """One more seed starts two processes, no more; the second call with all of it starts none."""
    fake = Fake()
    folder = run_comparison(Request(str(bench)), start=fake)
    assert [words[0] for words in fake.commands] == ["run", "run"]
    run_comparison(Request(str(bench), seeds=(0, 1)), start=fake)
    assert [words[2:] for words in fake.commands[2:]] == [["seed=1"], ["seed=1"]]
    before = book(folder)
    assert before["seeds"] == [0, 1]
    run_comparison(Request(str(bench), seeds=(0, 1)), start=fake)
    assert len(fake.commands) == 4
    assert book(folder) == before
    assert reports == [folder] * 3


def test_what_was_finished_before_stays_in_a_comparison(bench: Path, reports: list[Path]) -> None:
    """Asked for seed 1 alone, the comparison has both, and its command says how all of it is made."""
    run_comparison(Request(str(bench), ("npo",)), start=Fake())
    folder = run_comparison(Request(str(bench), ("grad_diff",), (1,)), start=Fake())
    assert statuses(folder) == {"grad_diff 1": "done", "npo 0": "done"}
    assert book(folder)["command"] == f"unlearnkit compare {bench} --methods grad_diff,npo --seeds 0,1"


def test_a_run_that_lies_there_is_used(bench: Path, reports: list[Path]) -> None:
    """Its cost comes from its manifest; a run of other settings, or not measured to the end, is none."""
    Fake()([sys.executable, "-m", "unlearnkit", "run", str(bench / "npo.yaml")], bench / "log", {})
    fake = Fake()
    folder = run_comparison(Request(str(bench), ("npo",)), start=fake)
    assert fake.commands == []
    assert book(folder)["cells"][0]["seconds"] == 15.0
    run = RunDir(folder / book(folder)["cells"][0]["run"])
    run.update_manifest(status="trained")
    run_comparison(Request(str(bench), ("npo",)), start=fake)
    assert len(fake.commands) == 1
    run.update_manifest(identity={"model": "another"})
    run_comparison(Request(str(bench), ("npo",)), start=fake)
    assert len(fake.commands) == 2


def test_a_failed_cell_does_not_stop_the_rest(
    bench: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is written, the reason stands in it, and the same command tries only that cell again."""
    request = Request(str(bench), ("npo", "grad_diff"), (0, 1))
    told = "Traceback\n  0%|  |\r 50%|= |\nerror: the disk is full: could not write x\nbye\n"
    fake = Fake({"npo.yaml seed=1": told})
    with pytest.raises(UserError, match=r"1 of 4 cells failed; their output is in .*cells"):
        run_comparison(request, start=fake)
    assert len(fake.commands) == 4
    folder = plan(request).folder
    assert reports == [folder]
    failed = next(cell for cell in book(folder)["cells"] if cell["status"] == "failed")
    assert failed["error"] == "the disk is full: could not write x"
    assert (folder / failed["log"]).read_bytes() == told.encode()
    assert "failed after 0 s: the disk is full" in capsys.readouterr().out
    again = Fake()
    run_comparison(request, start=again)
    assert [words[1:] for words in again.commands] == [[str(bench / "npo.yaml"), "seed=1"]]
    assert set(statuses(folder).values()) == {"done"}


def test_a_command_that_leaves_nothing_behind_has_failed(bench: Path, reports: list[Path]) -> None:
    with pytest.raises(UserError, match="1 of 1 cells failed"):
        run_comparison(Request(str(bench), ("npo",)), start=Fake({"npo": lambda: 0}))
    (cell,) = book(plan(Request(str(bench))).folder)["cells"]
    assert "holds no complete run" in cell["error"]
    assert reports == []


def test_what_is_needed_runs_once_and_its_failure_is_said_of_every_cell(
    bench: Path, reports: list[Path]
) -> None:
    """Both cells of npo need one target model; where it fails, they are left out, and the others run."""
    (bench / "target.yaml").write_text(SFT)
    needing = f"needs: [{bench}/target.yaml]\n"
    path = bench / "npo.yaml"
    path.write_text(path.read_text() + needing)
    request = Request(str(bench), ("npo", "grad_diff"), (0, 1), settings=("data.root=fictional",))
    fake = Fake({"train": "error: no model\n"})
    with pytest.raises(UserError, match="2 of 4 cells failed"):
        run_comparison(request, start=fake)
    assert fake.commands[0] == ["train", f"{bench}/target.yaml", "data.root=fictional"]
    assert [words[0] for words in fake.commands] == ["train", "run", "run"]
    found = book(plan(request).folder)["cells"]
    skipped = [cell["error"] for cell in found if cell["status"] == "skipped"]
    assert skipped == [f"it needs {bench}/target.yaml, which failed: no model"] * 2


def test_mistakes_are_found_before_anything_runs(bench: Path, tmp_path: Path) -> None:
    fake = Fake()
    with pytest.raises(UserError, match="grad_diff has no setting 'beta'"):
        run_comparison(Request(str(bench), grid={"training.beta": [1, 2]}), start=fake)
    with pytest.raises(UserError, match="unknown launch file 'dpp'; did you mean 'ddp'"):
        run_comparison(Request(str(bench)), start=fake, launch="dpp", processes=2)
    with pytest.raises(UserError, match="must be at least 1"):
        run_comparison(Request(str(bench)), start=fake, jobs=0)
    assert fake.commands == []
    assert not (tmp_path / "runs").exists()


def test_folders_that_hold_other_runs_are_found_before_anything_runs(
    bench: Path, reports: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two recipes were edited after they had run: both are named at once, and each remedy works."""
    run_comparison(Request(str(bench)), start=Fake())
    for path in bench.glob("*.yaml"):
        path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    fake, request = Fake(), Request(str(bench))
    with pytest.raises(UserError) as told:
        run_comparison(request, start=fake)
    assert fake.commands == []
    (line,) = str(told.value).splitlines()
    assert line.startswith("2 of 2 cells cannot run")
    for name in ("npo", "grad_diff"):
        assert f"{tmp_path / 'runs' / name} (training.learning_rate)" in line
    assert "--name" not in line
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("UNLEARNKIT_RUNS", str(tmp_path / "others"))
        run_comparison(request, start=fake)
    for path in bench.glob("*.yaml"):
        path.write_text(f"name: mine/{path.stem}\n{path.read_text()}")
    run_comparison(request, start=fake)
    assert len(fake.commands) == 4


def test_a_checkpoint_of_another_run_holds_a_folder_but_an_empty_run_does_not(
    bench: Path, reports: list[Path], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "runs" / "npo")
    run.update_manifest(identity={"recipe": "another"})
    request = Request(str(bench), ("npo",))
    (run.checkpoints / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"1 of 1 cells cannot run.*what it was made with is not known"):
        run_comparison(request, start=Fake())
    (run.checkpoints / "checkpoint-2").rmdir()
    run_comparison(request, start=Fake())


def test_a_setting_is_not_said_to_be_left_out_where_it_is_refused(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ce_u has no beta: the recipe's would be left out, but the grid asks for it."""
    path = bench / "npo.yaml"
    path.write_text(path.read_text().replace("training:", "training:\n  beta: 0.2"))
    request = Request(str(path), ("npo", "ce_u"), grid={"training.beta": [1, 2]})
    with pytest.raises(UserError) as told:
        run_comparison(request, start=Fake())
    assert str(told.value).splitlines() == [
        "ce_u has no setting 'beta', and --grid training.beta varies it (npo can have it); leave ce_u out, "
        "or compare the others in a comparison of their own"
    ]
    assert "without" not in capsys.readouterr().out


def test_a_launch_file_goes_to_every_run(bench: Path, reports: list[Path]) -> None:
    seen: list[Sequence[str]] = []

    def start(words: Sequence[str], log: Path, variables: Mapping[str, str]) -> Any:
        seen.append(words)
        return SimpleNamespace(poll=lambda: 1, interrupt=lambda: None, stop=lambda: None)

    with pytest.raises(UserError, match="1 of 1"):
        run_comparison(Request(str(bench), ("npo",)), start=start, launch="ddp", processes=2)
    assert seen[0][-4:] == ["--launch", "ddp", "--processes", "2"]


# ---- Interrupted, killed, twice ------------------------------------------------------------------------


def test_a_killed_comparison_goes_on(bench: Path, reports: list[Path]) -> None:
    """Killed as its second cell runs, it starts with that cell."""
    request = Request(str(bench), ("npo", "grad_diff"))
    assert in_a_process(lambda: run_comparison(request, start=Fake({"grad_diff": die}))) == -signal.SIGKILL
    folder = plan(request).folder
    assert statuses(folder) == {"npo 0": "done", "grad_diff 0": "pending"}
    fake = Fake()
    run_comparison(request, start=fake)
    assert [words[1] for words in fake.commands] == [str(bench / "grad_diff.yaml")]
    assert set(statuses(folder).values()) == {"done"}


def test_ctrl_c_stops_what_runs(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, by the command itself."""
    told: list[str] = []

    def interrupted() -> int | None:
        raise KeyboardInterrupt

    def start(words: Sequence[str], log: Path, variables: Mapping[str, str]) -> Any:
        return SimpleNamespace(
            poll=interrupted, interrupt=lambda: told.append("interrupt"), stop=lambda: told.append("stop")
        )

    monkeypatch.setattr(execute, "start_process", start)
    assert command(monkeypatch, "compare", bench, "--jobs", 2) == 130
    assert told == ["interrupt", "interrupt", "stop", "stop"]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == "error: interrupted; the same command goes on where it stopped"
    assert "the same command" not in shown.out
    assert set(statuses(plan(Request(str(bench))).folder).values()) == {"pending"}


def test_two_commands_in_one_folder_are_refused(bench: Path, reports: list[Path]) -> None:
    request = Request(str(bench), ("npo",))
    with RunDir(plan(request).folder).in_use(), pytest.raises(UserError, match="is in use by process"):
        run_comparison(request, start=Fake())


def test_a_name_is_not_given_to_another_comparison(bench: Path, reports: list[Path]) -> None:
    run_comparison(Request(str(bench), ("npo",), name="mine"), start=Fake())
    other = Request(str(bench), ("npo",), grid={"training.learning_rate": [0.1]}, name="mine")
    with pytest.raises(UserError, match=r"holds another comparison \(another grid\); choose another --name"):
        run_comparison(other, start=Fake())


def test_a_run_that_is_measured_anew_is_not_complete_meanwhile(bench: Path) -> None:
    """Killed between its new recipe.yaml and the new numbers, it must not be taken for finished."""
    recipe = load_recipe(bench / "npo.yaml")
    run = run_dir(recipe)
    claim(run, recipe, {})
    run.update_manifest(status="complete")
    claim(run, recipe, {})
    assert (run.read_manifest() or {})["status"] == "complete"
    claim(run, load_recipe(bench / "npo.yaml", ["evaluation.max_new_tokens=4"]), {})
    assert (run.read_manifest() or {})["status"] == "trained"


# ---- Processes -----------------------------------------------------------------------------------------


def test_jobs_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(execute, "_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    alone = execute.environment(0, 1)
    assert "OMP_NUM_THREADS" not in alone
    assert alone["CUDA_VISIBLE_DEVICES"] == "4,7"
    shared = [execute.environment(slot, 3) for slot in range(3)]
    assert [one["OMP_NUM_THREADS"] for one in shared] == ["2"] * 3
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shared] == ["4", "7", "4"]


def test_a_run_finds_the_package_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "/somewhere"]))
    places = execute.environment(0, 1)["PYTHONPATH"].split(os.pathsep)
    assert places[:2] == [str(Path.cwd()), "/somewhere"]
    assert str(Path(execute.__file__).parents[2]) in places


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0, "error: of something that was overcome", None),
        (2, "error: one\nerror: two\n", "two"),
        (1, "loading\rloading\nSegmentation fault\n", "Segmentation fault (exit code 1)"),
        (3, "", "it said nothing (exit code 3)"),
        (-9, "10%|=\r", "killed by SIGKILL (out of memory, perhaps)"),
        (-15, "", "killed by SIGTERM"),
    ],
)
def test_why_a_command_failed(tmp_path: Path, code: int, text: str, expected: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert execute.reason(code, log) == expected
