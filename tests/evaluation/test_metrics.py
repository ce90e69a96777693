"""Likelihood metrics, forget quality and model utility: values worked by hand, missing data, row order."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_metrics import answer, example, generation
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError, RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics import formulas
from unlearnkit.evaluation.records import EvalRun, new_records

LN = math.log


def logs(*probabilities: float) -> list[float]:
    return [LN(p) for p in probabilities]


def test_probability_is_the_geometric_mean_of_the_tokens() -> None:
    """Tokens 1/2 and 1/8: (1/16)^(1/2) = 1/4. Tokens 1: 1. Mean 5/8."""
    run = new_records(example("a", logs(1 / 2, 1 / 8)) + example("b", logs(1.0)))
    result = metrics.probability(run, dataset="forget")
    assert result.value == pytest.approx(5 / 8, abs=1e-15)
    assert result.per_example is not None
    assert result.per_example.to_dict() == pytest.approx({"a": 1 / 4, "b": 1.0})
    assert metrics.probability(EvalRun(run), dataset="forget").value == result.value


def test_normalised_probability() -> None:
    """Correct tokens 1/2, 1/8; wrong (1/4, 1/4) and (1/2).

    Length-normalised: 1/4 / (1/4 + 1/4 + 1/2) = 1/4. Whole answers: 1/16 / (1/16 + 1/16 + 1/2) = 1/10.
    """
    run = new_records(example("a", logs(1 / 2, 1 / 8), [logs(1 / 4, 1 / 4), logs(1 / 2)]))
    bare = metrics.normalised_probability(run, dataset="forget", guard=0)
    assert bare.value == pytest.approx(1 / 4, abs=1e-15)
    guarded = metrics.normalised_probability(run, dataset="forget")
    assert guarded.value == pytest.approx(0.25 / (1 + 1e-10), abs=1e-16)
    whole = metrics.normalised_probability(run, dataset="forget", length_normalised=False)
    assert whole.value == pytest.approx(1 / 10, abs=1e-15)
    assert "whole-answer" in whole.variant


def test_whole_answer_probabilities_do_not_underflow() -> None:
    """exp(-1000) is 0 in a float; the ratio of exp(-1000) to 3 of them is 1/3 all the same."""
    run = new_records(example("a", [-1.0] * 1000, [[-1.0] * 1000] * 2))
    result = metrics.normalised_probability(run, dataset="forget", length_normalised=False)
    assert result.value == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # c = 1/2; wrong 1/4 and 1/16: geometric 1/8, r = 1/4; arithmetic 5/32, r = 5/16.
        ({}, 1 / 4),
        ({"wrong": "arithmetic"}, 5 / 16),
        ({"aggregate": "true_better"}, 3 / 4),
        ({"aggregate": "prob_mean"}, 4 / 5),
        # against the answer (1/16) in place of the paraphrase: r = 2, min(2, 1/2) = 1/2 and max(0, -1) = 0
        ({"correct": "answer"}, 1 / 2),
        ({"correct": "answer", "aggregate": "true_better"}, 0),
    ],
)
def test_truth_ratio_variants(options: dict[str, Any], expected: float) -> None:
    run = new_records(example("a", logs(1 / 16), [logs(1 / 4), logs(1 / 16)], paraphrase=logs(1 / 2)))
    result = metrics.truth_ratio(run, dataset="forget", guard=0, **options)
    assert result.value == pytest.approx(expected, abs=1e-15)
    guarded = metrics.truth_ratio(run, dataset="forget", **options)
    assert guarded.value == pytest.approx(expected, abs=2e-8)


def test_truth_ratio_default_goes_by_the_set() -> None:
    sets = ("forget", "retain")
    rows = [row for name in sets for row in example("a", logs(1), [logs(1 / 4)], dataset=name)]
    run = new_records(rows)
    assert metrics.truth_ratio(run, dataset="forget", guard=0).value == pytest.approx(1 / 4)
    retain = metrics.truth_ratio(run, dataset="retain", guard=0)
    assert retain.value == pytest.approx(3 / 4)
    assert retain.variant.startswith("true_better")
    assert "over answer," in retain.variant


def test_unscored_examples_are_named_and_left_out() -> None:
    """A wrong answer of c has no tokens: averaging over the other one would be silent. b has none itself."""
    rows = example("a", logs(1), [logs(1 / 2), logs(1 / 2)]) + example("b", [], [logs(1 / 2), logs(1 / 2)])
    run = new_records(rows + example("c", logs(1), [logs(1 / 2), []]))
    probability = metrics.probability(run, dataset="forget")
    assert (probability.value, probability.n, probability.unscored) == (1.0, 2, ["b"])
    ratio = metrics.truth_ratio(run, dataset="forget", guard=0)
    assert ratio.value == pytest.approx(1 / 2)
    assert (ratio.n, ratio.unscored) == (1, ["b", "c"])
    normalised = metrics.normalised_probability(run, dataset="forget")
    assert normalised.unscored == ["b", "c"]


def test_what_cannot_be_measured_says_why() -> None:
    run = new_records(example("a", logs(1)))
    for kind, metric in metrics.KINDS.items():
        result = metric(run, dataset="elsewhere")
        assert math.isnan(result.value), kind
        assert result.note.startswith("not measured: "), kind
        assert result.as_json()["value"] is None
    assert "no perturbed answers" in metrics.truth_ratio(run, dataset="forget").note
    empty = metrics.probability(new_records(example("a", [])), dataset="forget")
    assert not empty.measured
    assert empty.unscored == ["a"]


def test_examples_without_wrong_answers_are_counted() -> None:
    run = new_records(example("a", logs(1), [logs(1 / 2)]) + example("b", logs(1)))
    for result in (
        metrics.truth_ratio(run, dataset="forget"),
        metrics.normalised_probability(run, dataset="forget"),
    ):
        assert (result.n, result.unscored) == (1, ["b"])
        assert result.note == "1 of 2 examples have no perturbed answers and are left out"


@pytest.mark.parametrize(
    "options", [{"wrong": "geometrical"}, {"aggregate": "mean"}, {"correct": "perturbed_answer"}]
)
def test_unknown_option_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="use one of"):
        metrics.truth_ratio(new_records(example("a", logs(1), [logs(1)])), dataset="forget", **options)


def ratios(values: list[float], prefix: str = "e") -> pd.DataFrame:
    """Records whose truth ratios are exp(value): c = exp(-2), w = exp(value - 2)."""
    rows = [example(f"{prefix}{i:04d}", [-2.0], [[v - 2.0]]) for i, v in enumerate(values)]
    return new_records([row for group in rows for row in group])


@pytest.mark.parametrize(("n", "p"), [(40, 1.860340e-23), (200, 1.942643e-119), (400, 1.063590e-239)])
def test_forget_quality_at_full_separation(n: int, p: float) -> None:
    """D = 1: of the C(2n, n) ways to interleave the samples two are as extreme, p = 2 / C(2n, n)."""
    low, high = ratios(list(np.linspace(-1, 0, n))), ratios(list(np.linspace(0.5, 1, n)))
    result = metrics.forget_quality(low, retain=high)
    assert result.value == pytest.approx(p, rel=1e-6)
    assert result.value == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9)
    assert result.extra["statistic"] == result.extra["statistic_low"] == result.extra["statistic_high"] == 1
    assert result.extra["log10_p_low"] == result.extra["log10_p"] == pytest.approx(math.log10(p), abs=1e-6)


def test_p_too_small_for_a_float_keeps_its_logarithm() -> None:
    test = formulas.ks_test(np.arange(700.0), np.arange(700.0) + 1e4)
    assert test.p_value == 0
    assert test.underflow
    exact = (LN(2) - LN(math.comb(1400, 700))) / LN(10)
    assert test.log10_p == pytest.approx(exact, rel=1e-9)
    nearly = formulas.ks_test(np.arange(900.0), np.arange(900.0) + 899)
    assert nearly.statistic < 1
    assert -800 < nearly.log10_p < -300


def test_forget_quality_of_equal_runs_is_one() -> None:
    run = ratios([0.1 * i for i in range(20)])
    result = metrics.forget_quality(run, retain=EvalRun(run))
    assert (result.value, result.extra["statistic"], result.n) == (1.0, 0.0, 20)
    assert result.high == 1.0
    json.dumps(result.as_json(), allow_nan=False)


def test_forget_quality_without_a_retain_model() -> None:
    result = metrics.forget_quality(ratios([0.0, 1.0]))
    assert math.isnan(result.value)
    assert result.note.startswith("n/a: no retain model was given")


def test_forget_quality_needs_the_same_examples() -> None:
    with pytest.raises(RecordsError, match=r"2 appear only in the unlearned model's.*e0002, e0003"):
        metrics.forget_quality(ratios([0.0] * 4), retain=ratios([0.0] * 2))
    # Same number, other ids.
    with pytest.raises(RecordsError, match=r"e0000\).*x0000\)"):
        metrics.forget_quality(ratios([0.0]), retain=ratios([0.0], prefix="x"))


def test_forget_quality_leaves_the_unscored_out_of_both() -> None:
    run = ratios([0.0, 0.5, 1.0])
    gap = run.copy()
    first = (gap["example_id"] == "e0000") & (gap["field"] == "answer")
    gap.loc[first, "num_tokens"] = 0
    result = metrics.forget_quality(gap, retain=run)
    assert (result.n, result.unscored) == (2, ["e0000"])
    assert result.value == 1.0


def nine(*, retain_text: str = "one two three four") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in ("retain", "real_authors", "world_facts"):
        rows += example("a", logs(1 / 2), [logs(1 / 4)], dataset=name)
        rows += example("b", logs(1 / 2), [logs(1 / 4)], dataset=name)
        rows += [generation(key, "one two three four", retain_text, dataset=name) for key in "ab"]
    return rows


def test_model_utility_by_hand() -> None:
    """Probability 1/2, normalised 2/3 twice, ROUGE 1 three times, truth ratio 1 - 1/2 = 1/2 three times.

    9 / (2 + 2 * 3/2 + 3 * 1 + 3 * 2) = 9 / 14.
    """
    result = metrics.model_utility(new_records(nine()), guard=0)
    assert result.value == pytest.approx(9 / 14, abs=1e-15)
    assert (result.low, result.high) == (pytest.approx(9 / 14), pytest.approx(9 / 14))
    assert result.n == 6
    two = metrics.model_utility(new_records(nine()), guard=0, parts=["retain_probability", "retain_rouge"])
    assert two.value == pytest.approx(2 / 3, abs=1e-15)


def test_model_utility_is_zero_when_one_part_is() -> None:
    assert metrics.model_utility(new_records(nine(retain_text="five"))).value == 0


def test_model_utility_names_missing_parts() -> None:
    rows = [row for row in nine() if row["dataset"] != "world_facts"]
    result = metrics.model_utility(new_records(rows))
    assert math.isnan(result.value)
    assert "world_facts_rouge" in result.note
    assert "retain" not in result.note
    assert result.as_json()["extra"]["parts"]["world_facts_rouge"] is None
    with pytest.raises(RecipeError, match="no part 'retain_rogue'"):
        metrics.model_utility(new_records(rows), parts=["retain_rogue"])


def test_options_come_from_the_signature() -> None:
    assert set(metrics.options_of("rouge")) == {"measure", "tokenizer", "stemmer", "seed"}
    assert metrics.options_of("truth_ratio")["guard"] == 1e-10
    assert all({"run", "dataset", "retain"}.isdisjoint(metrics.options_of(kind)) for kind in metrics.KINDS)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.floats(-30, 0), min_size=1, max_size=4), min_size=2, max_size=8), st.randoms())
def test_row_order_changes_nothing_and_ranges_hold(answers: list[list[float]], random: Any) -> None:
    rows: list[dict[str, Any]] = []
    for i, logps in enumerate(answers):
        wrong = [[value - 1 for value in logps], [value / 2 for value in logps]]
        for name in ("forget", "retain", "real_authors", "world_facts"):
            rows += example(f"e{i}", logps, wrong, dataset=name)
            rows.append(generation(f"e{i}", "a b c", "c b a"[: i + 1], dataset=name))
    frame = new_records(rows)
    shuffled = frame.sample(frac=1, random_state=random.randrange(2**31))
    for kind, metric in metrics.KINDS.items():
        first = metric(frame, dataset="forget", retain=shuffled)
        second = metric(shuffled, dataset="forget", retain=frame)
        assert first.as_json() == second.as_json(), kind
        assert math.isnan(first.value) or 0 <= first.value <= 1
        if first.low is not None and first.high is not None:
            assert first.low <= first.high


def test_bootstrap_interval_covers_the_mean() -> None:
    """Of a mean of 400 draws of a fair coin the interval is about 0.5 +- 1.96 * 0.5 / 20 = 0.049."""
    rows = [answer(f"e{i:03d}", [0.0] if i % 2 else [-800.0]) for i in range(400)]
    result = metrics.probability(new_records(rows), dataset="forget")
    assert result.value == pytest.approx(0.5)
    assert result.low == pytest.approx(0.451, abs=0.006)
    assert result.high == pytest.approx(0.549, abs=0.006)
    other = metrics.probability(new_records(rows), dataset="forget", seed=1)
    assert (other.low, other.high) != (result.low, result.high)


def test_harmonic_mean_edges() -> None:
    assert formulas.harmonic_mean([1, 0.5]) == pytest.approx(2 / 3)
    assert formulas.harmonic_mean([1, 0, 0]) == 0
    assert math.isnan(formulas.harmonic_mean([1, float("nan")]))
    assert math.isnan(formulas.harmonic_mean([]))
    with pytest.raises(ValueError, match="negative"):
        formulas.harmonic_mean([1, -1])
