"""What must answer at once must not import what takes seconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "trl", "peft", "pyarrow", "scipy")


def imported(code: str) -> list[str]:
    """The heavy packages that `code` has imported at its end, in a fresh interpreter."""
    ending = f"\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return list(filter(None, done.stderr.strip().strip("[]").split(", ")))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["ls"], ["ls", "nothing"], ["version"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import contextlib, io, sys
import unlearnkit
sys.argv = ["unlearnkit", *{arguments!r}]
from unlearnkit.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
    with contextlib.suppress(SystemExit):
        main()
assert out.getvalue()
"""
    assert imported(code) == []


def test_heavy_modules_are_seen() -> None:
    """The check above can fail."""
    assert imported("import pandas") != []


def test_every_public_name_is_there() -> None:
    import unlearnkit

    for name in unlearnkit.__all__:
        assert getattr(unlearnkit, name) is not None
    assert dir(unlearnkit) == sorted(unlearnkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'NPO'"):
        unlearnkit.NPO  # noqa: B018


def test_editors_are_told_the_same_names() -> None:
    """The imports for type checkers, and what is imported on first use."""
    import unlearnkit

    tree = ast.parse(Path(unlearnkit.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    told = {
        one.asname: node.module for node in imports if isinstance(node, ast.ImportFrom) for one in node.names
    }
    assert told == unlearnkit._HOMES
