"""What a run is called: by its folder wherever two runs of one recipe must be told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.reporting import load_run, write_report


def labelled(folder: Path, name: str, label: str) -> Path:
    """The run as the pipeline writes it: recipe's name in the manifest, its last part as label."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    path = folder / "eval" / "tofu" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label": label}))
    return folder


@pytest.mark.parametrize(
    ("folder", "name", "label", "called", "shown"),
    [
        ("first", "forget", "forget", "first", "first"),
        ("forget", "forget", "forget", "forget", "forget"),
        ("fictional-npo", "fictional/npo", "npo", "fictional/npo", "npo"),
        ("again", "fictional/npo", "npo", "again", "again"),
        ("again", "forget", "a name of its own", "again", "a name of its own"),
    ],
)
def test_a_run_is_called_by_its_folder_where_the_recipe_is_called_otherwise(
    make: Any, tmp_path: Path, folder: str, name: str, label: str, called: str, shown: str
) -> None:
    run = load_run(labelled(make(tmp_path / folder), name, label))
    assert (run.name, run.main.label) == (called, shown)
    assert run.evaluations["unlearned"] is run.main


def test_two_runs_of_one_recipe_are_told_apart(make: Any, tmp_path: Path) -> None:
    folders = [labelled(make(tmp_path / name), "forget", "forget") for name in ("first", "second")]
    for folder in folders:
        html = write_report(folder).html.read_text()
        assert f"<h1>{folder.name}</h1>" in html
        assert f"Unlearned: {folder.name}" in html
        assert "Unlearned: forget" not in html
    written = write_report(folders, tmp_path / "both")
    html = written.html.read_text()
    assert ">first</text>" in html
    assert ">second</text>" in html
    assert [run["name"] for run in json.loads(written.summary.read_text())["runs"]] == ["first", "second"]
