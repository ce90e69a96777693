"""Names of data and tokenizers by what they hold, found without holding it in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from unlearnkit.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

#: Rows of a table that are read together.
ROWS_AT_A_TIME = 256


def content(table: Dataset, columns: Sequence[str] | None = None) -> str:
    """Names rows by what stands in them, without holding them in memory.

    Args:
        columns: look at these alone.
    """
    names = sorted(table.column_names if columns is None else columns)
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8)
    for batch in table.select_columns(names).iter(ROWS_AT_A_TIME):
        for values in zip(*(batch[name] for name in names), strict=True):
            for value in values:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
                data = text.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
    return digest.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """Names what decides the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary: Any = sorted(tokenizer.get_vocab().items())
    if backend is not None:
        # A call that pads or truncates leaves its settings behind, which change no token of a whole text.
        vocabulary = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    return fingerprint(type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map)


def selector_identity(selector: Any) -> str | None:
    """Names what decides a selector's choice: its class, its settings, and its code unless that is ours.

    Returns:
        None where that cannot be known, so that nothing may be taken for this selector's work: a function, a
        class made inside a function (which may use what stands around it) or typed into a console, settings
        that are no plain values.
    """
    kind = type(selector)
    names = [kind.__qualname__, getattr(kind.__call__, "__qualname__", "<locals>")]
    settings = _settings(selector)
    if settings is None or any("<locals>" in name for name in names):
        return None
    codes = []
    for one in kind.__mro__:
        package = one.__module__.partition(".")[0]
        if package in sys.stdlib_module_names:
            if one is kind:
                return None
        elif package != __name__.partition(".")[0]:
            try:
                module = sys.modules[one.__module__]
                codes.append(inspect.getsource(module))
                if attrgetter(one.__qualname__)(module) is not one:
                    return None
            except (OSError, TypeError, KeyError, AttributeError):
                return None
    return fingerprint(kind.__module__, kind.__qualname__, settings, codes)


def _settings(selector: Any) -> str | None:
    """All that a selector was made with; None if it holds something that no name stands for."""
    if dataclasses.is_dataclass(selector):
        values = {f.name: getattr(selector, f.name) for f in dataclasses.fields(selector) if f.init}
    elif hasattr(selector, "__dict__"):
        values = dict(vars(selector))
    else:
        return None
    return repr(sorted(values.items())) if _is_plain(values) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, [*value, *value.values()]))
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
