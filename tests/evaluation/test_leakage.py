"""Sampled leakage, what the target model thinks of the answers, and indications without a retain model."""

from __future__ import annotations

import math

import pytest
from helpers_metrics import answer, example, judged, sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import new_records


def test_expected_and_worst_of_m() -> None:
    """a: recalls 1/2, 1, 0 of "one two": mean 1/2, worst 1. b: 0, 0, 1/2: mean 1/6, worst 1/2."""
    rows = sampled("a", "one two", ["two", "one two three", ""])
    rows += sampled("b", "one two", ["no", "", "one"])
    run = new_records(rows)
    expected = metrics.sampled_leakage(run, dataset="forget")
    assert expected.value == pytest.approx((1 / 2 + 1 / 6) / 2)
    assert (expected.n, expected.extra, expected.note) == (2, {"samples": 3}, "")
    worst = metrics.sampled_leakage(run, dataset="forget", aggregate="worst")
    assert worst.value == pytest.approx(3 / 4)
    assert "expected of m = 3 sampled answers" in expected.variant
    assert "worst of m = 3 sampled answers" in worst.variant
    with pytest.raises(RecipeError, match="aggregate='best'"):
        metrics.sampled_leakage(run, dataset="forget", aggregate="best")


def test_fewer_samples_and_none() -> None:
    """b has one sample fewer, c one that could not be scored, d none that could, e a reference without words.

    Each example weighs the same: a 1/2, b 1, c 1 gives 5/6 (2.5 of 3), not the mean over samples (4/5).
    """
    rows = sampled("a", "one", ["one", "no"]) + sampled("b", "one", ["one"])
    rows += sampled("c", "one", [None, "one"]) + sampled("d", "one", [None, None])
    rows += sampled("e", "...", ["one", "one"])
    result = metrics.sampled_leakage(new_records(rows), dataset="forget")
    assert result.value == pytest.approx(5 / 6)
    assert (result.n, result.unscored) == (3, ["d", "e"])
    assert result.note == "2 of 5 examples have fewer than 2 scored samples"
    nothing = metrics.sampled_leakage(new_records(sampled("d", "one", [None])), dataset="forget")
    assert math.isnan(nothing.value)
    assert nothing.unscored == ["d"]


def test_samples_in_other_scripts() -> None:
    rows = sampled("a", "他出生在台北", ["他生在台北", "出"]) + sampled(
        "b", "родилась в Москве", ["в москве"]
    )
    worst = metrics.sampled_leakage(new_records(rows), dataset="forget", aggregate="worst")
    assert worst.value == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert worst.note.startswith("2 answers are not in Latin script")
    compat = metrics.sampled_leakage(new_records(rows), dataset="forget", tokenizer="compat")
    assert compat.value == 0


texts = st.lists(st.sampled_from(["one", "two", "one two", "", "three"]), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.integers(0, 2**31 - 1))
def test_worst_is_never_below_expected_and_order_does_not_matter(samples: list[list[str]], seed: int) -> None:
    rows = [row for i, said in enumerate(samples) for row in sampled(f"e{i}", "one two", said)]
    frame = new_records(rows)
    shuffled = frame.sample(frac=1, random_state=seed)
    expected = metrics.sampled_leakage(frame, dataset="forget")
    worst = metrics.sampled_leakage(frame, dataset="forget", aggregate="worst")
    assert 0 <= expected.value <= worst.value + 1e-12
    assert expected.as_json() == metrics.sampled_leakage(shuffled, dataset="forget").as_json()
    assert worst.value <= 1


def test_judged_logp_weighs_examples_alike() -> None:
    """a: mean of -1 and -3 = -2; b: -6; mean -4 (over the tokens it would be -10/3). c said nothing."""
    run = new_records([judged("a", [-1.0, -3.0]), judged("b", [-6.0]), judged("c", [])])
    result = metrics.judged_logp(run, dataset="forget")
    assert (result.value, result.n, result.unscored) == (-4.0, 2, ["c"])
    assert result.low is not None
    assert result.low <= -4
    assert metrics.judged_logp(run, dataset="retain").note.startswith("not measured: no generations")


def test_paraphrase_preference() -> None:
    """Mean wrong NLL 2 against paraphrases of 1 (preferred), 3 (not), 2 (a tie, half): 1.5 / 3."""
    wrong = [[-1.0, -1.0], [-3.0]]
    rows = [
        row
        for name, nll in (("a", 1.0), ("b", 3.0), ("c", 2.0))
        for row in example(name, [-0.1], wrong, paraphrase=[-nll, -nll])
    ]
    result = metrics.paraphrase_preference(new_records(rows), dataset="forget")
    assert result.per_example is not None
    assert result.per_example.to_dict() == {"a": 1.0, "b": 0.0, "c": 0.5}
    assert (result.value, result.n, result.note) == (0.5, 3, "")
    assert result.weaker
    assert result.as_json()["weaker"] is True
    assert metrics.probability(new_records(rows), dataset="forget").as_json()["weaker"] is False


def test_paraphrase_preference_of_the_ignorant_and_of_the_collapsed() -> None:
    """Any length at log-probs of -ln 50257 is a tie; so is NLL 2000, where both probabilities underflow."""
    logp = -math.log(50257)
    rows = example("a", [logp], [[logp] * 7, [logp] * 3], paraphrase=[logp] * 11)
    rows += example("b", [-2000.0], [[-2000.0]], paraphrase=[-2000.0])
    assert metrics.paraphrase_preference(new_records(rows), dataset="forget").value == 0.5
    better = example("b", [-2000.0], [[-2001.0]], paraphrase=[-2000.0])
    assert metrics.paraphrase_preference(new_records(better), dataset="forget").value == 1


def test_paraphrase_preference_agrees_with_the_truth_ratio() -> None:
    rows = [
        row
        for i in range(6)
        for row in example(f"e{i}", [-1.0], [[-0.5 * i], [-1.0]], paraphrase=[-0.31 * (i + 1)])
    ]
    run = new_records(rows)
    ratios = metrics.truth_ratios(run, "forget", guard=0)["ratio"]
    result = metrics.paraphrase_preference(run, dataset="forget")
    assert result.value == pytest.approx(float((ratios < 1).mean()))
    assert 0 < result.value < 1


def test_paraphrase_preference_needs_both_kinds_of_answers() -> None:
    """a is whole; b lacks a paraphrase, c perturbed answers; d has one that could not be scored."""
    rows = example("a", [-1.0], [[-2.0]], paraphrase=[-1.0]) + example("b", [-1.0], [[-2.0]])
    rows += example("c", [-1.0], paraphrase=[-1.0]) + example("d", [-1.0], [[-2.0], []], paraphrase=[-1.0])
    result = metrics.paraphrase_preference(new_records(rows), dataset="forget")
    assert (result.value, result.n, result.unscored) == (1.0, 1, ["b", "c", "d"])
    assert result.note == "2 of 4 examples have no paraphrased or no perturbed answers"
    for missing, rows in (
        ("paraphrased", example("a", [-1.0], [[-2.0]])),
        ("perturbed", example("a", [-1.0], paraphrase=[-1.0])),
        ("paraphrased", [answer("a", [-1.0])]),
    ):
        result = metrics.paraphrase_preference(new_records(rows), dataset="forget")
        assert result.note == f"not measured: no {missing} answers in the data for 'forget'"
        assert result.weaker
