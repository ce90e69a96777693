"""`unlearnkit ls` and `unlearnkit cp`: what is shipped."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnkit import lookup, shipped
from unlearnkit.errors import RecipeError, UserError
from unlearnkit.files import write_atomic
from unlearnkit.strict import did_you_mean

_KINDS = {"recipes": "recipes", "suites": "eval/suites", "launch": "launch"}


def listing(what: str | None) -> None:
    """Print names with one line each.

    Raises:
        RecipeError: `what` is not something that can be listed.
    """
    kinds = [*_KINDS, "methods", "attacks"]
    if what is not None and what not in kinds:
        raise RecipeError(f"cannot list {what!r}{did_you_mean(what, kinds)}")
    console = Console(soft_wrap=True)
    for kind in kinds if what is None else [what]:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, text in _entries(kind):
            table.add_row(f"  [bold]{escape(name)}[/bold]", escape(text))
        console.print(f"[cyan]{kind}[/cyan]")
        console.print(table)


def _entries(kind: str) -> list[tuple[str, str]]:
    if kind == "methods":
        return [(name, lookup.summary(name)) for name in lookup.methods()]
    if kind == "attacks":
        from unlearnkit.evaluation import attacks

        return [(name, attacks.describe(name)) for name in attacks.available()]
    folder = _KINDS[kind]
    return [
        (name, shipped.describe(path))
        for name in shipped.available(folder)
        if (path := shipped.find(folder, name)).suffix in (".yaml", ".yml", ".sbatch")
    ]


def copy(name: str, target: Path, *, force: bool) -> None:
    """Copy a shipped file.

    Raises:
        RecipeError: nothing is shipped under that name.
        UserError: the target exists.
    """
    for folder in _KINDS.values():
        if name in shipped.available(folder):
            source = shipped.find(folder, name)
            break
    else:
        names = [n for folder in _KINDS.values() for n in shipped.available(folder)]
        raise RecipeError(f"nothing is shipped as {name!r}{did_you_mean(name, names)}; see `unlearnkit ls`")
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise UserError(f"{target} exists; give another name, or --force to overwrite it")
    write_atomic(target, source.read_bytes())
    Console(soft_wrap=True).print(f"Copied {name} to {target}", markup=False)
