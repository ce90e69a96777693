"""The checkpoint that was kept: chosen by a rule, or the last one since none satisfied the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_attacks import add_trajectory

from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.evidence import selection_of
from unlearnkit.reporting.limits import SELECTED, limits
from unlearnkit.reporting.trajectory import trajectory_of

RULE = "lowest forget_rouge with retain_rouge at least 95 % of the target's"
NONE_DID = f"No checkpoint satisfied the rule ({RULE})"
LOOKS_BETTER = (
    "Numbers that a checkpoint was chosen by look better than the same numbers on new questions would."
)


def edited(folder: Path, **changes: Any) -> Path:
    """A run whose manifest has another selection; None takes an entry out."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    entries = manifest["selection"] | changes
    manifest["selection"] = {key: value for key, value in entries.items() if value is not None}
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("satisfied", "changes", "says"),
    [
        (
            True,
            {},
            "The checkpoint of step 40 of 120 was selected on these metrics (Forget ROUGE-L, Retain "
            f"ROUGE-L), by the rule: {RULE}. {LOOKS_BETTER}",
        ),
        (
            None,
            {"of_steps": None, "metrics": None},
            f"The checkpoint of step 40 was selected on these metrics, by the rule: {RULE}. {LOOKS_BETTER}",
        ),
        (
            True,
            {"step": None, "rule": None, "metrics": ["retain_rouge"]},
            "The checkpoint was selected on these metrics (Retain ROUGE-L), by the rule: not recorded. "
            f"{LOOKS_BETTER}",
        ),
        (
            False,
            {},
            f"{NONE_DID}; the weights of the last step, 120 of 120, were kept.",
        ),
        (
            False,
            {"of_steps": None},
            f"{NONE_DID}; the weights of the last step, 120, were kept.",
        ),
        (
            False,
            {"step": None},
            f"{NONE_DID}; the weights of the last step were kept.",
        ),
    ],
)
def test_the_sentence(
    make: Any, tmp_path: Path, satisfied: bool | None, changes: dict[str, Any], says: str
) -> None:
    found = selection_of(load_run(edited(add_trajectory(make(tmp_path), satisfied), **changes)))
    assert found is not None
    assert found["sentence"] == says


def test_without_a_rule_nothing_is_said(complete_run: Path) -> None:
    run = load_run(complete_run)
    assert selection_of(run) is None
    assert not run.is_selected
    assert SELECTED not in limits([run])


@pytest.mark.parametrize(("satisfied", "kept"), [(True, 40), (None, 40), (False, None)])
def test_no_step_is_marked_where_none_satisfied_the_rule(
    make: Any, tmp_path: Path, schema: dict[str, Any], satisfied: bool | None, kept: int | None
) -> None:
    """No ring in the plot, no badge in the table, and no word about selected numbers."""
    folder = add_trajectory(make(tmp_path), satisfied)
    run = load_run(folder)
    found = trajectory_of(run)
    assert found is not None
    assert found["kept_step"] == kept
    assert (SELECTED in limits([run])) == (kept is not None)
    written = write_report(folder)
    html, markdown = written.html.read_text(), written.markdown.read_text()
    for mark in ("The ring marks the checkpoint", '<span class="badge">kept</span>', ", kept<"):
        assert (mark in html) == (kept is not None), mark
    for text in (html, markdown):
        assert ("was selected on these metrics" in text) == (kept is not None)
        assert ("No checkpoint satisfied the rule" in text) == (kept is None)
    result = json.loads(written.summary.read_text())
    jsonschema.validate(result, schema)
    assert result["selection"].get("satisfied") is satisfied
