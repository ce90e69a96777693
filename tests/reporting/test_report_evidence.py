"""What attacks, membership tests and the choice of a checkpoint add to the verdict and to what is not "
"shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fabricated_attacks import (
    STAGES,
    add_attacks,
    add_capability,
    add_membership,
    add_samples,
    add_trajectory,
)

from unlearnkit.reporting import limits as limit
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.attacks import Attack, Stage, attacks_of, in_words
from unlearnkit.reporting.evidence import MOSTLY_BACK, _returned
from unlearnkit.reporting.glossary import glossary
from unlearnkit.reporting.limits import limits
from unlearnkit.reporting.markdown import run_markdown
from unlearnkit.reporting.membership import aucs, is_visible, roc_curves
from unlearnkit.reporting.page import page, shown_metrics
from unlearnkit.reporting.recoveries import RETURNS_LIMIT, Recovery, returns, share
from unlearnkit.reporting.tables import Cell, cell
from unlearnkit.reporting.trajectory import trajectory_of
from unlearnkit.reporting.verdict import Verdict, verdict_of

NONE = Cell("–")


def stage(back: float, control: float, name: str = "relearn") -> tuple[dict[str, Any], ...]:
    return ({"name": name, "variant": "10 steps", "level": 10, "back": back, "control": control},)


def test_forgotten_but_it_returns(full_run: Path) -> None:
    found = verdict_of(load_run(full_run))
    assert (found.code, found.tone) == ("forgotten_but_returns", "mixed")
    assert found.headline.startswith("Forgotten by behaviour, but ")
    assert "returns after 10 relearning steps (a model that never saw them: " in found.headline
    assert "no longer shows that it learned the 40 forgotten examples" in found.sentences[0]
    assert "Beyond that control it is" in found.text


def test_most_of_it_back_is_bad(make: Any, tmp_path: Path) -> None:
    found = verdict_of(load_run(add_attacks(make(tmp_path), stage(0.95, 0.02))))
    assert (found.code, found.tone) == ("forgotten_but_returns", "bad")


def test_what_a_model_that_never_saw_them_gains_as_well_is_no_return(make: Any, tmp_path: Path) -> None:
    """0.5 of the answers come back, but as many in the control: the model has learned them anew."""
    found = verdict_of(load_run(add_attacks(make(tmp_path), stage(0.5, 0.6))))
    assert (found.code, found.tone) == ("forgotten", "good")
    assert "the strongest brought back" in found.text
    assert "than a model that never saw them does under the same attack (" in found.text


def cells(**means: float) -> dict[str, Cell]:
    return {name: Cell(f"{value:.3f}", value, n=60) for name, value in means.items()}


def recovered(
    back: float, control: float, excess: tuple[float, float, float], measure: str = "rouge"
) -> tuple[Attack, Stage, Recovery]:
    """A stage whose levels under attack are 0.240 and, of the retain model, 0.264."""
    value, low, high = excess
    of_excess = Cell(
        f"{100 * value:.0f} points", value, f"{100 * low:.0f} to {100 * high:.0f}", 60, "", low, high
    )
    means = cells(unlearned=0.119, attacked=0.240, control_attacked=0.264, target=0.998)
    shares = {"back": Cell(share(back), back), "control": Cell(share(control), control), "excess": of_excess}
    found = Recovery(measure, "ROUGE-L", **shares, **means)
    made = Stage("10 steps", 10.0, 60, 20, (), (found,))
    return Attack("relearn", "Relearning", "", "steps", (made,), "", "", "", ()), made, found


@pytest.mark.parametrize(
    ("back", "excess", "measure", "says"),
    [
        (
            0.13,
            (-0.03, -0.1, 0.05),
            "rouge",
            "Even so it repeats no more of them than a model that never saw",
        ),
        (
            0.13,
            (0.0, 0.0, 0.0),
            "probability",
            "Even so it finds them no likelier than a model that never saw",
        ),
        (-0.02, (-0.03, -0.1, 0.05), "rouge", ". It repeats no more of them than a model that never saw"),
        (0.13, (0.3, -0.1, 0.5), "rouge", "That is 30 points (-10 to 50) beyond a model that never saw"),
        (0.13, (0.3, 0.0, 0.5), "rouge", "(0.240 against 0.264), which is within chance."),
        (0.13, (0.05, 0.01, 0.09), "rouge", "which is below the 10 points that count."),
        (
            0.13,
            (0.3, 0.1, 0.5),
            "rouge",
            "Beyond a model that never saw them it is 30 points (10 to 50): 0.240",
        ),
    ],
)
def test_levels_under_attack_are_compared_and_not_gains(
    back: float, excess: tuple[float, float, float], measure: str, says: str
) -> None:
    """The control lost ROUGE-L: its share of -11 % says nothing to a reader and stands in no sentence."""
    text = in_words(*recovered(back, -0.11, excess, measure))
    assert says in text
    assert "0.240 against 0.264" in text
    assert "11 %" not in text
    assert "; a model that never saw them: 2 %." in in_words(*recovered(back, 0.02, excess, measure))


@pytest.mark.parametrize(
    ("back", "control", "says"),
    [
        (0.38, 0.12, "38 % returns after 10 relearning steps (a model that never saw them: 12 %)"),
        (
            0.38,
            -0.11,
            "38 % returns after 10 relearning steps (ROUGE-L 0.240, a model that never saw them 0.264)",
        ),
        (
            0.02,
            0.01,
            "after 10 relearning steps it repeats more of them than a model that never saw them does",
        ),
    ],
)
def test_the_headline_of_what_returns(back: float, control: float, says: str) -> None:
    """Where little was gained, or the control lost, the levels stand there."""
    attack, made, found = recovered(back, control, (0.3, 0.2, 0.4))
    verdict = Verdict("forgotten", "good", "Forgotten.", ())
    made_of = _returned(verdict, attack, made, found)
    assert made_of.headline.startswith(f"Forgotten by behaviour, but {says}")
    assert (made_of.code, made_of.tone) == ("forgotten_but_returns", "mixed")


def test_few_holdout_examples_are_said_once_for_all_membership_metrics(make: Any, tmp_path: Path) -> None:
    """40 examples cannot show rates of 1 %; that no pair overlaps stays with the target's own numbers."""
    run = load_run(add_membership(make(tmp_path)))
    few = [caution for caution in run.cautions if "TPR at" in caution]
    assert len(few) == 1
    assert few[0].startswith(
        "Membership: with only 40 holdout examples TPR at 1 % and 0.1 % FPR rests on fewer"
    )
    assert not any("do not overlap" in caution for caution in run.cautions)
    apart = [metric for metric in aucs(run.evaluations["target"]).values() if metric.value == 1]
    assert all("do not overlap" in cell(metric).hint for metric in apart)
    assert "fewer than one example" in cell(aucs(run.main)["membership_loss"]).hint
    assert "fewer than one example" in write_report(run.folder, tmp_path / "out").html.read_text()


def test_without_an_attack_or_membership_test_the_verdict_says_so(complete_run: Path) -> None:
    text = verdict_of(load_run(complete_run)).text
    assert "under attack (further training, rounded weights, rephrased questions, crafted prompts)" in text
    assert "(membership) was not tested" in text
    assert any("no attack was run" in gap for gap in load_run(complete_run).gaps)


def test_a_model_that_forgot_nothing_keeps_its_code(make: Any, shapes: Any, tmp_path: Path) -> None:
    weak = dataclasses.replace(shapes["unlearned"], nll={**shapes["unlearned"].nll, "forget": 0.3})
    found = verdict_of(load_run(add_attacks(make(tmp_path, unlearned=weak), stage(0.9, 0.0))))
    assert found.code == "not_forgotten"


def test_weaker_evidence_can_return_too(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path, roles=("target",))
    found = verdict_of(load_run(add_attacks(run, stage(0.45, 0), roles=("unlearned",))))
    assert found.code == "weaker_evidence_forgotten_but_returns"
    assert found.headline.startswith("Repeated less by behaviour, but ")
    assert "no model that never saw them was attacked for comparison" in found.text


@pytest.mark.parametrize(
    ("back", "excess", "low", "expected"),
    [
        (0.5, RETURNS_LIMIT, 0.01, True),
        (0.5, RETURNS_LIMIT, 0.0, False),
        (0.5, RETURNS_LIMIT - 0.001, 0.01, False),
        (RETURNS_LIMIT, None, 0.01, True),
        (RETURNS_LIMIT, None, None, True),
        (RETURNS_LIMIT, None, -0.01, False),
    ],
)
def test_what_counts_as_returning(
    back: float, excess: float | None, low: float | None, expected: bool
) -> None:
    """The excess decides where there is one, the share where there is none; an interval must be above 0."""
    judged = Cell("", excess if excess is not None else back, low=low)
    shares = (Cell("", back), Cell("", 0.0), judged) if excess is not None else (judged, NONE, NONE)
    assert returns(Recovery("rouge", "ROUGE-L", *shares, NONE, NONE, NONE, NONE)) is expected
    assert 0 < RETURNS_LIMIT < MOSTLY_BACK < 1


def test_membership_is_named_with_its_interval(make: Any, tmp_path: Path) -> None:
    run = load_run(add_membership(make(tmp_path)))
    verdict = verdict_of(run)
    assert verdict.tone == "good"
    assert not is_visible(run)
    assert "tells forget from holdout examples with AUC 0.5" in verdict.text
    assert "before unlearning 0.99" in verdict.text


def test_a_forget_set_that_gives_itself_away_is_not_good(make: Any, tmp_path: Path) -> None:
    """The holdout is far less familiar than the forget set: the AUC is near 1, and 0.5 for the retain "
    "model."""
    run = load_run(add_membership(make(tmp_path), {"unlearned": 6.0}))
    verdict = verdict_of(run)
    assert is_visible(run)
    assert (verdict.code, verdict.tone) == ("forgotten", "mixed")
    assert verdict.headline.endswith("; but it can still be told that it was trained on them.")
    assert "had a part in its training" in verdict.text


def test_membership_rows_show_the_rates_at_few_false_alarms(make: Any, tmp_path: Path) -> None:
    run = load_run(add_membership(make(tmp_path)))
    rows = {row.name: row for _, group in page(run)["metric_groups"] for row in group}
    for name, metric in aucs(run.main).items():
        for suffix, key in (("tpr_1", "tpr_at_1_fpr"), ("tpr_01", "tpr_at_01_fpr")):
            cell = rows[f"{name}:{suffix}"].cells["unlearned"]
            assert cell.value == metric.extra[key]
            assert (cell.low, cell.high) == (metric.extra[f"{key}_low"], metric.extra[f"{key}_high"])
            assert cell.interval
    curve = roc_curves(run.evaluations)[0]
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)


def test_weaker_evidence_is_marked_where_it_shows(make: Any, tmp_path: Path) -> None:
    run = load_run(add_membership(make(tmp_path, roles=("target",))))
    content = page(run)
    markdown = run_markdown(content)
    rows = {row.name: row for _, group in content["metric_groups"] for row in group}
    for name in ("membership_loss", "paraphrase_preference"):
        assert rows[name].weaker
        line = next(line for line in markdown.splitlines() if line.startswith(f"| {rows[name].title}"))
        assert line.startswith(f"| {rows[name].title} (weaker evidence) |")
    assert not rows["forget_rouge"].weaker
    assert next(card for card in content["cards"] if card.title == "Membership AUC").weaker
    assert "| Membership AUC (weaker evidence) |" in markdown
    assert "without a retain model to compare with this is weaker evidence" in content["verdict"].text
    assert "weaker evidence" in dict(content["glossary"])


def test_limits_depend_on_what_was_run(complete_run: Path, full_run: Path) -> None:
    nothing, everything = limits([load_run(complete_run)]), limits([load_run(full_run)])
    for line in (
        limit.NO_ATTACK,
        limit.NO_MEMBERSHIP,
        limit.ONE_QUESTION,
        limit.GREEDY,
        limit.NO_CAPABILITY,
    ):
        assert line in nothing
        assert line not in everything
    for line in (limit.SOME_MEMBERSHIP, limit.REPHRASED, limit.SAMPLED, limit.SELECTED):
        assert line in everything
        assert line not in nothing
    assert any("Not tried: crafted prompts, sampled answers." in line for line in everything)
    assert limit.NO_PROOF in nothing[-1] == everything[-1]
    both = limits([load_run(complete_run), load_run(full_run)])
    assert limit.NO_MEMBERSHIP in both
    assert any("not attacked alike" in line for line in both)


def test_a_selected_checkpoint_is_said_to_be_selected(make: Any, tmp_path: Path) -> None:
    run = add_trajectory(make(tmp_path))
    found = trajectory_of(load_run(run))
    assert found is not None
    assert [point["step"] for point in found["points"]] == list(range(0, 121, 20))
    assert (found["forget"], found["keep"], found["kept_step"]) == ("forget_rouge", "retain_rouge", 40)
    says = "The checkpoint of step 40 of 120 was selected on these metrics (Forget ROUGE-L, Retain ROUGE-L)"
    assert says in verdict_of(load_run(run)).text
    written = write_report(run)
    assert written.markdown.read_text().count(says) == 3  # verdict, what was done, during training
    result = json.loads(written.summary.read_text())
    assert result["selection"]["step"] == 40
    assert result["trajectory"] == found["points"]


def test_half_a_line_of_the_trajectory_is_left_out_and_said(make: Any, tmp_path: Path) -> None:
    run = add_trajectory(make(tmp_path))
    path = run / "trajectory.jsonl"
    path.write_text(path.read_text()[:-30])
    view = load_run(run)
    assert [point["step"] for point in view.trajectory] == list(range(0, 101, 20))
    assert any("1 line(s) of trajectory.jsonl" in caution for caution in view.cautions)


def test_a_further_suite_has_its_own_tables(make: Any, tmp_path: Path) -> None:
    run = load_run(add_capability(make(tmp_path)))
    (other,) = page(run)["others"]
    assert other["title"] == "Suite capability version 1"
    ((group, (row,)),) = other["metric_groups"]
    assert (group, row.title) == ("Keeping: general capability", "MMLU (tiny)")
    assert [row.cells[role].value for role in ("target", "unlearned")] == [12 / 16, 11 / 16]
    assert limit.NO_CAPABILITY not in limits([run])


def test_samples_lift_the_limit_of_greedy_text(make: Any, tmp_path: Path) -> None:
    shown = limits([load_run(add_samples(make(tmp_path)))])
    assert limit.SAMPLED in shown
    assert limit.GREEDY not in shown


def test_every_kind_of_metric_has_its_term(full_run: Path) -> None:
    run = load_run(full_run)
    terms = dict(glossary(shown_metrics(run), {stage.name for stage in run.attacks}))
    for term in (
        "exact memorisation", "sampled leakage", "AUC", "TPR at FPR", "loss attack", "Min-K",
        "reference attack", "weaker evidence", "relearning", "quantisation", "rephrasing", "recovered share",
        "control", "capability", "forget quality",
    ):  # fmt: skip
        assert term in terms
    assert "Min-K++" not in terms
    assert "VerbMem" not in terms


def test_several_runs_side_by_side(full_run: Path, make: Any, tmp_path: Path) -> None:
    other = add_membership(add_attacks(make(tmp_path / "other", name="other"), STAGES[:1]))
    written = write_report([full_run, other], tmp_path / "out")
    markdown = written.markdown.read_text()
    run = load_run(other)
    for title in ("Key metrics side by side", "How much comes back under attack", "Membership attacks (AUC)"):
        assert f"## {title}" in markdown
    line = next(line for line in markdown.splitlines() if "After 10 relearning steps, ROUGE-L |" in line)
    assert line.rstrip(" |").endswith("–")  # the other run was not attacked for 10 steps
    line = next(line for line in markdown.splitlines() if line.startswith("| Membership: loss attack"))
    assert f"{aucs(run.main)['membership_loss'].value:.3f}" in line
    assert "not attacked with the same attacks" in markdown


def test_without_a_retain_model_nothing_is_concluded_from_membership(make: Any, tmp_path: Path) -> None:
    """The holdout may differ from the forget set in other ways than by training."""
    run = load_run(add_membership(make(tmp_path, roles=("target",)), {"unlearned": 6.0}))
    found = verdict_of(run).text
    assert not is_visible(run)
    assert "had a part in its training" not in found
    assert "no conclusion" in found


def test_sampling_says_nothing_about_probabilities(make: Any, tmp_path: Path) -> None:
    sampling = {"name": "sampling", "variant": "worst of 8", "level": 8, "back": 0.3, "control": 0.0}
    (attack,) = attacks_of(load_run(add_attacks(make(tmp_path), (sampling,))))
    rouge, probability = attack.stages[0].recoveries
    assert probability.back.value is None
    assert "does not change probabilities" in probability.back.note
    assert attack.stages[0].strongest is rouge


def test_what_came_back_goes_before_what_did_not(make: Any, tmp_path: Path) -> None:
    """One stage loses 10 % where the control loses more; the other brings 5 % back: that one is named."""
    stages = (
        {"name": "prompt", "variant": "authority", "level": None, "back": -0.1, "control": -0.6},
        {"name": "prompt", "variant": "prefix", "level": None, "back": 0.1, "control": 0.08},
    )
    (attack,) = attacks_of(load_run(add_attacks(make(tmp_path), stages)))
    assert attack.worst == "prefix"
