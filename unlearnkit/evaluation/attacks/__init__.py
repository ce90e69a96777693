"""Attacks: what tries to bring forgotten knowledge back before a suite is run.

One file each: a frozen dataclass of options whose `stages(subject)` is a context manager from a subject to
attacked subjects. A module of that folder, or any module by its dotted name, is found by its name.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.attacks.subject import Attack, Subject
from unlearnkit.strict import MISFIT, did_you_mean, field_hints, fit, phrase
from unlearnkit.yamlfile import show

#: Modules of this folder that help attacks and are none.
_HELPERS = ("subject", "forms")


def available() -> list[str]:
    """The names of the shipped attacks."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _HELPERS)


def attack_class(name: str) -> Any:
    """The class behind a name: a shipped attack, or the `ATTACK` of a module of the user's.

    Raises:
        RecipeError: there is no such attack.
    """
    if name in available():
        return importlib.import_module(f"{__name__}.{name}").ATTACK
    if "." in name:
        try:
            return importlib.import_module(name).ATTACK
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"the attack {name!r} cannot be loaded ({error}); name a module that holds ATTACK"
            ) from error
    hint = did_you_mean(name, available())
    raise RecipeError(f"unknown attack {name!r}{hint} (see `unlearnkit ls attacks`)")


def attack(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """An attack with its options; what can be known to fail fails here, before a model is loaded.

    Raises:
        RecipeError: no such attack or option, or a value of the wrong kind.
        UserError: a package that it needs is missing.
    """
    cls = attack_class(name)
    known = {one.name for one in dataclasses.fields(cls)}
    hints = field_hints(cls)
    values: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise RecipeError(f"the attack {name} has no option {key!r}{did_you_mean(key, known)}")
        fitted = fit(value, hints[key])
        if fitted is MISFIT:
            raise RecipeError(f"{name}.{key} must be {phrase(hints[key])}, found {show(value)}")
        values[key] = tuple(fitted) if isinstance(fitted, list) else fitted
    made: Attack = cls(**values)
    if callable(check := getattr(made, "check", None)):
        check()
    return made


def describe(name: str) -> str:
    """What a shipped attack does: the first line of its class's docstring, read without importing it."""
    tree = ast.parse((Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = next(node for node in classes if any(_is_stages(item) for item in node.body))
    return (ast.get_docstring(own) or "").partition("\n")[0]


def _is_stages(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "stages"


__all__ = ["Attack", "Subject", "attack", "attack_class", "available", "describe"]
