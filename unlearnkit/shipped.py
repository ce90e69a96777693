"""Finding recipes, suites and launch files: a path of the user's, the checkout, or the installed package.

`recipes/`, `eval/` and `launch/` are data. In a checkout they lie at its root, in a wheel inside the package.
"""

from __future__ import annotations

from pathlib import Path

from unlearnkit.errors import RecipeError
from unlearnkit.strict import did_you_mean

_PACKAGE = Path(__file__).resolve().parent
_SINGULAR = {"recipes": "recipe", "eval/suites": "suite", "launch": "launch file"}
_YAML = (".yaml", ".yml")
_BESIDE = (".md", ".txt")  # beside the files that are meant: a page about them, a list that they read


def folders(kind: str) -> list[Path]:
    """The existing folders that hold shipped files of `kind`, the first one to be searched first."""
    checkout = _PACKAGE.parent
    is_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "recipes").is_dir()
    roots = [checkout, _PACKAGE] if is_checkout else [_PACKAGE]
    return [root / kind for root in roots if (root / kind).is_dir()]


def available(kind: str) -> list[str]:
    """The names of the shipped files of `kind` ("recipes", "eval/suites", "launch"), without .yaml."""
    names = set()
    for folder in folders(kind):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in _BESIDE and not path.name.startswith((".", "__")):
                names.add(_name(path.relative_to(folder)))
    return sorted(names)


def name_of(kind: str, path: str | Path) -> str:
    """The name by which `find` knows a file: "tofu/npo" for recipes/tofu/npo.yaml; else the file's stem."""
    path = Path(path).resolve()
    for folder in folders(kind):
        if path.is_relative_to(folder.resolve()):
            return _name(path.relative_to(folder.resolve()))
    return path.stem


def _name(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in _YAML else path).as_posix()


def find(kind: str, name: str | Path) -> Path:
    """The file of `kind` that `name` stands for.

    `name` is a path to an existing file, or the name of a shipped file with or without its extension.

    Raises:
        RecipeError: there is no such file; the message names the nearest one.
    """
    text = str(name)
    if Path(text).suffix and Path(text).is_file():
        return Path(text)
    for folder in folders(kind):
        for candidate in (folder / text, *(folder / f"{text}{suffix}" for suffix in _YAML)):
            if candidate.is_file():
                return candidate
    what = _SINGULAR.get(kind, f"file in {kind}")
    names = available(kind)
    if Path(text).suffix in _YAML:
        guess = did_you_mean(str(Path(text).with_suffix("")), names)
        raise RecipeError(
            f"{text} does not exist, nor does a shipped {what} of that name{guess} (see `unlearnkit ls`)"
        )
    raise RecipeError(
        f"unknown {what} {text!r}{did_you_mean(text, names)} (see `unlearnkit ls`; "
        f"a file of your own is given as its path, with .yaml)"
    )


def describe(path: str | Path) -> str:
    """The one-line description of a file: the first line of text in its opening comment, or ""."""
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            line = "" if line.startswith("#!") else line.strip()
            if line and not line.startswith("#"):
                return ""
            if text := line.lstrip("# ").strip():
                return text
    return ""
