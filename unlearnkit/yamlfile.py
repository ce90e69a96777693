"""YAML in which every key knows its line and every number is a number.

A `Document` is a YAML file as plain values, with the place (`file:line`) of every key, dotted overrides, and
a list of what is wrong with it, so that all errors of a file are shown together.

Scalars follow YAML 1.2: `1e-5` is a number, and `no`, `off`, `0:100` and `2024-01-01` are text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from unlearnkit.errors import RecipeError

Keys = tuple[str, ...]  # where a value stands: ("data", "forget", "path"); list items count as "0", "1", ...

_INT = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"
)
_SCALARS: list[tuple[str, re.Pattern[str], list[str]]] = [
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or this reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Text with line breaks (Unicode's too) as "a\\nb" on one line, other text as YAML likes it."""
    breaks = any(c in text for c in "\n\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _text)


def dump_yaml(value: Any) -> str:
    """YAML text, keys in the order given, that `read_document` and any YAML 1.1 reader understand alike."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )


def show(value: Any) -> str:
    """A value as it is named in a message."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Document:
    """The values of one YAML file, the place of each, and the problems found in it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.values: dict[str, Any] = {}
        self.places: dict[Keys, str] = {}
        self.problems: list[str] = []

    def place(self, keys: Keys) -> str:
        """`file:line` of a key, or of the nearest section around it; an override's own text for overrides."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, self.file)

    def problem(self, keys: Keys, message: str) -> None:
        """Note what is wrong at `keys`."""
        self.problems.append(f"{self.place(keys)}: {message}")

    def raise_problems(self) -> None:
        """Raise every problem noted so far, one a line.

        Raises:
            RecipeError: there is at least one problem.
        """
        if self.problems:
            raise RecipeError("\n".join(sorted(dict.fromkeys(self.problems), key=self._line)))

    def _line(self, problem: str) -> float:
        """The line that a problem is on; overrides come after the file."""
        numbered = re.match(r":(\d+)?", problem.removeprefix(self.file))
        return int(numbered[1] or 0) if numbered else float("inf")

    def override(self, text: str) -> None:
        """Apply one `dotted.key=YAML value`; a mistake in it is noted with the override as its place."""
        name, equals, value_text = text.partition("=")
        keys = tuple(name.strip().split("."))
        place = f"override {text!r}"
        if not equals or not all(keys):
            self.problems.append(f"{place}: write it as key=value, for example training.beta=0.05")
            return
        parsed = parse_yaml(value_text, place, numbered=False)
        if parsed.problems:
            self.problems += parsed.problems
            return
        parent: Any = self.values
        for depth, key in enumerate(keys[:-1], start=1):
            parent = _descend(parent, key, keys[:depth])
            if parent is None:
                self.problems.append(
                    f"{place}: there is no {'.'.join(keys[:depth])}; list items count from 0"
                )
                return
            if not isinstance(parent, dict | list):
                self.problems.append(
                    f"{place}: {'.'.join(keys[:depth])} is {show(parent)}, which has no keys to set"
                )
                return
            self.places.setdefault(keys[:depth], place)
        if isinstance(parent, list):
            if not keys[-1].isdecimal() or int(keys[-1]) >= len(parent):
                self.problems.append(
                    f"{place}: {'.'.join(keys[:-1])} is a list of {len(parent)}; number its items from 0"
                )
                return
            parent[int(keys[-1])] = parsed.values[""]
        else:
            parent[keys[-1]] = parsed.values[""]
        self.places = {known: at for known, at in self.places.items() if known[: len(keys)] != keys}
        self.places[keys] = place


def _descend(parent: Any, key: str, keys: Keys) -> Any:
    """The section `key` of `parent`, made when missing or null; a stream's bare path becomes a mapping."""
    index: Any = key
    if isinstance(parent, list):
        if not key.isdecimal() or int(key) >= len(parent):
            return None
        index = int(key)
    child = parent[index] if isinstance(parent, list) else parent.get(key)
    if child is None:
        child = parent[index] = {}
    elif isinstance(child, str) and keys[0] == "data" and len(keys) == (3 if isinstance(parent, list) else 2):
        child = parent[index] = {"path": child}
    return child


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping; duplicate keys and unknown tags become problems.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping (file, line and one sentence).
    """
    shown = str(
        path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read {shown} ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{shown} is not text in UTF-8; save it as UTF-8") from None
    parsed = parse_yaml(text, shown, numbered=True)
    value = parsed.values[""]
    if not isinstance(value, dict) and not parsed.problems:
        found = "it is empty" if value is None else f"it holds {show(value)}"
        parsed.problems.append(f"{shown}: a file of `key: value` lines is expected, but {found}")
    if not isinstance(value, dict):
        parsed.raise_problems()
    parsed.values = value
    return parsed


def parse_yaml(text: str, file: str, *, numbered: bool) -> Document:
    """Parse YAML; the whole value is `values[""]`. Places are `file:line` when `numbered`, else `file`."""
    document = Document(file)
    document.values = {"": None}
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if numbered and mark else file
        what = ", ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(f"{where}: this is not valid YAML ({what}); mend the line or quote the text")
        return document
    except yaml.YAMLError as error:
        document.problems.append(f"{file}: this is not valid YAML ({' '.join(str(error).split())})")
        return document
    if node is not None:
        document.values[""] = _Builder(document, numbered).build(node, ())
    return document


class _Builder:
    """Turns YAML nodes into values while noting each key's place."""

    def __init__(self, document: Document, numbered: bool) -> None:
        self.document, self.numbered = document, numbered
        self.open: set[int] = set()  # nodes being built, to notice an alias to itself

    def build(self, node: yaml.Node, keys: Keys) -> Any:
        if keys not in self.document.places and keys:
            self.document.places[keys] = self.where(node)
        if id(node) in self.open:
            self.document.problems.append(f"{self.where(node)}: this value contains itself; write it out")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, keys)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*keys, str(i))) for i, item in enumerate(node.value)]
            return self.scalar(node)
        finally:
            self.open.remove(id(node))

    def where(self, node: yaml.Node) -> str:
        return f"{self.document.file}:{node.start_mark.line + 1}" if self.numbered else self.document.file

    def mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.problems.append(f"{self.where(key_node)}: a key must be plain text")
                continue
            key = key_node.value
            if key in first:
                self.document.problems.append(
                    f"{self.where(key_node)}: the key {key!r} is given twice (line {first[key]}); keep one"
                )
                continue
            first[key] = line
            self.document.places[(*keys, key)] = self.where(key_node)
            result[key] = self.build(value_node, (*keys, key))
        return result

    def scalar(self, node: yaml.Node) -> Any:
        text: str = node.value
        try:
            match node.tag.removeprefix("tag:yaml.org,2002:"):
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text.replace("_", ""))
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            pass
        self.document.problems.append(f"{self.where(node)}: the value {node.tag} {text!r} is not understood")
        return None
