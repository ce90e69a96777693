"""Methods are found by the name of their module; what goes wrong is said in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearnkit import lookup
from unlearnkit.errors import RecipeError

GOOD = '''"""A method of theirs.

More about it."""
import dataclasses
from dataclasses import dataclass
from pathlib import PurePath as ForeignConfig  # imported: not a Config of this module

@dataclass
class TheirConfig:
    beta: float = 0.1

class _HiddenTrainer: ...
class TheirTrainer: ...
AliasTrainer = TheirTrainer
'''
Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of the package `their_pkg` and return its dotted name; forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.split(".")[0] == "their_pkg"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "their_pkg").mkdir()
    (tmp_path / "their_pkg/__init__.py").write_text("LOADED = True\n")

    def write(name: str, text: str) -> str:
        (tmp_path / "their_pkg" / f"{name}.py").write_text(text)
        return f"their_pkg.{name}"

    yield write
    for name in [one for one in sys.modules if one.split(".")[0] == "their_pkg"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for unlearnkit/methods in tests that only list names."""
    folder = tmp_path / "methods"
    folder.mkdir()
    for name in ("__init__", "npo", "grad_ascent", "grad_diff", "sft"):
        (folder / f"{name}.py").write_text(
            f'"""The {name} method: a summary.\n\nMore."""\nimport no_such_thing\n'
        )
    monkeypatch.setattr(lookup, "_FOLDER", folder)
    return folder


def test_a_dotted_name_is_a_module(write: Write) -> None:
    entry = lookup.method(write("good", GOOD))
    assert entry.name == "their_pkg.good"
    assert (entry.config.__name__, entry.trainer.__name__) == ("TheirConfig", "TheirTrainer")
    assert entry.config().beta == 0.1


def test_summary_reads_without_importing(write: Write) -> None:
    assert lookup.summary(write("good", GOOD)) == "A method of theirs."
    assert lookup.summary(write("bare", "x = 1\n")) == ""
    assert not [name for name in sys.modules if name.startswith("their_pkg")]


def test_methods_are_the_files_of_the_folder(folder: Path) -> None:
    assert lookup.methods() == ["grad_ascent", "grad_diff", "npo", "sft"]
    assert lookup.summary("npo") == "The npo method: a summary."


@pytest.mark.parametrize(
    ("name", "meant"),
    [("npoo", "npo"), ("NPO", "npo"), ("grad-ascent", "grad_ascent"), ("graddiff", "grad_diff")],
)
def test_unknown_method_suggests_the_nearest_and_lists_all(folder: Path, name: str, meant: str) -> None:
    for function in (lookup.method, lookup.summary):
        with pytest.raises(RecipeError) as caught:
            function(name)
        assert f"unknown method {name!r}; did you mean {meant!r}?" in str(caught.value)
        assert "methods: grad_ascent, grad_diff, npo, sft" in str(caught.value)


@pytest.mark.parametrize("name", ["mine/method.py", ".method", "pkg..method", "pkg."])
def test_what_is_not_a_module_name_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="is not a module; write it with dots"):
        lookup.method(name)


def test_missing_package_and_missing_module(write: Write) -> None:
    with pytest.raises(
        RecipeError, match=r"'no_such_pkg\.x' is not found: there is no module 'no_such_pkg'.*PYTHONPATH"
    ):
        lookup.method("no_such_pkg.x")
    with pytest.raises(RecipeError, match=r"there is no module 'their_pkg\.absent'"):
        lookup.method("their_pkg.absent")
    for name in ("no_such_pkg.x", "their_pkg.absent"):
        with pytest.raises(RecipeError, match="is not found"):
            lookup.summary(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_dependency", "needs the package 'no_such_dependency', which is not installed"),
        ("from os import no_such_name", "cannot be imported: cannot import name 'no_such_name' from 'os'"),
        ("x = 1\ndef f(:\n", r"cannot be imported: .*broken\.py:2: "),
        ("class FooTrainer: ...", "exactly one class whose name ends in 'Config', found none"),
        (
            GOOD + "class SecondTrainer: ...",
            "whose name ends in 'Trainer', found TheirTrainer, SecondTrainer",
        ),
        (
            "class AConfig: ...\nclass ATrainer: ...",
            "AConfig of method 'their_pkg.broken' is not a dataclass",
        ),
    ],
)
def test_the_real_cause_is_shown(write: Write, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lookup.method(write("broken", text))


def test_a_fault_inside_a_module_is_not_the_users(write: Write) -> None:
    with pytest.raises(ZeroDivisionError):
        lookup.method(write("broken", "1 / 0"))
