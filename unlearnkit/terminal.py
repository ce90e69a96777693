"""What is printed: tables of metrics, lines of progress; of several processes one prints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(soft_wrap=True, highlight=False)
#: What a table of attacks shows, as far as the suite has it.
_UNDER_ATTACK = ("forget_quality", "forget_rouge", "forget_probability", "model_utility", "retain_rouge")


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
    names = [name for name in _UNDER_ATTACK if name in first.metrics]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    headings = ("under attack", "model") if len(attacked) > 1 else ("under attack",)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    stages = [("no attack", ""), *(one.stage for one in first.attacked)]
    for stage in stages:
        for label, one in attacked.items():
            at = one if stage[1] == "" else one.under(stage)
            cells = [at.metrics[name] if at is not None else None for name in names]
            shown = ("" if c is None else _number(c.value) if c.measured else "–" for c in cells)
            table.add_row(" ".join(stage).strip(), *[escape(label)][: len(headings) - 1], *shown)
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
