"""The plane of forgetting against keeping: which measures it shows, what it says is missing, its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.html import plane_plot
from unlearnkit.reporting.planes import score_limits


def without(run: Path, *names: str) -> Path:
    """The run, its named metrics not measured for any model."""
    for path in (run / "eval").glob("*/summary.json"):
        summary = json.loads(path.read_text())
        for name in names:
            del summary["metrics"][name]
        path.write_text(json.dumps(summary))
    return run


def test_forget_quality_is_shown_where_only_utility_is_missing(make: Any, tmp_path: Path) -> None:
    run = without(make(tmp_path / "run"), "model_utility")
    plane = plane_plot([load_run(run)])
    assert "Forget quality p (log scale)" in plane.svg
    assert "ROUGE-L on the retain set" in plane.svg
    assert plane.lead.startswith("Model utility was not measured")
    html = write_report(run).html.read_text()
    assert "Forget quality was not measured" not in html


def test_without_forget_quality_the_plane_says_so(make: Any, tmp_path: Path) -> None:
    plane = plane_plot([load_run(without(make(tmp_path / "run"), "forget_quality"))])
    assert "ROUGE-L on the forget set" in plane.svg
    assert plane.lead.startswith("Forget quality was not measured")


def test_without_anything_kept_there_is_no_plane_and_that_is_said(make: Any, tmp_path: Path) -> None:
    run = without(make(tmp_path / "run"), "model_utility", "retain_rouge")
    plane = plane_plot([load_run(run)])
    assert plane.svg == ""
    assert plane.lead.startswith("What was kept was not measured")
    assert plane.lead in write_report(run).html.read_text()


def test_with_both_it_is_against_utility(complete_run: Path) -> None:
    plane = plane_plot([load_run(complete_run)])
    assert "Model utility  →" in plane.svg
    assert "not measured" not in plane.lead


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.5], [0.999, 1.0], [0.0, 0.001], [0.0, 1.0], [0.3, 0.8]])
def test_an_axis_of_scores_is_never_a_sliver_nor_beyond_its_scores(values: list[float]) -> None:
    low, high = score_limits(values)
    assert 0 <= low <= min(values) <= max(values) <= high <= 1.02
    assert high - low >= 0.2 - 1e-12
