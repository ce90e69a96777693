"""Each branch of the verdict: its code, its tone and the words that carry the meaning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.verdict import judge, verdict_of


def verdict(run: Path) -> Any:
    return verdict_of(load_run(run))


def test_forgotten_and_kept(complete_run: Path) -> None:
    found = verdict(complete_run)
    assert (found.code, found.tone) == ("forgotten", "good")
    assert "no longer shows that it learned the 40 forgotten examples" in found.headline
    assert "above 0.05: on these questions it cannot be told apart" in found.text
    assert "of its utility (" in found.text
    assert "Only 40 examples were compared" in found.text


def test_not_forgotten(make: Any, shapes: Any, tmp_path: Path) -> None:
    weak = replace(shapes["unlearned"], nll={**shapes["unlearned"].nll, "forget": 0.3})
    found = verdict(make(tmp_path, unlearned=weak))
    assert (found.code, found.tone) == ("not_forgotten", "bad")
    assert "still shows" in found.headline
    assert "practically zero" in found.text
    assert "the distance D" in found.text


def test_forgotten_but_utility_lost(make: Any, shapes: Any, tmp_path: Path) -> None:
    kept = shapes["unlearned"]
    lossy = replace(kept, nll={**kept.nll, "retain": 3.0}, repeats={**kept.repeats, "retain": 0.1})
    found = verdict(make(tmp_path, unlearned=lossy))
    assert (found.code, found.tone) == ("forgotten_utility_lost", "mixed")
    assert "lost" in found.headline
    assert "kept its other abilities" not in found.text


def test_pushed_away_instead_of_forgotten(make: Any, shapes: Any, tmp_path: Path) -> None:
    kept = shapes["unlearned"]
    far = replace(kept, nll={**kept.nll, "forget": 9.0})
    found = verdict(make(tmp_path, unlearned=far))
    assert (found.code, found.tone) == ("over_forgotten", "bad")
    assert "a model that never saw them gives them" in found.text


@pytest.mark.parametrize("text", ["the the the the the the the the the the the", "  ", "::::::"])
def test_collapsed(make: Any, shapes: Any, tmp_path: Path, text: str) -> None:
    """Babble and silence both count, whatever forget quality says."""
    found = verdict(make(tmp_path, unlearned=replace(shapes["unlearned"], forgotten_text=text)))
    assert (found.code, found.tone) == ("collapsed", "bad")
    assert "broken" in found.headline


@pytest.mark.parametrize(
    ("before", "after", "collapsed"),
    [
        (0.0, 0.6, True), (0.3, 0.9, True), (0.45, 0.71, True), (math.nan, 0.6, True),
        (0.45, 0.65, False), (0.8, 1.0, False), (0.0, 0.5, False), (0.0, math.nan, False),
    ],
)  # fmt: skip
def test_a_target_that_babbles_itself(
    complete_run: Path, before: float, after: float, collapsed: bool
) -> None:
    found = judge(load_run(complete_run), {"target": before, "unlearned": after})
    assert (found.code == "collapsed") == collapsed


def test_a_target_that_never_learned_makes_it_inconclusive(make: Any, shapes: Any, tmp_path: Path) -> None:
    found = verdict(make(tmp_path, target=shapes["retain"]))
    assert (found.code, found.tone) == ("inconclusive", "unknown")
    assert "Even before unlearning" in found.text


@pytest.mark.parametrize(
    ("nll", "repeats", "code"),
    [
        (1.7, 0.0, "weaker_evidence_forgotten"),
        (0.3, 0.7, "weaker_evidence_partly"),
        (0.05, 1.0, "weaker_evidence_not_forgotten"),
    ],
)
def test_without_a_retain_model(
    make: Any, shapes: Any, tmp_path: Path, nll: float, repeats: float, code: str
) -> None:
    kept = shapes["unlearned"]
    shape = replace(
        kept, nll={**kept.nll, "forget": nll}, repeats={**shapes["target"].repeats, "forget": repeats}
    )
    run = make(tmp_path, roles=("target",), unlearned=shape)
    found = verdict(run)
    assert found.code == code
    assert found.tone != "good"
    assert "Forget quality could not be measured (no retain model was given" in found.text
    assert "weaker evidence" in found.text
    written = write_report(run)
    assert "n/a" in written.html.read_text()
    assert any("retain model" in gap for gap in json.loads(written.summary.read_text())["not_measured"])


def test_own_files_without_paraphrases_or_retain_model(make: Any, tmp_path: Path) -> None:
    """The deletion request: no wrong answers, no gold standard, only a forget and a retain set."""
    run = make(tmp_path, roles=("target",), bare=True, sets={"forget": 20, "retain": 20})
    found = verdict(run)
    assert found.code.startswith("weaker_evidence_forgotten")
    assert "on the retain set" in found.text
    html = write_report(run).html.read_text()
    assert html.count("<svg") == 2  # ROUGE plane and training curves; nothing else can be drawn
    assert "no perturbed answers in the data" in html
    assert "The nine parts" not in html


def test_nothing_to_compare_with(make: Any, tmp_path: Path) -> None:
    found = verdict(make(tmp_path, roles=()))
    assert (found.code, found.tone) == ("not_judged", "unknown")


def test_without_a_target_evaluation(make: Any, tmp_path: Path) -> None:
    found = verdict(make(tmp_path, roles=("retain",)))
    assert found.code == "forgotten"
    assert "Before unlearning" not in found.text
    assert "of the retain model's" in found.text


@pytest.mark.parametrize("role", ["target", "retain"])
def test_a_model_that_was_not_unlearned_gets_no_verdict(complete_run: Path, role: str) -> None:
    found = verdict(complete_run / "eval" / f"tofu@{role}")
    assert found.code == "no_comparison"
    assert "nothing was unlearned" in found.headline


def test_an_interval_across_the_limit_is_said_to_be_uncertain(
    complete_run: Path, make: Any, tmp_path: Path
) -> None:
    run = make(tmp_path / "run")
    path = run / "eval" / "tofu" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["forget_quality"] |= {"value": 0.08, "low": 0.004, "high": 0.5}
    path.write_text(json.dumps(summary))
    assert "on both sides of 0.05" in verdict(run).text


def test_a_target_that_hardly_knew_the_examples_had_little_to_forget(
    make: Any, shapes: Any, tmp_path: Path
) -> None:
    ignorant = replace(
        shapes["target"],
        nll={**shapes["target"].nll, "forget": 6.0},
        repeats={**shapes["target"].repeats, "forget": 0.0},
    )
    run = make(tmp_path, roles=("target",), target=ignorant)
    found = verdict(run)
    assert (found.code, found.tone) == ("not_known_before", "unknown")
    assert "hardly knew the 40 examples" in found.headline
