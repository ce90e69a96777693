"""Broken and incomplete input: one sentence that names the file, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.errors import RecordsError
from unlearnkit.reporting import load_run, write_report


@pytest.fixture
def run(complete_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(complete_run, tmp_path / "run", ignore=shutil.ignore_patterns("report.*")))


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return apply


@pytest.mark.parametrize("evaluation", ["tofu", "tofu@target", "tofu@retain"])
@pytest.mark.parametrize("file", ["summary.json", "records.parquet"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_half_an_evaluation_is_refused(
    run: Path, evaluation: str, file: str, damage: Callable[[Path], None]
) -> None:
    damage(run / "eval" / evaluation / file)
    with pytest.raises(RecordsError) as error:
        write_report(run)
    assert evaluation in str(error.value)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("manifest.json", cut, "not readable as JSON"),
        ("manifest.json", Path.unlink, "does not exist"),
        ("manifest.json", lambda path: path.write_text("[1]"), "must hold a JSON object, found list"),
        ("recipe.yaml", Path.unlink, "recipe.yaml is missing"),
        ("recipe.yaml", lambda path: path.write_text("a: [1"), "not readable as YAML"),
        ("recipe.yaml", lambda path: path.write_text("- 1"), "must hold a mapping, found list"),
        ("eval/tofu/summary.json", edit(lambda value: value.update(format=99)), "has format 99"),
        ("eval/tofu/summary.json", edit(lambda value: value.update(role="pupil")), "has the role 'pupil'"),
        ("eval/tofu/summary.json", edit(lambda value: value.pop("metrics")), "has no metrics"),
        (
            "eval/tofu/summary.json",
            edit(lambda value: value["metrics"]["forget_rouge"].update(value="high")),
            "the metric forget_rouge cannot be read",
        ),
    ],
)
def test_damaged_parts_give_one_sentence(
    run: Path, file: str, damage: Callable[[Path], Any], says: str
) -> None:
    damage(run / file)
    with pytest.raises(RecordsError) as error:
        write_report(run)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="there is no folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RecordsError, match="has no evaluation"):
        load_run(tmp_path)
    with pytest.raises(RecordsError, match="no run was given"):
        write_report([])


def test_an_unknown_suite_names_those_there_are(run: Path) -> None:
    with pytest.raises(RecordsError, match="has no suite 'muse'; it has: tofu"):
        load_run(run, suite="muse")


def test_the_same_run_twice_is_refused(run: Path) -> None:
    with pytest.raises(RecordsError, match="given twice"):
        write_report([run, run / "eval" / ".."])


def test_an_evaluation_keeps_its_own_summary(run: Path) -> None:
    folder = run / "eval" / "tofu"
    before = (folder / "summary.json").read_bytes()
    with pytest.raises(RecordsError, match="is an evaluation folder"):
        write_report(folder, folder)
    written = write_report(folder)
    assert written.html.parent == folder / "report"
    assert (folder / "summary.json").read_bytes() == before
    load_run(run)  # the report folder beside the evaluations is not taken for a suite


def test_a_file_in_the_way_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RecordsError, match="is a file; give a folder"):
        write_report(run, tmp_path / "out")


def test_half_a_log_line_is_left_out_and_said(run: Path) -> None:
    """A process killed while it logs leaves half a line, and the resumed run repeats steps."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text(
        "\n".join([*lines[:3], lines[3][:20], json.dumps({"step": 10, "loss": 123.0}), *lines[3:]])
    )
    view = load_run(run)
    assert [row["step"] for row in view.log] == [json.loads(line)["step"] for line in lines]
    assert view.log[1]["loss"] == 123.0
    assert any("1 line(s) of log.jsonl" in caution for caution in view.cautions)


def test_no_log_is_a_gap_not_an_error(run: Path) -> None:
    (run / "log.jsonl").unlink()
    html = write_report(run).html.read_text()
    assert "Training curves: log.jsonl has no steps" in html


def test_a_run_with_two_suites_judges_one_and_shows_the_other(run: Path) -> None:
    """The verdict is about one suite; a further one is shown whole, in a section of its own."""
    shutil.copytree(run / "eval" / "tofu", run / "eval" / "zebra")
    view = load_run(run)
    assert view.suite == "tofu"
    assert list(view.others) == ["zebra"]
    assert set(view.others["zebra"]) == {"unlearned"}
    assert any("suite zebra" in gap for gap in view.gaps)
    assert load_run(run, suite="zebra").suite == "zebra"


def test_neither_torch_nor_transformers_is_imported(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from unlearnkit.reporting import write_report\n"
        "assert 'matplotlib' not in sys.modules and 'pandas' not in sys.modules\n"
        f"write_report({str(run)!r}, {str(tmp_path / 'out')!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
