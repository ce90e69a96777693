"""Time left, durations, and the numbers of the table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unlearnkit import terminal
from unlearnkit.files import write_json
from unlearnkit.grid import progress, table
from unlearnkit.grid.execute import Order, Outcome
from unlearnkit.grid.progress import Display, duration, time_left
from unlearnkit.grid.table import over_seeds
from unlearnkit.reporting.numbers import number, p_value
from unlearnkit.reporting.tables import Cell


@pytest.mark.parametrize(
    ("finished", "running", "waiting", "jobs", "expected"),
    [
        ([], [5.0], 3, 1, None),  # nothing is known yet
        ([10.0, 20.0], [], 4, 1, 60.0),  # 4 x 15
        ([10.0, 20.0], [5.0], 4, 1, 70.0),  # 4 x 15 + (15 - 5)
        ([10.0, 20.0], [5.0, 5.0], 4, 2, 40.0),  # (4 x 15 + 2 x 10) / 2
        ([10.0], [4.0], 0, 8, 6.0),  # one that is left is not shared by eight
        ([10.0], [99.0], 0, 1, 0.0),  # longer than the others: not less than nothing
        ([10.0], [], 0, 1, 0.0),
    ],
)
def test_time_left(
    finished: list[float], running: list[float], waiting: int, jobs: int, expected: float | None
) -> None:
    assert time_left(finished, running, waiting, jobs) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5939, "99 min"),
        (6000, "1 h 40 min"),
        (36300, "10 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("forget_quality", [], "–"),
        ("forget_quality", [0.5], "0.5"),
        ("forget_quality", [0.25, 1e-5, 0.5], "0.25 (1.0e-05 to 0.5)"),
        ("forget_quality", [1e-5, 0.5], "1.0e-05 (1.0e-05 to 0.5)"),
        ("forget_rouge", [0.1, 0.4], "0.250 (0.100 to 0.400)"),
        ("forget_rouge", [0.1, 0.1], "0.100"),
    ],
)
def test_a_metric_over_seeds(name: str, values: list[float], text: str) -> None:
    """As in the report: the lower median of p-values, since a mean of them would say nothing."""
    write = p_value if name == "forget_quality" else number
    assert over_seeds([Cell(write(value), value) for value in values], name) == text


def entry(folder: Path, method: str, seed: int, metrics: Mapping[str, float], **setting: Any) -> Any:
    """A finished cell with its run's files."""
    run = f"{method}-{seed}-{len(setting)}"
    write_json(
        folder / run / "eval" / "some" / "summary.json",
        {"metrics": {name: {"value": value} for name, value in metrics.items()}},
    )
    write_json(folder / run / "manifest.json", {"seconds": {"train": 10.0 + seed}})
    return {"method": method, "seed": seed, "settings": setting, "run": run, "status": "done"}


def printed(monkeypatch: pytest.MonkeyPatch, entries: list[Any], folder: Path) -> list[str]:
    shown = io.StringIO()
    monkeypatch.setattr(table, "Console", lambda **more: Console(file=shown, **more))
    table.print_cells(entries, folder)
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def test_a_table_has_the_columns_that_there_are_numbers_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a retain model and model utility: what was kept is seen in ROUGE-L on the retain set."""
    metrics = {"forget_rouge": 0.2, "retain_rouge": 0.7}
    entries = [entry(tmp_path, method, 0, metrics) for method in ("npo", "rpo")]
    heading, first, _ = printed(monkeypatch, entries, tmp_path)
    assert heading.split("   ") == ["method", "seeds", "forget ROUGE-L", "retain ROUGE-L", "train seconds"]
    assert first.split() == ["npo", "1", "0.200", "0.700", "10"]


@pytest.mark.parametrize(("seeds", "has_rouge"), [(1, True), (2, False)])
def test_retain_rouge_stands_beside_model_utility_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seeds: int, has_rouge: bool
) -> None:
    """Ranges over two seeds fill the line, and model utility holds ROUGE-L already."""
    names = ("forget_quality", "model_utility", "forget_rouge", "retain_rouge")
    entries = [entry(tmp_path, "npo", seed, dict.fromkeys(names, 0.1 + seed / 2)) for seed in range(seeds)]
    heading, row, *note = printed(monkeypatch, entries, tmp_path)
    assert ("retain ROUGE-L" in heading) == has_rouge
    assert max(len(heading), len(row)) <= 100
    assert ("0.1 (0.1 to 0.6)" in row) == bool(note) == (seeds > 1)


def test_settings_and_what_is_not_finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [entry(tmp_path, "npo", 0, {"forget_rouge": 0.2}, **{"training.beta": [1]})]
    entries.append(entries[0] | {"seed": 1, "status": "failed"})
    heading, row, _ = printed(monkeypatch, entries, tmp_path)
    assert heading.split()[:3] == ["method", "setting", "seeds"]
    assert row.split()[:5] == ["npo", "beta=[1]", "1", "of", "2"]


@pytest.mark.parametrize("on_terminal", [True, False])
def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, on_terminal: bool) -> None:
    """A terminal has one moving line as well; each cell's end is a line of its own in both."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=on_terminal, width=150, soft_wrap=True, highlight=False)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(terminal, "console", console)
    one, two = (Order(name, (), Path(f"{name}.log")) for name in ("one", "two"))
    with Display(total=4, done=1, jobs=2) as display:
        display.began(one)
        display.began(two)
        display.tick()
        display.ended(one, Outcome(600.0))
        display.tick()
        display.ended(two, Outcome(3.0, "the disk is full"))
        display.skipped("three", "it needs something")
    text = shown.getvalue()
    assert (
        "one: done in 10 min · 2 of 4 cells done, about 10 min left" in text
    )  # two and three, two at a time
    assert "two: failed after 3 s: the disk is full (two.log)" in text
    assert "three: left out, it needs something" in text
    assert ("1 of 4 cells done, 0 s · one, two" in text) == on_terminal
    assert ("[2/4] one begins" in text) != on_terminal
