"""Time left, durations, and the numbers of the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from unlearnkit import terminal
from unlearnkit.grid import progress
from unlearnkit.grid.execute import Order, Outcome
from unlearnkit.grid.progress import Display, duration, time_left
from unlearnkit.grid.table import spread


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
    ("values", "text"),
    [([], "–"), ([0.5], "0.5"), ([0.25, 1e-5, 0.5], "0.25 (1e-05 to 0.5)"), ([1.0, 2.0], "1.5 (1 to 2)")],
)
def test_spread(values: list[float], text: str) -> None:
    """The median and the range: a mean of p-values would say nothing."""
    assert spread(values) == text


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
