"""The attack section: shares against the records, the control, what was disclosed, and what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_attacks import STAGES, add_attacks

from unlearnkit.errors import RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.attack_words import under
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.recoveries import share
from unlearnkit.reporting.verdict import verdict_of

SEEN = {"for000000000", "for000000001"}
RELEARN = tuple(stage for stage in STAGES if stage["name"] == "relearn")


def mean_rouge(folder: Path, without: set[str] = frozenset()) -> float:  # type: ignore[assignment]
    scores = metrics.rouge(EvalRun.load(folder), dataset="forget").per_example
    assert scores is not None
    return float(scores[~scores.index.isin(without)].mean())


def test_shares_are_those_of_the_records(full_run: Path) -> None:
    """(attacked - unlearned) / (target - unlearned), worked from the ROUGE-L of the four evaluations."""
    attacks = {attack.name: attack for attack in attacks_of(load_run(full_run))}
    folder = full_run / "eval"
    for name, stage, seen in (("relearn", "10-steps", SEEN), ("quantize", "nf4", set())):
        before, target, retain = (
            mean_rouge(folder / place, seen) for place in ("tofu", "tofu@target", "tofu@retain")
        )
        after = mean_rouge(folder / "tofu" / "attacks" / name / stage, seen)
        trained = mean_rouge(folder / "tofu@retain" / "attacks" / name / stage, seen)
        found = attacks[name].stages[-1].recoveries[0]
        back, control = (after - before) / (target - before), (trained - retain) / (target - retain)
        assert found.back.value == pytest.approx(back)
        assert found.control.value == pytest.approx(control)
        assert found.excess.value == pytest.approx(back - control)
        assert found.back.low < back < found.back.high  # type: ignore[operator]
        assert found.excess.low < back - control < found.excess.high  # type: ignore[operator]
        assert found.unlearned.value == pytest.approx(before)
        assert found.attacked.value == pytest.approx(after)
        assert found.target.value == pytest.approx(target)
        assert found.back.n == 40 - len(seen)


def test_stages_come_in_the_order_of_their_levels_and_attacks_in_that_of_the_report(full_run: Path) -> None:
    attacks = attacks_of(load_run(full_run))
    assert [attack.name for attack in attacks] == ["relearn", "quantize", "rephrase"]
    assert [stage.level for stage in attacks[0].stages] == [5, 10]
    assert [stage.left_out for stage in attacks[0].stages] == [2, 2]
    assert attacks[0].worst == "10 steps"
    assert attacks[0].spread == ""
    shown = [share(stage.recoveries[0].back.value or 0) for stage in attacks[2].stages]
    assert attacks[2].spread == f"Over the 2 forms, between {shown[1]} and {shown[0]} comes back by ROUGE-L."


def test_an_attack_that_changes_nothing_brings_back_nothing(make: Any, tmp_path: Path) -> None:
    """The attacked records are the unlearned ones: share 0, control 0, excess 0, in every resample."""
    run = make(tmp_path / "run")
    for place, role in (("tofu", "unlearned"), ("tofu@retain", "retain")):
        loaded = EvalRun.load(run / "eval" / place)
        loaded.meta["attack"] = {"name": "quantize", "variant": "int8", "level": 8}
        loaded.save(run / "eval" / place / "attacks" / "quantize" / "int8")
        assert loaded.meta["role"] == role
    (attack,) = attacks_of(load_run(run))
    assert attack.headline.startswith("Nothing came back: 0 %")
    assert "quantisation: 1 stage): nothing came back, 0 %" in verdict_of(load_run(run)).text
    for one in attack.stages[0].recoveries:
        for cell in (one.back, one.control, one.excess):
            assert (cell.value, cell.low, cell.high) == (0.0, 0.0, 0.0)


def test_a_control_that_changes_nothing_leaves_the_share_as_it_is(make: Any, tmp_path: Path) -> None:
    """Attacked retain = retain: the control is 0 in every resample, so that excess = share, interval and "
    "all."""
    run = add_attacks(make(tmp_path / "run"), RELEARN[:1], roles=("unlearned",), seen=())
    loaded = EvalRun.load(run / "eval" / "tofu@retain")
    attack = EvalRun.load(run / "eval" / "tofu" / "attacks" / "relearn" / "5-steps").meta["attack"]
    loaded.meta["attack"] = attack
    loaded.save(run / "eval" / "tofu@retain" / "attacks" / "relearn" / "5-steps")
    for one in attacks_of(load_run(run))[0].stages[0].recoveries:
        assert one.control.value == 0.0
        assert one.back.low is not None
        assert one.excess.value == one.back.value
        assert (one.excess.low, one.excess.high) == pytest.approx((one.back.low, one.back.high))


def test_an_attack_that_gives_the_target_back_brings_back_all(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    loaded = EvalRun.load(run / "eval" / "tofu@target")
    loaded.meta |= {"attack": {"name": "mine", "variant": "", "level": None}, "role": "unlearned"}
    loaded.save(run / "eval" / "tofu" / "attacks" / "mine" / "all")
    (attack,) = attacks_of(load_run(run))
    best = attack.stages[0].recoveries[0]
    assert (best.back.value, best.back.low, best.back.high) == (1.0, 1.0, 1.0)
    assert best.control.value is None
    assert best.excess.value is None
    assert best.judged is best.back
    assert "not run on a model that never saw the examples" in attack.caveats[0]
    assert "under the attack mine" in attack.headline


def test_without_a_target_the_plain_numbers_and_the_reason_stand_there(make: Any, tmp_path: Path) -> None:
    run = add_attacks(make(tmp_path / "run", roles=("retain",)), RELEARN)
    attack = attacks_of(load_run(run))[0]
    assert all(one.back.value is None for stage in attack.stages for one in stage.recoveries)
    assert "before the attack" in attack.headline
    assert "the model before unlearning was not evaluated" in attack.headline
    written = write_report(run)
    assert json.loads(written.summary.read_text())["attacks"]["strongest"] is None
    assert "Attacks were run (relearning: 2 stages)" in written.markdown.read_text()
    assert any("as a share" in gap for gap in load_run(run).gaps)


def test_an_evaluation_folder_with_attacks_works_alone(full_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full_run / "eval" / "tofu", tmp_path / "tofu"))
    view = load_run(folder)
    assert {stage.name for stage in view.attacks} == {"relearn", "quantize", "rephrase"}
    assert attacks_of(view)[0].stages[0].recoveries[0].attacked.value is not None
    assert "report" not in {stage.name for stage in load_run(write_report(folder).html.parent.parent).attacks}


def test_the_models_of_one_stage_are_found_together(full_run: Path) -> None:
    run = load_run(full_run)
    assert len(run.attacks) == len(STAGES)
    assert all(set(stage.evaluations) == {"unlearned", "retain"} for stage in run.attacks)
    assert run.attacks[0].seen | run.attacks[1].seen <= SEEN


def test_what_either_model_was_shown_is_left_out_of_both(make: Any, tmp_path: Path) -> None:
    run = add_attacks(make(tmp_path), RELEARN[:1], roles=("unlearned",), seen=("for000000000",))
    add_attacks(run, RELEARN[:1], roles=("retain",), seen=("for000000001",))
    (stage,) = load_run(run).attacks
    assert stage.seen == SEEN
    recovery = attacks_of(load_run(run))[0].stages[0].recoveries[0]
    assert (recovery.back.n, recovery.control.n) == (38, 38)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(stage: Path) -> None:
        path = stage / "summary.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda stage: (stage / "records.parquet").unlink(), "records.parquet does not exist"),
        (lambda stage: (stage / "summary.json").unlink(), "does not exist"),
        (edit(lambda value: value.pop("attack")), "does not say which attack it is"),
        (edit(lambda value: value["attack"].update(level="many")), "the attack cannot be read"),
        (edit(lambda value: value["attack"].update(options={"seed": 7})), "has other options here"),
        (lambda stage: shutil.copytree(stage, stage.with_name("again")), "the same stage (relearn, 5 steps)"),
    ],
)
def test_a_broken_attack_is_refused(
    make: Any, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    run = add_attacks(make(tmp_path / "run"), RELEARN[:1])
    damage(run / "eval" / "tofu@retain" / "attacks" / "relearn" / "5-steps")
    with pytest.raises(RecordsError) as error:
        write_report(run)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (("relearn", "10 steps", 10.0), "after 10 relearning steps"),
        (("relearn", "1 step", 1.0), "after 1 relearning step"),
        (("relearn", "10 steps on retain", 10.0), "after relearning (10 steps on retain)"),
        (("quantize", "nf4", 4.0), "with the weights rounded to fewer bits (nf4)"),
        (("mine.own", "", None), "under the attack mine.own"),
    ],
)
def test_a_stage_in_words(stage: tuple[str, str, float | None], words: str) -> None:
    assert under(*stage) == words
