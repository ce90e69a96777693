"""The attack section: shares against the records, the control, what was disclosed, and what is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_attacks import STAGES, add_attacks, save_stage
from fabricated_runs import SHAPES

from unlearnkit.errors import RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.attack_words import under
from unlearnkit.reporting.attacks import attacks_of
from unlearnkit.reporting.recoveries import RETURNS_LIMIT, returns, share
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
        excess = (after - trained) / (target - retain)
        assert found.back.value == pytest.approx(back)
        assert found.control.value == pytest.approx(control)
        assert found.excess.value == pytest.approx(excess)
        assert found.back.low < back < found.back.high  # type: ignore[operator]
        assert found.excess.low < excess < found.excess.high  # type: ignore[operator]
        assert found.control_attacked.value == pytest.approx(trained)
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


def attacked_is(run: Path, unlearned: str, retain: str, name: str = "quantize") -> Path:
    """An attack after which the unlearned and the retain model answer as the models of these folders do."""
    for place, role, like in (("tofu", "unlearned", unlearned), ("tofu@retain", "retain", retain)):
        loaded = EvalRun.load(run / "eval" / like)
        loaded.meta |= {"attack": {"name": name, "variant": "int8", "level": 8}, "role": role}
        save_stage(loaded, run / "eval" / place / "attacks" / name / "int8")
    return run


def test_an_attack_that_changes_nothing_brings_back_nothing(make: Any, tmp_path: Path) -> None:
    """Attacked = unattacked: share 0, control 0, in every resample. The excess is what the unlearned model
    had beyond the retain model before: (unlearned - retain) / (target - retain)."""
    run = attacked_is(make(tmp_path / "run"), "tofu", "tofu@retain")
    (attack,) = attacks_of(load_run(run))
    assert attack.headline.startswith("Nothing came back: 0 %")
    assert "quantisation: 1 stage): nothing came back, 0 %" in verdict_of(load_run(run)).text
    for one in attack.stages[0].recoveries:
        for cell in (one.back, one.control):
            assert (cell.value, cell.low, cell.high) == (0.0, 0.0, 0.0)
    before, target, retain = (
        mean_rouge(run / "eval" / name) for name in ("tofu", "tofu@target", "tofu@retain")
    )
    excess = attack.stages[0].recoveries[0].excess
    assert excess.value == pytest.approx((before - retain) / (target - retain))


def test_a_model_that_answers_as_the_control_does_is_not_beyond_it(make: Any, tmp_path: Path) -> None:
    """A = C: the excess is 0 in every resample, wherever both models came from."""
    run = attacked_is(make(tmp_path / "run"), "tofu@retain", "tofu@retain")
    for one in attacks_of(load_run(run))[0].stages[0].recoveries:
        assert (one.excess.value, one.excess.low, one.excess.high) == (0.0, 0.0, 0.0)
        assert not returns(one)


def test_all_of_it_back_is_an_excess_of_one(make: Any, tmp_path: Path) -> None:
    """A = T and C = R: (T - R) / (T - R) = 1 in every resample."""
    run = attacked_is(make(tmp_path / "run"), "tofu@target", "tofu@retain")
    for one in attacks_of(load_run(run))[0].stages[0].recoveries:
        assert (one.excess.value, one.excess.low, one.excess.high) == (1.0, 1.0, 1.0)
        assert returns(one)


def test_without_a_difference_between_target_and_retain_model_there_is_no_excess(
    make: Any, tmp_path: Path
) -> None:
    """T = R: no share of nothing; the reason stands there, and the verdict goes by the share."""
    run = make(tmp_path / "run")
    loaded = EvalRun.load(run / "eval" / "tofu@target")
    loaded.meta["role"] = "retain"
    loaded.save(run / "eval" / "tofu@retain")
    one = attacks_of(load_run(attacked_is(run, "tofu", "tofu@retain")))[0].stages[0].recoveries[0]
    assert one.excess.value is None
    assert "the target knew no more than a model that never saw them" in one.excess.note
    assert one.judged is one.back


def repeating(make: Any, folder: Path, share_of: dict[str, float], stage: tuple[float, float]) -> Path:
    """A run in which each model repeats that share of the forget answers word for word, and an attack."""
    shapes = {
        role: dataclasses.replace(SHAPES[role], repeats={**SHAPES[role].repeats, "forget": repeats})
        for role, repeats in share_of.items()
    }
    run = make(folder, **shapes)
    back, control = stage
    made = ({"name": "relearn", "variant": "10 steps", "level": 10, "back": back, "control": control},)
    return add_attacks(run, made, seen=())


def test_a_model_pushed_below_the_control_may_gain_more_and_not_return(make: Any, tmp_path: Path) -> None:
    """Of the answers the unlearned model repeats none and the retain model 0.7; under attack 0.3 and 0.5. One
    gains and the other loses, and still the attacked model knows no more than the attacked retain model."""
    run = repeating(make, tmp_path / "run", {"unlearned": 0.0, "retain": 0.7}, (0.3, 0.5))
    rouge = attacks_of(load_run(run))[0].stages[0].recoveries[0]
    assert rouge.back.value > RETURNS_LIMIT > 0 > rouge.control.value  # type: ignore[operator]
    assert rouge.back.value - rouge.control.value > RETURNS_LIMIT  # type: ignore[operator]
    assert rouge.excess.value < RETURNS_LIMIT  # type: ignore[operator]
    assert not returns(rouge)
    text = verdict_of(load_run(run)).text
    assert "but_returns" not in verdict_of(load_run(run)).code
    assert "under the same attack (" in text


def test_a_model_that_passes_the_control_returns(make: Any, tmp_path: Path) -> None:
    """The same start; under attack 0.9 and 0.35."""
    run = repeating(make, tmp_path / "run", {"unlearned": 0.0, "retain": 0.4}, (0.9, 0.35))
    rouge = attacks_of(load_run(run))[0].stages[0].recoveries[0]
    assert rouge.excess.low > RETURNS_LIMIT  # type: ignore[operator]
    assert returns(rouge)


def test_an_attack_that_gives_the_target_back_brings_back_all(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    loaded = EvalRun.load(run / "eval" / "tofu@target")
    loaded.meta |= {"attack": {"name": "mine", "variant": "", "level": None}, "role": "unlearned"}
    save_stage(loaded, run / "eval" / "tofu" / "attacks" / "mine" / "all")
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


def listed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """What changes the list of the stages beside a stage."""
    return lambda stage: edit(change, "stages.json")(stage.parent)


def edit(change: Callable[[dict[str, Any]], Any], file: str = "summary.json") -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / file
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
        (
            lambda stage: save_stage(EvalRun.load(stage), stage.with_name("again")),
            "the same stage (relearn, 5",
        ),
        (lambda stage: shutil.rmtree(stage), "5-steps/summary.json does not exist"),
        (lambda stage: (stage.parent / "stages.json").write_text('{"stages"'), "not readable as JSON"),
        (listed(lambda value: value.update(stages="5-steps")), "does not list the stages of the attack"),
        (listed(lambda value: value.pop("stages")), "does not list the stages of the attack"),
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
