"""How far a comparison is: bars on a terminal, lines elsewhere, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn

from unlearnkit.grid.execute import Order, Outcome
from unlearnkit.terminal import console, say


def time_left(finished: Sequence[float], running: Sequence[float], waiting: int, jobs: int) -> float | None:
    """Seconds until everything is done, or None as long as nothing has finished.

    A cell is expected to take as long as the finished ones on average; the work that is left is shared by the
    processes that there is work for.

    Args:
        finished: how long each finished cell took.
        running: how long each running cell has taken so far.
        waiting: cells that have not begun.
        jobs: cells at the same time.
    """
    if not finished:
        return None
    each = sum(finished) / len(finished)
    work = waiting * each + sum(max(0.0, each - spent) for spent in running)
    return work / max(1, min(jobs, waiting + len(running)))


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass
class Count:
    """What has become of the cells so far."""

    total: int
    jobs: int
    done: int = 0
    failed: int = 0
    took: list[float] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def left(self) -> str:
        """ ", about 12 min left", or nothing where nothing can be said, or nothing is left."""
        now = time.perf_counter()
        waiting = self.total - self.done - self.failed - len(self.running)
        if not waiting and not self.running:
            return ""
        seconds = time_left(self.took, [now - since for since in self.running.values()], waiting, self.jobs)
        return "" if seconds is None else f", about {duration(seconds)} left"

    def line(self) -> str:
        """Everything in one line."""
        failed = f", {self.failed} failed" if self.failed else ""
        spent = duration(time.perf_counter() - self.began)
        running = f" · {', '.join(self.running)}" if self.running else ""
        return f"{self.done} of {self.total} cells done{failed}, {spent}{self.left()}{running}"


class Display:
    """Shows the cells as they begin and end.

    Args:
        total: cells of the comparison.
        done: those that were done already.
        jobs: cells at the same time.
    """

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.count = Count(total, jobs, done)
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        # Drawn in `tick` and not by a thread: processes are started meanwhile.
        shown = console.is_terminal and done < total
        self._bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not shown)
        self._task = self._bar.add_task(self.count.line(), total=total, completed=done)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def began(self, order: Order) -> None:
        """A cell was started."""
        count = self.count
        count.running[order.name] = time.perf_counter()
        if self._bar.disable:
            number = count.done + count.failed + len(count.running)
            say(f"[{number}/{count.total}] {order.name} begins{count.left()}")

    def ended(self, order: Order, outcome: Outcome) -> None:
        """A cell has ended; only one that ended well says how long a cell takes."""
        count = self.count
        count.running.pop(order.name, None)
        if outcome.error is None:
            count.done += 1
            count.took.append(outcome.seconds)
            how = f"done in {duration(outcome.seconds)}"
        else:
            count.failed += 1
            how = f"failed after {duration(outcome.seconds)}: {outcome.error} ({order.log})"
        say(f"{order.name}: {how} · {count.done} of {count.total} cells done{count.left()}")

    def skipped(self, name: str, error: str) -> None:
        """A cell is left out."""
        self.count.failed += 1
        say(f"{name}: left out, {error}")

    def tick(self) -> None:
        """Draw anew."""
        if not self._bar.disable:
            count = self.count
            self._bar.update(self._task, completed=count.done + count.failed, description=count.line())
            self._bar.refresh()
