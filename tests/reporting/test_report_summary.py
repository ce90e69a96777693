"""summary.json against its schema and its documentation, for runs of every shape."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_attacks import STAGES, add_attacks

from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.summary import SUMMARY_FORMAT
from unlearnkit.reporting.verdict import verdict_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def full(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    written = write_report(full_run, tmp_path_factory.mktemp("out"))
    found: dict[str, Any] = json.loads(written.summary.read_text())
    return found


@pytest.mark.parametrize(
    ("options", "attacked"),
    [
        ({}, False),
        ({}, True),
        ({"roles": ("target",)}, True),
        ({"roles": ("retain",)}, True),
        ({"roles": ()}, False),
        ({"roles": ("target",), "bare": True, "sets": {"forget": 10, "retain": 10}}, False),
    ],
)
def test_runs_of_every_shape_are_valid(
    make: Any, tmp_path: Path, schema: dict[str, Any], options: dict[str, Any], attacked: bool
) -> None:
    run = make(tmp_path / "run", **options)
    if attacked:
        has_retain = "retain" in options.get("roles", ("retain",))
        add_attacks(run, STAGES[1:3], roles=("unlearned", "retain") if has_retain else ("unlearned",))
    jsonschema.validate(json.loads(write_report(run, tmp_path / "out").summary.read_text()), schema)


def test_a_run_with_everything_and_a_comparison_are_valid(
    full: dict[str, Any], full_run: Path, complete_run: Path, schema: dict[str, Any], tmp_path: Path
) -> None:
    jsonschema.validate(full, schema)
    both = json.loads(write_report([full_run, complete_run], tmp_path).summary.read_text())
    jsonschema.validate(both, schema)
    assert both["runs"][0] == full
    alone = write_report(full_run / "eval" / "tofu", tmp_path / "alone")
    jsonschema.validate(json.loads(alone.summary.read_text()), schema)


@pytest.mark.parametrize(
    "path",
    [
        ("verdict", "tone"),
        ("metrics", "forget_rouge", "unlearned", "n"),
        ("attacks", "strongest", "returns"),
        ("attacks", "by_name", "relearn", 0, "recovered", "rouge", "control"),
        ("other_suites", "capability", "metrics"),
        ("trajectory", 0, "metrics", "forget_rouge", "value"),
        ("models", "unlearned", "label"),
        ("not_measured",),
    ],
)
def test_the_schema_misses_a_part_that_is_gone(
    full: dict[str, Any], schema: dict[str, Any], path: tuple[Any, ...]
) -> None:
    broken = copy.deepcopy(full)
    place: Any = broken
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    assert not jsonschema.Draft7Validator(schema).is_valid(broken)


def test_the_numbers_are_those_of_the_report(full: dict[str, Any], full_run: Path) -> None:
    run = load_run(full_run)
    assert full["format"] == SUMMARY_FORMAT
    assert full["verdict"]["code"] == verdict_of(run).code
    for attack in attacks_of(run):
        for shown, stage in zip(full["attacks"]["by_name"][attack.name], attack.stages, strict=True):
            assert (shown["variant"], shown["level"]) == (stage.variant, stage.level)
            for recovery in stage.recoveries:
                for key in ("back", "control", "excess", "control_attacked"):
                    cell, entry = getattr(recovery, key), shown["recovered"][recovery.measure][key]
                    assert [entry[name] for name in ("value", "low", "high", "n")] == [
                        cell.value, cell.low, cell.high, cell.n
                    ]  # fmt: skip
    strongest = full["attacks"]["strongest"]
    assert (strongest["attack"], strongest["variant"]) == ("relearn", "10 steps")
    assert strongest["returns"] is True
    assert (
        strongest["excess"]
        == full["attacks"]["by_name"]["relearn"][1]["recovered"][strongest["measure"]]["excess"]["value"]
    )
    rates = full["metrics"]["membership_loss"]["unlearned"]["extra"]
    assert "tpr_at_1_fpr" in rates
    assert "roc" not in rates
    assert full["other_suites"]["capability"]["metrics"]["mmlu_tiny"]["unlearned"]["value"] == 11 / 16


def test_every_field_and_every_code_is_documented(full: dict[str, Any]) -> None:
    text = (DOCS / "summary.md").read_text()
    stage = full["attacks"]["by_name"]["relearn"][0]
    recovery = stage["recovered"]["rouge"]
    metric = full["metrics"]["forget_rouge"]["unlearned"]
    for key in (
        *full,
        *full["verdict"],
        *full["attacks"],
        *full["attacks"]["strongest"],
        *stage,
        *recovery,
        *recovery["back"],
        *metric,
    ):
        assert f"`{key}`" in text, key
    source = Path(verdict_of.__code__.co_filename).read_text()
    codes = set(
        re.findall(r'^\s+"([a-z]+(?:_[a-z]+)*)",\n\s+(?:"(?:good|mixed|bad|unknown)"|tone),', source, re.M)
    )
    codes |= set(re.findall(r'code, tone = "([a-z_]+)"', source))
    assert len(codes) == 12
    for code in codes:
        assert f"`{code}`" in text, code
