"""A suite: a YAML list of data sets, probes and metrics; every name is checked before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnkit import shipped
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import StreamSpec
from unlearnkit.strict import MISFIT, Reader, did_you_mean, field_hints, fit, phrase
from unlearnkit.yamlfile import Document, read_document, show


@dataclass(frozen=True)
class MetricSpec:
    """One number of a suite: a kind of metric (see `evaluation.metrics.KINDS`) and its options."""

    kind: str
    dataset: str | None = None
    group: str = "other"
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeSpec:
    """The data sets that each probe is run on; `max_new_tokens` bounds a generation."""

    answer_likelihood: list[str] = field(default_factory=list)
    generate_answer: list[str] = field(default_factory=list)
    max_new_tokens: int = field(default=200, metadata={"least": 1})


@dataclass(frozen=True)
class Suite:
    """What is measured. `data` maps a data set's name to its sources, empty where the user has given none."""

    name: str
    version: int
    description: str
    split: str | None
    root: str | None
    data: dict[str, list[StreamSpec]]
    probes: ProbeSpec
    metrics: dict[str, MetricSpec]


@dataclass(frozen=True)
class _Head:
    suite: str
    version: int
    split: str | None = None
    splits: list[str] | None = None


def load_suite(name: str | Path, data: Mapping[str, Any] | None = None) -> Suite:
    """Read and check a suite.

    Args:
        name: a shipped suite ("tofu") or the path of a YAML file.
        data: overrides: `split`, `root`, or a data set's source (a path, or a mapping as in a recipe's
            stream).

    Raises:
        RecipeError: every mistake found, one a line.
    """
    path = shipped.find("eval/suites", name)
    document = read_document(path)
    reader = Reader(document)
    values = document.values
    head = reader.section(
        _Head, {k: v for k, v in values.items() if k not in ("data", "probes", "metrics")}, (),
        also=("data", "probes", "metrics"),
    )  # fmt: skip
    probes = reader.section(ProbeSpec, _section(document, "probes"), ("probes",))
    sources = _section(document, "data")
    metrics = {key: _metric(reader, key, item) for key, item in _section(document, "metrics").items()}
    document.raise_problems()
    assert head is not None
    assert probes is not None
    split = _split(head, data or {})
    root, sets = _data(sources, dict(data or {}), split, str(name))
    suite = Suite(
        head.suite, head.version, shipped.describe(path), split, root, sets, probes,
        {key: spec for key, spec in metrics.items() if spec is not None},
    )  # fmt: skip
    _check_names(suite, path)
    return suite


def _section(document: Document, key: str) -> dict[str, Any]:
    value = document.values.get(key) or {}
    if isinstance(value, dict):
        return dict(value)
    document.problem((key,), f"{key} must be a section of keys, found {show(value)}")
    return {}


def _metric(reader: Reader, key: str, item: Any) -> MetricSpec | None:
    from unlearnkit.evaluation import metrics

    at = ("metrics", key)
    if not isinstance(item, dict) or item.get("kind") not in metrics.KINDS:
        kind = item.get("kind") if isinstance(item, dict) else item
        hint = did_you_mean(str(kind), metrics.KINDS)
        reader.problem(at, f"metrics.{key}.kind {kind!r} is not known{hint}")
        return None
    known = [one.name for one in dataclasses.fields(MetricSpec) if one.name != "options"]
    allowed = metrics.options_of(item["kind"])
    for option in item:
        if option not in known and option not in allowed:
            reader.unknown((*at, option), [*known, *allowed])
    spec = reader.section(MetricSpec, {k: v for k, v in item.items() if k in known}, at)
    options = {k: v for k, v in item.items() if k in allowed}
    return None if spec is None else dataclasses.replace(spec, options=options)


def _split(head: _Head, data: Mapping[str, Any]) -> str | None:
    split = data.get("split") or head.split
    if head.splits and split not in head.splits:
        hint = did_you_mean(str(split), head.splits)
        raise RecipeError(f"suite {head.suite}: there is no split {split!r}{hint}")
    return split


def _data(
    sources: dict[str, Any], overrides: dict[str, Any], split: str | None, name: str
) -> tuple[str | None, dict[str, list[StreamSpec]]]:
    """The sources of each data set, with the split's name filled in."""
    overrides.pop("split", None)
    root = overrides.pop("root", None) or sources.pop("root", None)
    sources.pop("root", None)
    if unknown := [key for key in overrides if key not in sources]:
        hint = did_you_mean(unknown[0], [*sources, "split", "root"])
        raise RecipeError(f"suite {name} has no data set {unknown[0]!r}{hint}")
    sets = {}
    for key, value in {**sources, **overrides}.items():
        several = value if isinstance(value, list) else [] if value is None else [value]
        sets[key] = [_source(one, key, split) for one in several]
    return root, sets


def _source(value: Any, key: str, split: str | None) -> StreamSpec:
    if isinstance(value, StreamSpec):
        return value
    where = f"evaluation.data.{key}"
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str | Mapping):
        raise RecipeError(f"{where} must be a path or a section of keys, found {show(value)}")
    fields: dict[str, Any] = {"path": value} if isinstance(value, str) else dict(value)
    hints = field_hints(StreamSpec)
    for name, item in fields.items():
        if name not in hints:
            raise RecipeError(f"{where}: unknown key {name!r}{did_you_mean(str(name), hints)}")
        if fit(item, hints[name]) is MISFIT:
            raise RecipeError(f"{where}.{name} must be {phrase(hints[name])}, found {show(item)}")
        if isinstance(item, str) and "{split}" in item:
            if split is None:
                raise RecipeError(f"{where}.{name} is {item!r}, but no split is given; set evaluation.split")
            fields[name] = item.replace("{split}", split)
    return StreamSpec(**fields)


def _check_names(suite: Suite, path: Path) -> None:
    used = {*suite.probes.answer_likelihood, *suite.probes.generate_answer}
    used |= {m.dataset for m in suite.metrics.values() if m.dataset}
    if unknown := sorted(used - set(suite.data)):
        hint = did_you_mean(unknown[0], suite.data)
        raise RecipeError(f"{path}: {unknown[0]!r} is used, but it is not under data{hint}")
