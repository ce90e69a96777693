"""From a method's name to the Config and the Trainer in its module; there is no registry to edit.

"npo" is `unlearnkit/methods/npo.py`; a name with a dot is a module of the user's. Only `method` imports them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean

_FOLDER = Path(__file__).resolve().parent / "methods"


@dataclass(frozen=True)
class MethodEntry:
    """A method: its name as the recipe writes it, its Config (a dataclass) and its Trainer."""

    name: str
    config: type[Any]
    trainer: type[Any]


def methods() -> list[str]:
    """The names of the methods that UnlearnKit brings, found without importing them."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


def check_name(name: str) -> None:
    """Check, without importing anything, that a name without a dot is one of `methods()`.

    Raises:
        RecipeError: it is not.
    """
    if not all(part.isidentifier() for part in name.split(".")) and "." in name:
        raise RecipeError(f"{name!r} is not a module; write it with dots, without .py: their_pkg.module")
    if "." not in name and name not in methods():
        raise RecipeError(
            f"unknown method {name!r}{did_you_mean(name, methods())}"
            f" (methods: {', '.join(methods())}; a module of your own: their_pkg.module)"
        )


def method(name: str) -> MethodEntry:
    """Import a method's module and return its Config and Trainer.

    Raises:
        RecipeError: there is no such method, its module cannot be imported, or it does not define exactly one
            class whose name ends in `Config` and one whose name ends in `Trainer`.
    """
    check_name(name)
    module = _import(name, name if "." in name else f"unlearnkit.methods.{name}")
    config = _only(module, name, "Config")
    if not dataclasses.is_dataclass(config):
        raise RecipeError(
            f"{config.__name__} of method {name!r} is not a dataclass; decorate it with @dataclass"
        )
    return MethodEntry(name, config, _only(module, name, "Trainer"))


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise RecipeError(
                f"method {name!r} is not found: there is no module {error.name!r}; install"
                f" its package or put its folder on PYTHONPATH (UnlearnKit's methods: {', '.join(methods())})"
            ) from error
        raise RecipeError(
            f"method {name!r} needs the package {error.name!r}, which is not installed; install it"
        ) from error
    except ImportError as error:
        raise RecipeError(f"method {name!r} cannot be imported: {error}") from error
    except SyntaxError as error:
        raise RecipeError(
            f"method {name!r} cannot be imported: {error.filename}:{error.lineno}: {error.msg}"
        ) from error


def _only(module: ModuleType, name: str, ending: str) -> type[Any]:
    """The one class of `module` that is defined there and whose name ends in `ending`."""
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and value.__name__ == key
        and key.endswith(ending)
        and not key.startswith("_")
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(one.__name__ for one in found) or "none"
    raise RecipeError(
        f"method {name!r}: {module.__file__} must define exactly one class whose name ends in {ending!r}, "
        f"found {names}"
    )


def summary(name: str) -> str:
    """The first line of the docstring of a method's module, read without importing it; "" when there is none.

    Raises:
        RecipeError: the method is unknown.
    """
    check_name(name)
    path = _source(name)
    if path is None or not path.is_file():
        raise RecipeError(
            f"method {name!r} is not found; install the package that has it or put it on PYTHONPATH"
        )
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].strip()


def _source(name: str) -> Path | None:
    """The file of a method's module, found without importing any of its packages."""
    if "." not in name:
        return _FOLDER / f"{name}.py"
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    stem = Path(next(iter(spec.submodule_search_locations)), *rest)
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
