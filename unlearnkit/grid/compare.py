"""`unlearnkit compare`: plan, check, run what is missing, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearnkit.commands import missing_needs, passed_on
from unlearnkit.errors import UserError
from unlearnkit.grid.book import Book, finished
from unlearnkit.grid.check import check_cells
from unlearnkit.grid.execute import Order, Outcome, Start, execute
from unlearnkit.grid.plan import Cell, Plan, plan
from unlearnkit.grid.progress import Display, duration
from unlearnkit.grid.request import Request
from unlearnkit.grid.table import print_cells
from unlearnkit.run import RunDir
from unlearnkit.terminal import say


def run_comparison(
    request: Request, *, jobs: int = 1, launch: str | None = None, processes: int | None = None,
    start: Start | None = None,
) -> Path:  # fmt: skip
    """Run every cell that is not finished, a process each, and write one report; returns its folder.

    Args:
        request: what is compared.
        jobs: runs at the same time.
        launch: a launch file for the runs, as `unlearnkit run --launch` takes it.
        processes: processes of each run under `launch`.
        start: starts a command; by default a process.

    Raises:
        RecipeError: mistakes in the request, the recipes or their data; nothing has run then.
        UserError: another command works in the folder; or cells have failed, after all others are done.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    launched = _launch_options(launch, processes)
    planned = plan(request)
    if missing := [cell for cell in planned.cells if not finished(cell)]:
        check_cells(missing)
    for method, left_out in planned.left_out.items():
        say(f"{method}: without {', '.join(left_out)} of {request.recipe}, which it does not have")
    with RunDir(planned.folder).in_use():
        book = Book.open(planned)
        book.write()
        _run_missing(book, jobs, launched, start)
        _report(book)
    return planned.folder


def _launch_options(launch: str | None, processes: int | None) -> tuple[str, ...]:
    """The options for every run; a launch file that does not exist is found here."""
    if launch is None:
        return ()
    from unlearnkit.launcher import launch_command

    launch_command(launch, processes, ())
    return ("--launch", launch, *(("--processes", str(processes)) if processes is not None else ()))


def _run_missing(book: Book, jobs: int, launched: Sequence[str], start: Start | None) -> None:
    cells = [cell for cell in book.plan.cells if not book.is_done(cell)]
    total = len(book.plan.cells)
    if done := total - len(cells):
        say(f"{done} of {total} cells {'was' if done == 1 else 'were'} done before")
    if not cells:
        return
    began = time.perf_counter()
    try:
        failed = _run_needs(book.plan, cells, launched, start)
        with Display(total, done, jobs) as display:
            watch = _Cells(book, display, {cell.name: cell for cell in cells})
            orders = [watch.order(cell, launched) for cell in cells if not watch.skips(cell, failed)]
            execute(orders, watch, jobs=jobs, start=start)
    finally:
        book.write(time.perf_counter() - began)


def _run_needs(
    plan: Plan, cells: Sequence[Cell], launched: Sequence[str], start: Start | None
) -> dict[str, str]:
    """Train what the cells build on, one after another; returns what failed, with its reason."""
    missing = list(dict.fromkeys(name for cell in cells for name in missing_needs(cell.recipe)))
    watch = _Needs()
    data = passed_on(plan.request.settings)
    orders = [
        Order(
            name,
            ("train", name, *data, *launched),
            plan.folder / "cells" / f"needs-{name.replace('/', '-')}.log",
        )
        for name in missing
    ]
    execute(orders, watch, start=start)
    return watch.failed


@dataclass
class _Needs:
    """Watches the recipes that the cells need."""

    failed: dict[str, str] = field(default_factory=dict)

    def began(self, order: Order) -> None:
        say(f"{order.name} is needed and has not been run yet: running it first")

    def ended(self, order: Order, outcome: Outcome) -> None:
        if outcome.error is None:
            say(f"{order.name}: done in {duration(outcome.seconds)}")
        else:
            self.failed[order.name] = outcome.error
            say(f"{order.name}: failed after {duration(outcome.seconds)}: {outcome.error} ({order.log})")

    def tick(self) -> None:
        pass


@dataclass
class _Cells:
    """Watches the cells: writes the book and shows how far it is."""

    book: Book
    display: Display
    cells: dict[str, Cell]

    def order(self, cell: Cell, launched: Sequence[str]) -> Order:
        """What is started for a cell: the very command that a user would give."""
        log = self.book.plan.folder / self.book.log(cell.name)
        return Order(cell.name, ("run", cell.source, *cell.overrides, *launched), log)

    def skips(self, cell: Cell, failed: dict[str, str]) -> bool:
        """Whether a cell is left out since something that it needs has failed."""
        name = next((name for name in cell.recipe.needs if name in failed), None)
        if name is None:
            return False
        error = f"it needs {name}, which failed: {failed[name]}"
        self.book.note(cell, "skipped", error=error)
        self.display.skipped(cell.name, error)
        return True

    def began(self, order: Order) -> None:
        self.display.began(order)

    def ended(self, order: Order, outcome: Outcome) -> None:
        cell = self.cells[order.name]
        if outcome.error is None and not finished(cell):
            outcome = Outcome(outcome.seconds, f"it ended well, but {cell.run.root} holds no complete run")
        status = "done" if outcome.error is None else "failed"
        self.book.note(cell, status, error=outcome.error or "", seconds=outcome.seconds)
        self.display.ended(order, outcome)

    def tick(self) -> None:
        self.display.tick()


def _report(book: Book) -> None:
    """The table and the report; at the end, what failed.

    Raises:
        UserError: cells have failed.
    """
    entries, folder = list(book.entries.values()), book.plan.folder
    if any(entry["status"] == "done" for entry in entries):
        from unlearnkit.reporting.grid import write_grid_report

        print_cells(entries, folder)
        say(f"Report: {write_grid_report(folder).html}")
    if failed := [entry for entry in entries if entry["status"] != "done"]:
        raise UserError(
            f"{len(failed)} of {len(entries)} cells failed; their output is in {folder / 'cells'}, and the "
            "same command tries them again"
        )
