"""Comparisons that are unfinished, damaged, hostile or do not compare: said, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_grid import RATE, cell, few, write_comparison

from unlearnkit.errors import RecordsError
from unlearnkit.reporting import write_grid_report, write_report

ERROR = "the loss is not finite at step 3; lower training.learning_rate."


def test_nothing_finished_is_a_report_too(tmp_path: Path, schema: dict[str, Any]) -> None:
    cells = [cell("npo", 0, status="failed", error=ERROR, run=""), cell("npo", 1, status="pending", run="")]
    written = write_grid_report(write_comparison(tmp_path / "compare", cells))
    summary = json.loads(written.summary.read_text())
    jsonschema.validate(summary, schema)
    assert (
        summary["headline"] == "No cell of this comparison is finished yet, so there is nothing to compare."
    )
    assert ERROR in written.html.read_text()


def test_a_run_that_cannot_be_read_is_a_failed_cell(make: Any, tmp_path: Path) -> None:
    folder = few(make, tmp_path, cells=2)
    shutil.rmtree(tmp_path / "npo-1e-05-1" / "eval")
    summary = json.loads(write_grid_report(folder).summary.read_text())
    assert [one["status"] for one in summary["cells"]] == ["done", "failed"]
    assert "has no evaluation" in summary["cells"][1]["error"]


def test_runs_that_do_not_compare_are_warned_of(make: Any, tmp_path: Path) -> None:
    folder = few(make, tmp_path, cells=2)
    for role, part in (("tofu", "data"), ("tofu@target", "model"), ("tofu@retain", "model")):
        path = tmp_path / "npo-1e-05-1" / "eval" / role / "summary.json"
        found = json.loads(path.read_text())
        found["fingerprint"][part] = "another"
        path.write_text(json.dumps(found))
    cautions = json.loads(write_grid_report(folder).summary.read_text())["cautions"]
    assert "the runs do not start from the same target model" in cautions
    assert "the runs were not compared with the same retain model" in cautions
    assert any("not evaluated with the same data" in caution for caution in cautions)


def test_text_of_a_cell_stays_text(make: Any, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)> | *stars*"
    folder = write_comparison(
        tmp_path / "compare", [cell("npo", 0, status="failed", error=hostile, run="", settings={RATE: 1e-5})]
    )
    written = write_grid_report(folder)
    assert "<img" not in written.html.read_text()
    assert "<img" not in written.markdown.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "this version reads 1"),
        ({"cells": []}, "has no cells"),
        ({"cells": [{"method": "npo"}]}, "cannot be read"),
        ({"cells": [cell("npo", 0, status="odd")]}, "none of done, failed, pending, skipped"),
        ({"cells": None}, "cannot be read"),
    ],
)
def test_a_comparison_that_cannot_be_read_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_comparison(tmp_path / "compare", [cell("npo", 0, status="pending")])
    path = folder / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordsError, match=message):
        write_grid_report(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"comparison\.json"):
        write_grid_report(tmp_path)


def test_report_writes_the_report_of_a_comparison_anew(make: Any, tmp_path: Path) -> None:
    folder = few(make, tmp_path)
    written = write_report(folder)
    assert written == write_grid_report(folder)
    assert json.loads(written.summary.read_text())["methods"] == ["npo"]
    with pytest.raises(RecordsError, match="give its folder alone"):
        write_report(folder, tmp_path / "elsewhere")
