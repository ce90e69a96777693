"""What a report says about keeping: the retain term, and whether its own examples were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.kept import RETAIN_IS_TRAINED
from unlearnkit.reporting.limits import limits
from unlearnkit.reporting.story import story
from unlearnkit.reporting.verdict import verdict_of

TOO = "These are examples that it was trained to keep."
OWN = {"forget": 20, "retain": 20}
KEEP = {"path": "keep.jsonl"}


def deletion(
    make: Any,
    folder: Path,
    sets: dict[str, int] | None = None,
    with_retain_model: bool = False,
    **changes: Any,
) -> Path:
    """A run of the suite `forget` on somebody's own files; `changes` replaces sections of its recipe."""
    recipe = {
        "method": "npo",
        "data": {"forget": {"path": "mine.jsonl"}, "retain": KEEP},
        "training": {"retain": "nll"},
        "evaluation": {"suite": "forget", "data": {}},
        **changes,
    }
    roles = ("target", "retain") if with_retain_model else ("target",)
    make(folder, roles=roles, bare=not with_retain_model, sets=sets or OWN, recipe=recipe)
    for place in list((folder / "eval").iterdir()):
        place.rename(place.with_name(place.name.replace("tofu", "forget")))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"] = {"forget": {"source": "mine.jsonl", "examples": 20}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def done(folder: Path) -> str:
    return " ".join(dict(story(load_run(folder)))["What was done"])


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({}, True),
        ({"evaluation": {"suite": "forget", "data": {"retain": KEEP}}}, True),
        ({"evaluation": {"suite": "forget", "data": {"retain": {"path": "other.jsonl"}}}}, False),
        ({"training": {"retain": "none"}}, False),
    ],
)
def test_retain_examples_that_were_trained_on_are_no_proof(
    make: Any, tmp_path: Path, changes: Any, trained: bool
) -> None:
    folder = deletion(make, tmp_path / "run", **changes)
    run = load_run(folder)
    assert (TOO in verdict_of(run).text) == trained
    assert (RETAIN_IS_TRAINED in limits([run])) == trained
    written = write_report(folder)
    for text in (written.html.read_text(), written.markdown.read_text()):
        assert (RETAIN_IS_TRAINED in text) == trained


@pytest.mark.parametrize(
    ("training", "tone", "ending"),
    [
        ({"retain": "nll"}, "mixed", "and it kept what it was trained to keep."),
        ({"retain": "none"}, "good", "and it kept its other abilities as far as they were measured."),
    ],
)
def test_a_good_verdict_needs_more_than_the_examples_trained_on(
    make: Any, tmp_path: Path, training: Any, tone: str, ending: str
) -> None:
    folder = deletion(make, tmp_path / "run", with_retain_model=True, training=training)
    found = verdict_of(load_run(folder))
    assert (found.code, found.tone) == ("forgotten", tone)
    assert found.headline.endswith(ending)


def test_other_sets_do_show_what_was_kept(complete_run: Path) -> None:
    run = load_run(complete_run)
    assert RETAIN_IS_TRAINED not in limits([run])
    assert TOO not in verdict_of(run).text


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"retain": "kl", "retain_weight": 2.5}, "With the retain term kl, weight 2.5"),
        ({}, "With the retain term nll, weight 1"),  # told by the log
        ({"retain": "none"}, "Without any retain term: nothing held"),
        ({"retain": "nll", "retain_weight": 0}, "Without any retain term: nothing held"),
    ],
)
def test_the_retain_term_is_named(make: Any, tmp_path: Path, training: Any, says: str) -> None:
    assert says in done(deletion(make, tmp_path / "run", training=training))


@pytest.mark.parametrize(
    ("method", "noted", "says"),
    [
        ("pdu", {"term": "nll", "weight": 100.0}, "With the retain term nll, weight 100"),
        ("dpo", {"term": "none", "weight": 1.0}, "Without any retain term: nothing held"),
        ("npo", {"term": "nll", "weight": 0.0}, "Without any retain term: nothing held"),
        ("npo", {"term": "kl", "weight": 0.5}, "With the retain term kl, weight 0.5"),
    ],
)
def test_the_manifest_says_which_retain_term_there_was(
    make: Any, tmp_path: Path, method: str, noted: dict[str, Any], says: str
) -> None:
    """PDU logs alpha and slack too, and DPO neither names a term nor logs one."""
    folder = deletion(make, tmp_path / "run", training={})
    logged = {"step": 1, "retain/alpha": 100.0, "retain/nll": 0.1} if method == "pdu" else {"step": 1}
    (folder / "log.jsonl").write_text(json.dumps(logged) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "method": method, "retain": noted}))
    assert says in done(folder)


def test_a_log_without_a_retain_term_had_none(make: Any, tmp_path: Path) -> None:
    folder = deletion(make, tmp_path / "run", training={}, method="grad_ascent")
    (folder / "log.jsonl").write_text('{"step": 1, "forget/nll": 0.1}\n')
    assert "Without any retain term" in done(folder)


def test_without_a_retain_set_the_reason_is_said(make: Any, tmp_path: Path) -> None:
    folder = deletion(
        make,
        tmp_path / "run",
        sets={"forget": 20},
        data={"forget": {"path": "mine.jsonl"}},
        training={"retain": "none"},
    )
    path = folder / "eval" / "forget" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["retain_rouge"] = {"value": None, "note": "not measured: no generations for 'retain'"}
    path.write_text(json.dumps(summary))
    run = load_run(folder)
    assert "What it kept was not measured: no retain set was given." in verdict_of(run).text
    assert "what the model kept: no retain set was given" in run.gaps
    assert not any("for 'retain'" in gap for gap in run.gaps)
