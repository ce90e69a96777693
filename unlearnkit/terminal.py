"""What is printed: tables of metrics, lines of progress; of several processes one prints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(soft_wrap=True, highlight=False)
#: What a table of attacks or alphas shows, as far as the suite has it.
_SHORT = ("forget_quality", "forget_rouge", "forget_probability", "model_utility", "retain_rouge")


def say(text: str) -> None:
    """Print a line, from one process of several."""
    if os.environ.get("RANK", "0") == "0":
        console.print(text, markup=False)


def print_metrics(found: dict[str, Any], labels: dict[str, str] | None = None) -> None:
    """A table of metrics, a column per model; what there is to say about a number stands below."""
    if os.environ.get("RANK", "0") != "0":
        return
    roles: tuple[str, ...] = ("target", "unlearned", "retain")
    order = [role for role in roles if role in found] or list(found)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("metric")
    for role in order:
        table.add_column(escape((labels or {}).get(role, role)), justify="right")
    names = next(iter(found.values()))
    for name in names:
        cells = [found[role].get(name) for role in order]
        table.add_row(name, *("" if c is None else _number(c.value) if c.measured else "–" for c in cells))
    console.print(table)
    main = found.get("unlearned", next(iter(found.values())))
    notes: dict[str, list[str]] = {}
    for name, metric in main.items():
        if metric.note:
            notes.setdefault(metric.note, []).append(name)
    for note, noted in notes.items():
        others = f" and {len(noted) - 1} more" if len(noted) > 1 else ""
        console.print(f"{noted[0]}{others}: {note}", markup=False)


def print_attacks(found: Mapping[str, Any]) -> None:
    """A row per stage of each attack, under the model without an attack; nothing where none was run.

    Args:
        found: what a model is called -> its `Evaluation`.
    """
    attacked = {label: one for label, one in found.items() if one.attacked}
    if not attacked or os.environ.get("RANK", "0") != "0":
        return
    first = next(iter(attacked.values()))
    headings = ["under attack", "model"][: 1 + (len(attacked) > 1)]
    stages = [("no attack", ""), *(one.stage for one in first.attacked)]
    rows = [
        ((" ".join(stage).strip(), label)[: len(headings)], one if stage[1] == "" else one.under(stage))
        for stage in stages
        for label, one in attacked.items()
    ]
    _print_rows(headings, rows, first)


def print_alphas(found: Any) -> None:
    """A row per alpha of an `Evaluation`; nothing where it was evaluated with a single one."""
    if not found.alphas or os.environ.get("RANK", "0") != "0":
        return
    own = found.summary["serving"]["alpha"]
    rows = [
        ((f"{alpha:g}{' (served)' if alpha == own else ''}",), one) for alpha, one in found.alphas.items()
    ]
    _print_rows(["alpha"], rows, found)


def _print_rows(headings: Sequence[str], rows: Sequence[tuple[Sequence[str], Any]], first: Any) -> None:
    """A table of a few metrics that `first` has; a row for each evaluation (None: it is absent)."""
    names = [name for name in _SHORT if name in first.metrics] or list(first.metrics)[: len(_SHORT)]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for begins, one in rows:
        cells = [None if one is None else one.metrics[name] for name in names]
        shown = ("" if c is None else _number(c.value) if c.measured else "–" for c in cells)
        table.add_row(*map(escape, begins), *shown)
    wide = Console(soft_wrap=True, highlight=False, width=max(console.width, 120))  # no number is cut
    wide.print()
    wide.print(table)


def _number(value: float) -> str:
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def quiet() -> None:
    """Libraries' own progress bars and notices are left out; ours say what matters."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
