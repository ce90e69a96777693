"""Which attacked evaluations count: those of finished attacks on this model, and controls attacked alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_attacks import STAGES, add_attacks, add_membership

from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.recoveries import NO_CONTROL, OTHER_OPTIONS
from unlearnkit.reporting.verdict import verdict_of
from unlearnkit.reporting.views import RunView

RELEARN = tuple(stage for stage in STAGES if stage["name"] == "relearn")
NOT_OF_IT = (
    "/attacks/relearn belongs to another model or was not finished, and is left out; run the attack again"
)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def stages_of(run: RunView) -> dict[str, set[str]]:
    """Variant -> the models that it was run on."""
    return {stage.variant: set(stage.evaluations) for stage in run.attacks}


def test_every_stage_that_is_listed_is_read(make: Any, tmp_path: Path) -> None:
    run = load_run(add_attacks(make(tmp_path), RELEARN))
    assert stages_of(run) == {"5 steps": {"unlearned", "retain"}, "10 steps": {"unlearned", "retain"}}
    assert not any("left out; " in caution for caution in run.cautions)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda attack, own: (attack / "stages.json").unlink(),
        lambda attack, own: change(attack / "stages.json", of={"model": "another"}),
        lambda attack, own: change(attack / "stages.json", of=None),
        lambda attack, own: change(attack / "stages.json", of=own | {"template": "another"}),
    ],
)
def test_stages_of_another_model_are_not_reported(
    make: Any, tmp_path: Path, spoil: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Without them the report says that no attack was run, and why; the retain model's are left alone."""
    run = add_attacks(make(tmp_path / "run"), RELEARN)
    place = run / "eval" / "tofu"
    spoil(place / "attacks" / "relearn", json.loads((place / "summary.json").read_text())["fingerprint"])
    view = load_run(run)
    assert stages_of(view) == {"5 steps": {"retain"}, "10 steps": {"retain"}}
    assert [caution for caution in view.cautions if "relearn" in caution] == ["tofu" + NOT_OF_IT]
    assert attacks_of(view) == []
    assert verdict_of(view).code == "forgotten"
    assert "what comes back under the attack relearn: it was not run on the unlearned model" in view.gaps
    written = write_report(run)
    assert NOT_OF_IT in written.html.read_text()
    assert NOT_OF_IT in written.markdown.read_text()
    assert json.loads(written.summary.read_text())["attacks"]["by_name"] == {}


def test_a_model_that_was_evaluated_anew_has_no_attack_yet(make: Any, tmp_path: Path) -> None:
    """The evaluation around the stages is of other weights now."""
    run = add_attacks(make(tmp_path), RELEARN)
    loaded = EvalRun.load(run / "eval" / "tofu")
    loaded.meta["fingerprint"]["model"] = "trained again"
    loaded.save(run / "eval" / "tofu")
    assert stages_of(load_run(run)) == {"5 steps": {"retain"}, "10 steps": {"retain"}}


def test_an_evaluation_that_does_not_say_whose_it_is_has_no_stages(make: Any, tmp_path: Path) -> None:
    """Nothing on both sides is no match."""
    run = add_attacks(make(tmp_path), RELEARN)
    change(run / "eval" / "tofu" / "summary.json", fingerprint=None)
    change(run / "eval" / "tofu" / "attacks" / "relearn" / "stages.json", of=None)
    assert stages_of(load_run(run))["5 steps"] == {"retain"}


def test_a_stage_that_is_not_listed_is_left_out(make: Any, tmp_path: Path) -> None:
    run = add_attacks(make(tmp_path), RELEARN)
    change(run / "eval" / "tofu" / "attacks" / "relearn" / "stages.json", stages=["5-steps"])
    view = load_run(run)
    assert stages_of(view) == {"5 steps": {"unlearned", "retain"}, "10 steps": {"retain"}}
    (caution,) = (caution for caution in view.cautions if "attacks/relearn" in caution)
    assert caution.startswith(
        "tofu/attacks/relearn: 10-steps is no stage of the attack that was finished last"
    )
    (attack,) = attacks_of(view)
    assert [stage.variant for stage in attack.stages] == ["5 steps"]


def test_a_broken_stage_that_does_not_count_is_no_error(make: Any, tmp_path: Path) -> None:
    """What an attack that was cut off left behind is not read at all."""
    run = add_attacks(make(tmp_path), RELEARN)
    folder = run / "eval" / "tofu@retain" / "attacks" / "relearn"
    (folder / "stages.json").unlink()
    (folder / "10-steps" / "records.parquet").unlink()
    view = load_run(run)
    assert stages_of(view) == {"5 steps": {"unlearned"}, "10 steps": {"unlearned"}}
    assert "tofu@retain" + NOT_OF_IT in view.cautions


def prefixed(make: Any, folder: Path, tokens: int, control_tokens: int, variant: str = "prefix") -> RunView:
    """The retain model was given other first words of the answer, or as many."""
    stage = {"name": "prompt", "variant": "prefix", "level": None, "back": 0.5, "control": 0.3}
    run = add_attacks(make(folder), (stage,), ("unlearned",), (), {"prefix_tokens": tokens})
    control = (stage | {"variant": variant},)
    return load_run(add_attacks(run, control, ("retain",), (), {"prefix_tokens": control_tokens}))


@pytest.mark.parametrize("variant", ["prefix", "prefix of 8"])
def test_a_retain_model_attacked_with_other_options_is_no_control(
    make: Any, tmp_path: Path, variant: str
) -> None:
    run = prefixed(make, tmp_path / "run", 1, 8, variant)
    stage = next(stage for stage in run.attacks if "unlearned" in stage.evaluations)
    assert set(stage.evaluations) == {"unlearned"}
    assert (stage.options, stage.otherwise) == ({"prefix_tokens": 1}, {"retain"})
    (attack,) = attacks_of(run)
    for one in attack.stages[0].recoveries:
        assert one.back.value is not None
        assert [one.control.value, one.excess.value, one.control_attacked.value] == [None] * 3
        assert one.control.note == one.excess.note == OTHER_OPTIONS
        assert one.judged is one.back
    assert f"; no control: {OTHER_OPTIONS}." in attack.headline
    assert any(f"There is no control: {OTHER_OPTIONS}, so how much" in line for line in attack.caveats)
    assert f"the control of the attack prompt: {OTHER_OPTIONS}" in run.gaps
    written = write_report(run.folder)
    assert OTHER_OPTIONS in written.html.read_text()
    assert OTHER_OPTIONS in written.markdown.read_text()


def test_a_retain_model_attacked_alike_is_the_control(make: Any, tmp_path: Path) -> None:
    run = prefixed(make, tmp_path, 8, 8)
    (stage,) = run.attacks
    assert (set(stage.evaluations), stage.otherwise) == ({"unlearned", "retain"}, set())
    assert attacks_of(run)[0].stages[0].recoveries[0].control.value is not None


def test_a_retain_model_without_the_stage_has_the_plain_reason(make: Any, tmp_path: Path) -> None:
    """Attacked with the same options, but only for 5 steps: nothing to compare 10 steps with."""
    run = add_attacks(make(tmp_path), RELEARN, roles=("unlearned",))
    view = load_run(add_attacks(run, RELEARN[:1], roles=("retain",)))
    five, ten = attacks_of(view)[0].stages
    assert five.recoveries[0].control.value is not None
    assert ten.recoveries[0].control.note == NO_CONTROL
    assert not any(stage.otherwise for stage in view.attacks)


def test_what_a_model_attacked_otherwise_was_shown_counts_for_itself_only(make: Any, tmp_path: Path) -> None:
    run = add_attacks(make(tmp_path), RELEARN[:1], ("unlearned",), ("for000000000",), {"steps": 5})
    add_attacks(run, RELEARN[:1], ("retain",), ("for000000001",), {"steps": 6})
    (stage,) = load_run(run).attacks
    assert stage.seen == {"for000000000"}


def test_membership_that_was_not_measured_under_an_attack_is_shown_as_such(
    make: Any, tmp_path: Path, schema: dict[str, Any]
) -> None:
    """An attack that changes the questions has no holdout examples that were changed alike: `value` is null
    with the reason in its note, or the metric is not there at all."""
    run = add_membership(add_attacks(make(tmp_path / "run"), STAGES[3:]))
    note = "not measured: the attack changes the questions of the forget set only"
    metric = json.loads((run / "eval" / "tofu" / "summary.json").read_text())["metrics"]["membership_loss"]
    missing = metric | {"value": None, "low": None, "high": None, "n": 0, "note": note, "extra": {}}
    path = run / "eval" / "tofu" / "attacks" / "rephrase" / "cloze" / "summary.json"
    change(path, metrics=json.loads(path.read_text())["metrics"] | {"membership_loss": missing})
    view = load_run(run)
    assert len(attacks_of(view)[0].stages) == 2
    assert not any(note in line for line in (*view.gaps, *view.cautions))
    found = json.loads(write_report(run).summary.read_text())
    jsonschema.validate(found, schema)
    stages = {stage["variant"]: stage["metrics"] for stage in found["attacks"]["by_name"]["rephrase"]}
    assert stages["cloze"]["membership_loss"] == {"unlearned": missing, "retain": None}
    assert "membership_loss" not in stages["completion"]
