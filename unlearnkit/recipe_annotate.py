"""A recipe's section `data.annotate`: who finds the risky stretches of which streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnkit.recipe import AnnotateSpec
from unlearnkit.strict import Reader, did_you_mean
from unlearnkit.yamlfile import Keys, show

if TYPE_CHECKING:
    from unlearnkit.data.annotators import Annotator

_KINDS = ("names", "patterns", "classifier", "call")
#: Further keys -> the kinds that they belong to.
_OF = {
    "parts": ("names",), "ignore_case": ("names",), "label": ("classifier",), "thresholds": ("classifier",),
    "risk": ("names", "patterns", "call"),
}  # fmt: skip
_KEYS: Keys = ("data", "annotate")


def annotate_section(reader: Reader, value: Any, streams: Collection[str]) -> list[AnnotateSpec] | None:
    """The entries, with every mistake noted; None where there are none.

    Args:
        streams: the names of the recipe's streams.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        example = "- names: [Ana Reyes]" if not isinstance(value, Mapping) else "a dash before the entry"
        reader.problem(_KEYS, f"data.annotate must be a list, found {show(value)}; write {example}")
        return None
    specs = (_entry(reader, one, (*_KEYS, str(index)), streams) for index, one in enumerate(value))
    return [spec for spec in specs if spec is not None] or None


def _entry(reader: Reader, value: Any, keys: Keys, streams: Collection[str]) -> AnnotateSpec | None:
    spec = reader.section(AnnotateSpec, value, keys)
    if spec is None:
        return None
    where = ".".join(keys)
    kinds = [kind for kind in _KINDS if getattr(spec, kind) is not None]
    if len(kinds) != 1:
        has = f"has {' and '.join(kinds)}; keep one of them" if kinds else f"has none of {', '.join(_KINDS)}"
        reader.problem(keys, f"{where} {has}, and write an entry for each")
        return None
    kind = kinds[0]
    for key, owners in _OF.items():
        if value.get(key) is not None and kind not in owners:
            hint = "; its thresholds name the classes" if key == "risk" else ""
            reader.problem(
                (*keys, key), f"{where}.{key} belongs to {' or '.join(owners)}, not to {kind}{hint}"
            )
    if getattr(spec, kind) in ([], "") or (
        isinstance(getattr(spec, kind), list) and not all(getattr(spec, kind))
    ):
        reader.problem((*keys, kind), f"{where}.{kind} is empty, or one of its entries is; fill it in")
    if kind == "classifier" and not spec.label:
        reader.problem(keys, f"{where} has no label; name the one whose score counts, such as label: toxic")
    for index, stream in enumerate(spec.streams or ()):
        if stream not in streams:
            guess = did_you_mean(stream, streams)
            at = (*keys, "streams", str(index))
            reader.problem(at, f"{where}.streams: {stream!r} is not a stream of this recipe{guess}")
    return spec if kind == "classifier" else dataclasses.replace(spec, risk=spec.risk or "high")


def annotators_for(
    specs: Sequence[AnnotateSpec], stream: str, *, is_read: bool, root: str | None
) -> list[Annotator]:
    """Those of a recipe's annotators that work on one stream.

    Args:
        is_read: whether the method reads the stream; if not, only an entry that names it works on it.
        root: `data.root`, below which files of names may lie.

    Raises:
        RecipeError: names that cannot be read, thresholds that are none.
    """
    mine = [spec for spec in specs if (is_read if spec.streams is None else stream in spec.streams)]
    return [annotator(spec, root) for spec in mine]


def annotator(spec: AnnotateSpec, root: str | None = None) -> Annotator:
    """The annotator that an entry asks for.

    Raises:
        RecipeError: as `annotators_for`.
    """
    from unlearnkit.data import annotators
    from unlearnkit.data.terms import read_terms

    risk = spec.risk or annotators.HIGH
    if spec.names is not None:
        return annotators.Names(
            read_terms(spec.names, root), risk, parts=spec.parts is not False,
            ignore_case=bool(spec.ignore_case),
        )  # fmt: skip
    if spec.patterns is not None:
        return annotators.Patterns(spec.patterns, risk)
    if spec.classifier is not None:
        thresholds = spec.thresholds or dict(annotators.THRESHOLDS)
        return annotators.SentenceClassifier(spec.classifier, spec.label or "", thresholds)
    return annotators.Call(spec.call or "", risk)
