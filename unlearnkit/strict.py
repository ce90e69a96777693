"""From the plain values of a YAML file to dataclasses, strictly.

Unknown keys are refused with the nearest valid one, values are checked against the fields' types, and every
problem is noted in the `Document` that the values came from, so that all of them can be shown together.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from unlearnkit.yamlfile import Document, Keys, show

T = TypeVar("T")


def nearest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option most like `word` (case, `-` and `_` do not count), or None when nothing is close."""
    plain = {option.casefold().replace("-", "_"): option for option in options}
    close = difflib.get_close_matches(word.casefold().replace("-", "_"), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'beta'?`, else the options themselves when they are few, else nothing."""
    options = list(options)
    if (guess := nearest(word, options)) is not None:
        return f"; did you mean {guess!r}?"
    return f"; it is one of: {', '.join(options)}" if 0 < len(options) <= 15 else ""


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
MISFIT = object()


def phrase(hint: Any) -> str:
    """What a type asks for, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # Beside text the values of an Enum are only examples.
        wanted = [one for one in arguments if str not in arguments or not _is_enum(one)]
        return " or ".join(dict.fromkeys(phrase(one) for one in wanted))
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if hint is list or origin is list:
        return f"a list of {phrase(arguments[0])}" if arguments else "a list"
    if origin is dict and typing.get_origin(arguments[1]) is typing.Literal:
        return f"a section of keys, each with {phrase(arguments[1])}"
    if hint is dict or origin is dict or dataclasses.is_dataclass(hint):
        return "a section of keys"
    if _is_enum(hint):
        return "one of " + ", ".join(str(member.value) for member in hint)
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def fit(value: Any, hint: Any) -> Any:
    """`value` as `hint` asks for it (a whole number becomes a float where a number is wanted), or `MISFIT`.

    A type that YAML cannot write (a callable, a torch dtype) accepts anything: its owner checks it.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # An exact type first, so that `int | float` keeps 1 whole.
        fits = [fit(value, argument) for argument in arguments]
        return next(
            (one for one in fits if one is not MISFIT and type(one) is type(value)),
            next((one for one in fits if one is not MISFIT), MISFIT),
        )
    if origin is typing.Literal:
        return value if any(value == one and type(value) is type(one) for one in arguments) else MISFIT
    if hint is list or origin is list:
        if not isinstance(value, list):
            return MISFIT
        items = [fit(item, arguments[0]) if arguments else item for item in value]
        return MISFIT if any(item is MISFIT for item in items) else items
    if hint is dict or origin is dict:
        if not isinstance(value, dict):
            return MISFIT
        pairs = {key: fit(item, arguments[1]) if arguments else item for key, item in value.items()}
        return MISFIT if any(item is MISFIT for item in pairs.values()) else pairs
    if dataclasses.is_dataclass(hint) and isinstance(value, str | bool | int | float | list):
        return MISFIT
    if _is_enum(hint):
        return value if value in [member.value for member in hint] else MISFIT
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in _NAMES:
        return value if type(value) is hint else MISFIT
    return value


def field_hints(cls: type) -> dict[str, Any]:
    """The types of the fields that a dataclass takes; `Any` for all when they cannot be looked up."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):
        hints = {}
    return {one.name: hints.get(one.name, Any) for one in dataclasses.fields(cls) if one.init}


class Reader:
    """Reads the sections of one document; what is wrong is added to `document.problems`."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def problem(self, keys: Keys, message: str) -> None:
        """Note what is wrong at `keys`."""
        self.document.problem(keys, message)

    def unknown(self, keys: Keys, options: Iterable[str], hint: str = "") -> None:
        """Note that the last of `keys` is not among `options`; `hint` replaces the suggestion."""
        section = ".".join(keys[:-1])
        where = f" in {section}" if section else ""
        self.problem(keys, f"unknown key {keys[-1]!r}{where}{hint or did_you_mean(keys[-1], options)}")

    def check(self, value: Any, hint: Any, keys: Keys, least: float | None = None) -> Any:
        """`value` as `hint` wants it, or None after noting the problem; `least` is the least valid value."""
        result = fit(value, hint)
        if result is MISFIT:
            guess = ""
            if isinstance(value, str) and (options := _literals(hint)):
                close = nearest(value, options)
                guess = f"; did you mean {close!r}?" if close else ""
            elif isinstance(value, str) and fit(True, hint) is not MISFIT and value.lower() in _BOOLEANS:
                guess = f"; write {_BOOLEANS[value.lower()]}"
            elif fit("", hint) is not MISFIT and isinstance(value, int | float):
                guess = "; put it in quotes"
            self.problem(keys, f"{'.'.join(keys)} must be {phrase(hint)}, found {show(value)}{guess}")
            return None
        if least is not None and isinstance(result, int | float) and not result >= least:
            self.problem(keys, f"{'.'.join(keys)} must be at least {least}, found {show(value)}")
            return None
        return result

    def section(self, cls: type[T], value: Any, keys: Keys, also: Iterable[str] = ()) -> T | None:
        """Build the dataclass `cls` from a mapping; None after noting what is wrong.

        A field's metadata may hold `least`, its smallest valid number, and `hidden`: it is not read.
        `also` are further keys to suggest.
        """
        before = len(self.document.problems)
        if not isinstance(value, Mapping):
            self.problem(keys, f"{'.'.join(keys)} must be a section of keys, found {show(value)}")
            return None
        fields = {one.name: one for one in dataclasses.fields(typing.cast(Any, cls))}
        hints = {key: hint for key, hint in field_hints(cls).items() if "hidden" not in fields[key].metadata}
        values: dict[str, Any] = {}
        for key, item in value.items():
            inside = (*keys, key)
            if key not in hints:
                self.unknown(inside, [*hints, *also])
            elif isinstance(item, Mapping) and (nested := _dataclass_in(hints[key])):
                values[key] = self.section(nested, item, inside)
            else:
                values[key] = self.check(item, hints[key], inside, fields[key].metadata.get("least"))
        for name in hints:
            if name not in value and _required(fields[name]):
                self.problem(keys, f"{'.'.join((*keys, name))} is missing; it must be {phrase(hints[name])}")
        return cls(**values) if len(self.document.problems) == before else None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _dataclass_in(hint: Any) -> Any:
    return next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), None)


def _literals(hint: Any) -> list[str]:
    options = [hint, *typing.get_args(hint)] if typing.get_origin(hint) is not typing.Literal else [hint]
    found = [
        str(value)
        for one in options
        if typing.get_origin(one) is typing.Literal
        for value in typing.get_args(one)
    ]
    return found + [str(m.value) for one in options if _is_enum(one) for m in one]
