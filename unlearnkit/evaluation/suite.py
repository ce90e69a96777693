"""A suite: a YAML list of data sets, probes and metrics; every name is checked before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnkit import shipped
from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.asks import Ask as Ask
from unlearnkit.evaluation.asks import ProbeSpec as ProbeSpec
from unlearnkit.evaluation.asks import read_probes
from unlearnkit.evaluation.capability import TaskSpec, metrics_for
from unlearnkit.recipe import StreamSpec
from unlearnkit.strict import MISFIT, Reader, did_you_mean, field_hints, fit, phrase
from unlearnkit.yamlfile import Document, read_document, show


@dataclass(frozen=True)
class MetricSpec:
    """One number of a suite: a kind of metric (see `evaluation.metrics.KINDS`) and its options.

    `required`: without its data, or the retain model that it compares with, the suite is refused before a
    model is loaded; other metrics are then reported as not measured.
    """

    kind: str
    dataset: str | None = None
    group: str = "other"
    title: str = ""
    required: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What is measured. `data` maps a data set's name to its sources, empty where the user has given none.

    `optional` names the data sets that may be absent although they have a source; `lm_eval` are tasks of
    lm-evaluation-harness.
    """

    name: str
    version: int
    description: str
    split: str | None
    root: str | None
    data: dict[str, list[StreamSpec]]
    probes: ProbeSpec
    metrics: dict[str, MetricSpec]
    optional: frozenset[str] = frozenset()
    lm_eval: TaskSpec | None = None

    @property
    def versioned(self) -> str:
        """Name and version, as every record has them."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class _Head:
    suite: str
    version: int
    split: str | None = None
    splits: list[str] | None = None


_SECTIONS = ("data", "probes", "metrics", "lm_eval")


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
    head = reader.section(_Head, {k: v for k, v in values.items() if k not in _SECTIONS}, (), also=_SECTIONS)
    overrides = dict(data or {})
    named = "tasks" in (overrides.get("lm_eval") or {})
    tasks = _tasks(reader, document, overrides)
    probes = read_probes(reader, _section(document, "probes"))
    sources = _section(document, "data")
    written = _section(document, "metrics")
    if named:  # the suite's own scores are of other tasks
        written = {k: v for k, v in written.items() if not _is_task_score(v)}
    if tasks is not None:
        written |= {key: item for key, item in metrics_for(tasks.tasks, tasks).items() if key not in written}
    metrics = {key: _metric(reader, key, item) for key, item in written.items()}
    document.raise_problems()
    assert head is not None
    assert probes is not None
    split = _split(head, overrides)
    root, sets, optional = _data(sources, overrides, split, str(name))
    suite = Suite(
        head.suite, head.version, shipped.describe(path), split, root, sets, probes,
        {key: spec for key, spec in metrics.items() if spec is not None}, optional, tasks,
    )  # fmt: skip
    _check_names(suite, path)
    return suite


def _is_task_score(item: Any) -> bool:
    return isinstance(item, dict) and item.get("kind") == "task_score"


def _tasks(reader: Reader, document: Document, overrides: dict[str, Any]) -> TaskSpec | None:
    """The section `lm_eval`, with what the user says otherwise under the same name."""
    if "lm_eval" not in document.values:
        return None
    section = {**_section(document, "lm_eval"), **(overrides.pop("lm_eval", None) or {})}
    return reader.section(TaskSpec, section, ("lm_eval",))


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
    hints = metrics.hints_of(item["kind"])
    options = {k: reader.check(v, hints[k], (*at, k)) for k, v in item.items() if k in allowed}
    return None if spec is None else dataclasses.replace(spec, options=options)


def _split(head: _Head, data: Mapping[str, Any]) -> str | None:
    split = data.get("split") or head.split
    if head.splits and split not in head.splits:
        hint = did_you_mean(str(split), head.splits)
        raise RecipeError(f"suite {head.suite}: there is no split {split!r}{hint}")
    return split


def _data(
    sources: dict[str, Any], overrides: dict[str, Any], split: str | None, name: str
) -> tuple[str | None, dict[str, list[StreamSpec]], frozenset[str]]:
    """The root and the sources of each data set, with the split's name filled in, and what may be absent."""
    overrides.pop("split", None)
    root = overrides.pop("root", None) or sources.pop("root", None)
    sources.pop("root", None)
    if isinstance(root, str) and "{split}" in root:
        root = root.replace("{split}", split or "")
    if unknown := [key for key in overrides if key not in sources]:
        hint = did_you_mean(unknown[0], [*sources, "split", "root"])
        raise RecipeError(f"suite {name} has no data set {unknown[0]!r}{hint}")
    sets, optional = {}, set()
    for key, value in {**sources, **overrides}.items():
        several = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, Mapping) and one.get("optional") for one in several):
            optional.add(key)
        plain = [
            {k: v for k, v in one.items() if k != "optional"} if isinstance(one, Mapping) else one
            for one in several
        ]
        sets[key] = [_source(one, key, split) for one in plain]
    return root, sets, frozenset(optional)


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
        if isinstance(item, str) and ("{split}" in item or "{number}" in item):
            if split is None:
                raise RecipeError(f"{where}.{name} is {item!r}, but no split is given; set evaluation.split")
            number = "".join(filter(str.isdigit, split))  # the holdout10 of forget10
            fields[name] = item.replace("{split}", split).replace("{number}", number)
    return StreamSpec(**fields)


def _check_names(suite: Suite, path: Path) -> None:
    used = suite.probes.datasets
    for spec in suite.metrics.values():
        if spec.kind != "task_score":
            names = (spec.dataset, spec.options.get("holdout"), spec.options.get("terms"))
            used |= {name for name in names if isinstance(name, str)}
    if unknown := sorted(used - set(suite.data)):
        hint = did_you_mean(unknown[0], suite.data)
        raise RecipeError(f"{path}: {unknown[0]!r} is used, but it is not under data{hint}")
