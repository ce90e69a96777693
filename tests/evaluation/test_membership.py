"""Membership attacks, ROC arithmetic, PrivLeak: values by hand, an independent formula, invariance."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_metrics import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from unlearnkit.errors import RecipeError, RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics import roc
from unlearnkit.evaluation.metrics.membership import ATTACKS, lowest_mean, member_scores, membership
from unlearnkit.evaluation.metrics.privleak import privleak, relative_leak
from unlearnkit.evaluation.records import EvalRun, new_records

# Few distinct values, so that ties are common; infinities are scores too.
SCORE = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([math.inf, -math.inf]))
SCORES = st.lists(SCORE, min_size=1, max_size=12)


def losses(values: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Records of one-token answers without EOS: the losses of each data set, ids 000, 001, ..."""
    rows = []
    for dataset, own in values.items():
        rows += [
            {**answer(f"{i:03d}", [-loss], dataset=dataset), "ends_with_eos": False}
            for i, loss in enumerate(own)
        ]
    return new_records(rows)


def gradient(example_id: str, value: float, *, dataset: str, field: str = "global_norm") -> dict[str, Any]:
    return {
        "probe": "gradient_norm",
        "dataset": dataset,
        "example_id": example_id,
        "field": field,
        "value": value,
    }


# ROC arithmetic


@pytest.mark.parametrize(
    ("members", "others", "expected"),
    [
        ([0, 1], [2, 3], 1),  # every non-member above every member
        ([2, 3], [0, 1], 0),
        ([0], [1], 1),
        ([1], [0], 0),
        ([1], [1], 1 / 2),
        ([5, 5, 5], [5, 5], 1 / 2),
        # pairs (other > member): (1,1) tie, (1,2) lost, (3,1) won, (3,2) won: (1/2 + 0 + 1 + 1) / 4
        ([1, 2], [1, 3], 5 / 8),
        # 6 pairs: 1 beats 0 and ties twice, 0 ties once and loses twice: (1 + 3/2) / 6
        ([0, 1, 1], [1, 0], 5 / 12),
        ([-math.inf, 0], [math.inf], 1),
        ([math.inf], [math.inf, 0], 1 / 4),
    ],
)
def test_auc_by_hand(members: list[float], others: list[float], expected: float) -> None:
    """P(other > member) + P(tie) / 2, pair by pair."""
    assert roc.auc(members, others) == pytest.approx(expected, abs=1e-15)


@given(SCORES, SCORES)
def test_auc_is_the_mann_whitney_statistic(members: list[float], others: list[float]) -> None:
    u = (
        mannwhitneyu(others, members, method="asymptotic").statistic
        if len(set(members + others)) > 1
        else None
    )
    expected = 1 / 2 if u is None else u / (len(members) * len(others))
    assert roc.auc(members, others) == pytest.approx(expected, abs=1e-12)
    assert roc.auc(others, members) == pytest.approx(1 - expected, abs=1e-12)


@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5, 1.0]))
def test_tpr_is_the_best_of_all_thresholds(members: list[float], others: list[float], fpr: float) -> None:
    """By trying every threshold: "member" at or below it, or no one."""
    allowed = math.floor(fpr * len(others) + 1e-9)
    best = 0.0
    for threshold in {*members, *others}:
        if sum(score <= threshold for score in others) <= allowed:
            best = max(best, sum(score <= threshold for score in members) / len(members))
    assert roc.tpr_at(members, others, fpr) == best


def test_tpr_by_hand() -> None:
    """Others 0..99, members 0.5 and 1.5: one false positive (0) is 1 % and buys the first member alone."""
    others = list(range(100))
    assert roc.tpr_at([0.5, 1.5], others, 0.01) == 1 / 2
    assert roc.tpr_at([0.5, 1.5], others, 0.001) == 0
    assert roc.tpr_at([-1, 1.5], others, 0.001) == 1 / 2
    assert roc.tpr_at([0.5, 1.5], others, 0.02) == 1
    # A member that ties with the first non-member costs that false positive: no half counts.
    assert roc.tpr_at([0, 50], others, 0.001) == 0
    assert roc.tpr_at([0, 50], others, 0.01) == 1 / 2
    # 29 of 100 are exactly 29 %, although 0.29 * 100 is 28.999999999999996.
    assert roc.tpr_at([28.5], others, 0.29) == 1


def test_points_by_hand() -> None:
    """Sorted: member 0, other 1, tie of both at 2. Corners (0,0), (0,1/2), (1/2,1/2), (1,1)."""
    fpr, tpr = roc.points([0, 2], [1, 2])
    assert fpr.tolist() == [0, 0, 1 / 2, 1]
    assert tpr.tolist() == [0, 1 / 2, 1 / 2, 1]
    assert [side.tolist() for side in roc.points([7], [7])] == [[0, 1], [0, 1]]
    assert [side.tolist() for side in roc.points(range(50), range(50, 90))] == [[0, 0, 1], [0, 1, 1]]


@given(SCORES, SCORES)
def test_points_lose_nothing(members: list[float], others: list[float]) -> None:
    fpr, tpr = roc.points(members, others)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc.auc(members, others), abs=1e-12)


def test_long_curves_are_thinned_evenly() -> None:
    """199 pieces of a curve of length 2 each hold an area of at most (1/199)^2 / 2 beside their chord."""
    draw = np.random.default_rng(0)
    members, others = draw.normal(0, 1, 3000), draw.normal(1, 1, 3000)
    all_fpr, _ = roc.points(members, others, most=10**6)
    fpr, tpr = roc.points(members, others)
    assert len(all_fpr) > 1000
    assert 150 < len(fpr) <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc.auc(members, others), abs=199 * (1.1 / 199) ** 2 / 2)


@pytest.mark.parametrize(
    ("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])]
)
def test_empty_sides_and_nan_are_refused(members: list[float], others: list[float]) -> None:
    for function in (roc.auc, roc.points, roc.intervals):
        with pytest.raises(ValueError, match="at least one member"):
            function(members, others)


def test_resamples_are_the_auc_of_the_drawn_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts (2, 0, 1) stand for the first example twice and the last once; also across blocks."""
    monkeypatch.setattr(roc, "_MOST_NUMBERS", 20)
    members, others = np.array([0.0, 1.0, 2.0]), np.array([2.0, 0.5, 3.0, 1.0])
    counts_m = np.array([[2, 0, 1], [1, 1, 1], [0, 0, 3], [0, 3, 0]], dtype=float)
    counts_o = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 2, 0, 2], [1, 0, 3, 0]], dtype=float)
    drawn = roc.resampled(members, others, counts_m, counts_o, (0.25,))
    for r in range(4):
        one = np.repeat(members, counts_m[r].astype(int))
        two = np.repeat(others, counts_o[r].astype(int))
        assert drawn.aucs[r] == pytest.approx(roc.auc(one, two), abs=1e-15)
        assert drawn.tprs[0][r] == roc.tpr_at(one, two, 0.25)


def test_the_interval_has_the_width_of_the_law() -> None:
    """With one fixed non-member at 0 the AUC is the share of members below it: 30 of 100, so that resampling
    members gives a binomial share with standard deviation sqrt(0.3 0.7 / 100) = 0.0458."""
    [(low, high)] = roc.intervals([-1.0] * 30 + [1.0] * 70, [0.0])
    assert low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.015)
    [(low, high)] = roc.intervals([0.0], [-1.0] * 30 + [1.0] * 70)
    assert (low + high) / 2 == pytest.approx(0.7, abs=0.015)
    assert high - low == pytest.approx(2 * 1.96 * 0.0458, abs=0.03)


def test_both_sides_are_resampled_independently() -> None:
    """Equal sides of n = 50 distinct scores: variance (2n + 1) / (12 n^2), sd 0.058; alike, it were 0."""
    [(low, high)] = roc.intervals(range(50), range(50))
    assert high - low == pytest.approx(2 * 1.96 * 0.058, abs=0.03)
    run = losses({"forget": list(range(50)), "holdout": list(range(50))})
    leak = privleak(run, dataset="forget")
    assert leak.value == 0
    assert leak.low is not None
    assert leak.high is not None
    assert leak.high - leak.low == pytest.approx(200 * 2 * 1.96 * 0.058, abs=6)


@settings(max_examples=25)
@given(SCORES, SCORES, st.randoms(use_true_random=False))
def test_intervals_hold_the_value_and_know_neither_order_nor_scale(members, others, random) -> None:
    fprs = (0.01, 0.3)
    ends = roc.intervals(members, others, fprs, resamples=50)
    values = [roc.auc(members, others), *(roc.tpr_at(members, others, fpr) for fpr in fprs)]
    for value, (low, high) in zip(values, ends, strict=True):
        assert 0 <= low <= value <= high <= 1
    ranks = {score: float(rank) ** 3 for rank, score in enumerate(sorted({*members, *others}))}
    shuffled = [random.sample([ranks[score] for score in side], len(side)) for side in (members, others)]
    assert roc.intervals(*shuffled, fprs, resamples=50) == ends


# Scores


def scored_row(**changes: Any) -> dict[str, Any]:
    """Five tokens, the last the EOS."""
    row = answer("a", [-0.5, -3.0, -1.0, -2.0, -10.0])
    row |= {"means": [-1.0, -1.0, -2.0, -2.0, 0.0], "variances": [0.25, 4.0, 0.0, 1.0, 1.0]}
    return {**row, "reference_text": "aaaaaaaaaa", **changes}


@pytest.mark.parametrize(
    ("attack", "options", "expected"),
    [
        ("loss", {}, 16.5 / 5),
        # 2 bytes of header, 5 of deflate ("a", "a", a copy of 8: 3 + 8 + 8 + 12 + 7 bits), 4 of checksum
        ("zlib", {}, 16.5 / 5 / 11),
        # 4 tokens without the EOS: the lowest floor(0.4 * 4) = 1
        ("min_k", {}, 3.0),
        ("min_k", {"k": 0.5}, 2.5),  # the lowest 2
        ("min_k", {"k": 0.2}, 3.0),  # floor(0.8) = 0: at least 1
        ("min_k", {"k": 1.0}, 6.5 / 4),
        # (lp - mu) / sd: 0.5/0.5 = 1, -2/2 = -1, 1/1e-3 = 1000, 0/1 = 0
        ("min_k_pp", {}, 1.0),
        ("min_k_pp", {"k": 0.5}, 0.5),
        ("min_k_pp", {"k": 1.0}, -250.0),
    ],
)
def test_scores_by_hand(attack: Any, options: dict[str, Any], expected: float) -> None:
    run = new_records([scored_row()])
    scores = member_scores(run, "forget", attack, **options)
    assert scores.to_dict() == pytest.approx({"a": expected}, abs=1e-12)


def test_without_eos_all_tokens_count_but_for_the_peer() -> None:
    run = new_records([scored_row(ends_with_eos=False)])
    assert member_scores(run, "forget", "min_k")["a"] == 6.5  # the lowest 2 of 5: 10 and 3
    assert member_scores(run, "forget", "min_k", compat=True)["a"] == 3.0
    assert member_scores(new_records([scored_row()]), "forget", "min_k", compat=True)["a"] == 3.0
    assert member_scores(run, "forget", "loss", compat=True)["a"] == pytest.approx(16.5 / 5)


def test_zlib_counts_bytes_not_letters() -> None:
    text = "Ünïcödé"
    run = new_records([scored_row(reference_text=text), scored_row(example_id="b", reference_text="")])
    scores = member_scores(run, "forget", "zlib")
    assert len(text.encode()) == 11
    assert scores["a"] == pytest.approx(3.3 / len(zlib.compress(text.encode("utf-8"))))
    assert scores["b"] == pytest.approx(3.3 / 8)  # an empty stream: header 2, block 2, checksum 4


def test_reference_is_the_difference_of_losses() -> None:
    run = losses({"forget": [1.0, 2.0], "holdout": [3.0]})
    other = losses({"forget": [0.5, 4.0], "holdout": [3.0]})
    assert member_scores(run, "forget", "reference", retain=other).to_dict() == {"000": 0.5, "001": -2.0}
    assert member_scores(run, "forget", "reference").empty
    with pytest.raises(RecordsError, match="1 appear only in the attacked model's"):
        member_scores(run, "forget", "reference", retain=losses({"forget": [1.0]}))


def test_gradient_norms_are_read_from_their_records() -> None:
    rows = []
    for dataset, shift in (("forget", 0.0), ("holdout", 1.0)):
        for i in range(3):
            rows.append(gradient(f"{i}", i + shift, dataset=dataset))
            rows.append(gradient(f"{i}", -i - shift, dataset=dataset, field="mean_norm"))
    run = new_records(rows)
    # 0 1 2 against 1 2 3: 6 won, 2 ties
    result = membership(run, dataset="forget", attack="gradient_norm")
    assert result.value == pytest.approx(7 / 9, abs=1e-15)
    assert "L2 norm" in result.variant
    peer = membership(run, dataset="forget", attack="gradient_norm", compat=True)
    assert peer.value == pytest.approx(2 / 9, abs=1e-15)
    assert "mean of the parameter tensors' norms" in peer.variant


@pytest.mark.parametrize(
    ("values", "k", "expected"),
    [
        ([], 0.4, math.nan),
        ([2.0], 0.4, 2.0),
        ([1.0, math.nan, 2.0, 3.0, 4.0], 0.4, 1.5),
        ([-math.inf, 0.0], 0.5, -math.inf),
    ],
)
def test_lowest_mean_edges(values: list[float], k: float, expected: float) -> None:
    assert lowest_mean(values, k) == pytest.approx(expected, nan_ok=True)


def test_what_cannot_be_scored_is_named_and_left_out() -> None:
    """b has no token, c only an EOS (a loss, but nothing for Min-K%), d a NaN."""
    rows = [
        answer("a", [-1.0, -1.0]),
        answer("b", []),
        answer("c", [-1.0]),
        answer("d", [math.nan, -1.0]),
        answer("a", [-2.0, -1.0], dataset="holdout"),
        answer("e", [], dataset="holdout"),
    ]
    run = new_records(rows)
    result = membership(run, dataset="forget", attack="min_k")
    assert result.unscored == ["forget/b", "forget/c", "forget/d", "holdout/e"]
    assert (result.value, result.n) == (1.0, 2)
    assert (result.extra["n_members"], result.extra["n_holdout"]) == (1, 1)
    assert membership(run, dataset="forget", attack="loss").unscored == ["forget/b", "forget/d", "holdout/e"]
    assert result.per_example is not None
    assert result.per_example.index.tolist() == ["a", "b", "c", "d"]
    assert result.per_example["a"] == 1.0
    assert result.per_example.isna().tolist() == [False, True, True, True]


# The metric


def test_membership_in_full() -> None:
    """Members 1, 2; non-members 1, 3: AUC 5/8 (see above). No member below every non-member."""
    run = losses({"forget": [1.0, 2.0], "holdout": [1.0, 3.0]})
    result = membership(EvalRun(run), dataset="forget", attack="loss")
    assert result.value == pytest.approx(5 / 8, abs=1e-15)
    assert result.low is not None
    assert result.high is not None
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.extra["tpr_at_1_fpr"] == result.extra["tpr_at_01_fpr"] == 0
    for name in ("tpr_at_1_fpr", "tpr_at_01_fpr"):
        assert 0 == result.extra[f"{name}_low"] <= result.extra[f"{name}_high"] <= 1
    assert result.extra["roc"] == {"fpr": [0, 0.5, 0.5, 1], "tpr": [0, 0.5, 1, 1]}
    assert result.note.startswith("TPR at 1 % and 0.1 % FPR rests on fewer than one example")
    assert "2 non-members" in result.note
    assert result.weaker
    assert "attack 'loss' (mean NLL, EOS included)" in result.variant
    json.dumps(result.as_json(), allow_nan=False)


def test_the_note_goes_by_the_number_of_non_members() -> None:
    def note(n: int) -> str:
        run = losses({"forget": [0.0, 2.0], "holdout": [1.0 + i for i in range(n)]})
        return membership(run, dataset="forget").note

    assert "TPR at 1 % and 0.1 %" in note(99)
    assert note(100).startswith("TPR at 0.1 % FPR")
    assert note(999).startswith("TPR at 0.1 % FPR")
    assert note(1000) == ""
    assert "only one non-member:" in note(1)


def test_the_rates_are_one_and_a_tenth_of_a_percent() -> None:
    """Non-members 0..1999, members -1, 0.5, 1.5, 19.5, 20.5: 0.1 % allows 2 (0 and 1), 1 % allows 20."""
    run = losses({"forget": [-1.0, 0.5, 1.5, 19.5, 20.5], "holdout": [float(i) for i in range(2000)]})
    extra = membership(run, dataset="forget").extra
    assert (extra["tpr_at_01_fpr"], extra["tpr_at_1_fpr"]) == (3 / 5, 4 / 5)


def test_a_memorised_set_and_an_over_unlearned_one() -> None:
    run = losses({"forget": [0.0, 0.1], "holdout": [1.0, 2.0]})
    result = membership(run, dataset="forget")
    assert (result.value, result.low, result.high) == (1, 1, 1)
    assert result.extra["tpr_at_01_fpr"] == 1
    assert "do not overlap" in result.note
    assert membership(run, dataset="holdout", holdout="forget").value == 0


def test_a_retain_model_is_the_control() -> None:
    """What the retain model scores on the same sets belongs beside the AUC; without it the AUC is weaker."""
    run = losses({"forget": [0.0, 0.0], "holdout": [1.0, 1.0]})
    retain = losses({"forget": [1.0, 2.0], "holdout": [1.0, 3.0]})
    result = membership(run, dataset="forget", retain=retain)
    assert result.extra["retain_auc"] == pytest.approx(5 / 8)
    assert not result.weaker
    alone = membership(run, dataset="forget", retain=losses({"forget": [1.0, 2.0]}))
    assert "retain_auc" not in alone.extra
    assert alone.weaker
    reference = membership(run, dataset="forget", retain=retain, attack="reference")
    assert not reference.weaker
    assert "retain_auc" not in reference.extra
    # -1, -2 against 0, -2: 2 won, 1 tie of 4
    assert reference.value == pytest.approx(5 / 8)


def test_membership_says_what_is_missing() -> None:
    run = losses({"forget": [1.0]})
    why = {
        "loss": "not measured: no scored answers for 'holdout'; give its data and name it under the suite's "
        "probes.answer_likelihood",
        "reference": "not measured: the attack compares with a retain model, and none was given",
        "gradient_norm": "not measured: no global_norm gradient norms for 'forget' and 'holdout'; ",
    }
    for attack, text in why.items():
        result = membership(run, dataset="forget", attack=attack)
        assert not result.measured
        assert result.note.startswith(text)
        assert attack in result.variant
    peer = membership(run, dataset="forget", attack="gradient_norm", compat=True)
    assert "no mean_norm gradient norms" in peer.note
    assert "probes.gradient_norm" in peer.note
    empty = membership(
        new_records([answer("a", []), answer("b", [-1.0], dataset="holdout")]), dataset="forget"
    )
    assert empty.note == "not measured: no example of 'forget' could be scored"
    assert empty.unscored == ["forget/a"]


def test_examples_in_both_sets_are_reported() -> None:
    rows = [scored_row(prompt="Who?"), scored_row(example_id="b", prompt="When?")]
    rows += [scored_row(example_id="c", prompt="Who?", dataset="holdout")]
    rows += [scored_row(example_id="d", prompt="Who?", reference_text="other", dataset="holdout")]
    note = membership(new_records(rows), dataset="forget").note
    assert "1 example(s) are in 'forget' and in 'holdout'" in note


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attack": "los"}, "use one of loss, zlib"),
        ({"attack": "min_k", "k": 0}, "k=0 is not a share"),
        ({"attack": "min_k", "k": 40}, "k=40 is not a share"),
        ({"holdout": "forget"}, "members and non-members are both 'forget'"),
    ],
)
@pytest.mark.parametrize("metric", [membership, privleak])
def test_wrong_options_are_refused(metric: Any, options: dict[str, Any], match: str) -> None:
    run = losses({"forget": [1.0], "holdout": [1.0]})
    with pytest.raises(RecipeError, match=match):
        metric(run, dataset="forget", **options)


@pytest.mark.parametrize("kind", ["membership", "privleak"])
def test_the_kinds_are_registered_with_their_options(kind: str) -> None:
    assert set(metrics.options_of(kind)) == {"attack", "k", "holdout", "compat", "seed"}
    assert metrics.options_of("privleak")["attack"] == "min_k"
    assert metrics.options_of(kind)["k"] == 0.4


@settings(max_examples=20, deadline=None)
@given(SCORES, SCORES, st.randoms(use_true_random=False), st.sampled_from(["loss", "min_k", "min_k_pp"]))
def test_the_order_of_the_records_does_not_matter(members, others, random, attack) -> None:
    run = losses({"forget": members, "holdout": others})
    order = random.sample(range(len(run)), len(run))
    for metric in (membership, privleak):
        first = metric(run, dataset="forget", attack=attack)
        second = metric(run.iloc[order].reset_index(drop=True), dataset="forget", attack=attack)
        assert first.as_json() == second.as_json()
        assert first.per_example.equals(second.per_example)
    assert set(ATTACKS) >= {attack}


# PrivLeak


@pytest.mark.parametrize(
    ("auc", "retain", "expected"),
    [(1.0, 0.5, -100), (0.5, 0.5, 0), (0.0, 0.5, 100), (0.75, 0.5, -50), (1.0, 0.2, -100), (0.2, 0.6, 100)],
)
def test_relative_leak(auc: float, retain: float, expected: float) -> None:
    assert float(relative_leak(auc, retain)) == pytest.approx(expected)
    assert math.isnan(float(relative_leak(auc, 1.0)))


LIKE_CHANCE = {"forget": [1.0, 4.0], "holdout": [2.0, 3.0]}  # 1 below both, 4 above both: AUC 1/2
MEMORISED = {"forget": [0.0, 0.0], "holdout": [2.0, 3.0]}
DISTORTED = {"forget": [8.0, 9.0], "holdout": [2.0, 3.0]}


@pytest.mark.parametrize(
    ("own", "expected"),
    [(MEMORISED, -100), (LIKE_CHANCE, 0), (DISTORTED, 100)],
    ids=["memorised", "like", "over"],
)
def test_privleak_against_a_retain_model(own: Any, expected: float) -> None:
    result = privleak(losses(own), dataset="forget", retain=losses(LIKE_CHANCE))
    assert result.value == pytest.approx(expected)
    assert result.extra["retain_auc"] == 1 / 2
    assert not result.weaker
    assert result.variant.endswith("against the retain model")
    alone = privleak(losses(own), dataset="forget")
    assert alone.value == pytest.approx(expected)
    assert alone.weaker
    assert alone.note == "weaker evidence, against 0.5 (no retain model was given)"
    assert alone.variant == "'min_k' (Min-K% (k = 0.4), EOS left out) against an AUC of 0.5"
    assert alone.extra["retain_auc"] is None
    json.dumps(alone.as_json(), allow_nan=False)


def test_privleak_is_relative_to_the_retain_model() -> None:
    """AUC_u = 3/4 (one of four pairs lost), AUC_r = 1/4: (1/4 - 3/4) / (3/4) = -2/3."""
    own, other = {"forget": [1.0, 4.0], "holdout": [3.0, 5.0]}, {"forget": [3.0, 5.0], "holdout": [1.0, 4.0]}
    result = privleak(losses(own), dataset="forget", retain=losses(other))
    assert (result.extra["auc"], result.extra["retain_auc"]) == (3 / 4, 1 / 4)
    assert result.value == pytest.approx(-200 / 3)
    assert result.n == 4


def test_privleak_of_the_retain_model_itself_has_no_spread() -> None:
    """Both models are resampled on the same examples: equal scores give 0 in every resample."""
    draw = np.random.default_rng(1)
    run = losses({"forget": draw.uniform(0, 1, 40).tolist(), "holdout": draw.uniform(0, 1, 40).tolist()})
    result = privleak(run, dataset="forget", retain=run)
    assert (result.value, result.low, result.high) == (0, 0, 0)
    alone = privleak(run, dataset="forget")
    assert alone.low is not None
    assert alone.high is not None
    assert alone.low < alone.value < alone.high


def test_privleak_without_a_denominator_is_not_measured() -> None:
    result = privleak(losses(LIKE_CHANCE), dataset="forget", retain=losses(MEMORISED))
    assert not result.measured
    assert "the retain model's AUC is 1" in result.note
    assert (result.low, result.high) == (None, None)
    assert result.extra["retain_auc"] == 1
    # AUC 3/4, but 1 in the many resamples that miss the 4 or the 3.
    near = {"forget": [1.0, 4.0], "holdout": [3.0, 5.0]}
    partly = privleak(losses(LIKE_CHANCE), dataset="forget", retain=losses(near))
    assert partly.measured
    assert partly.note.startswith("no interval: in ")
    assert (partly.low, partly.high) == (None, None)


def test_privleak_falls_back_where_the_retain_model_lacks_the_holdout() -> None:
    result = privleak(losses(MEMORISED), dataset="forget", retain=losses({"forget": [1.0, 4.0]}))
    assert result.value == -100
    assert result.weaker
    assert "for the retain model: no scored answers for 'holdout'" in result.note
    nothing = privleak(losses({"forget": [1.0]}), dataset="forget")
    assert not nothing.measured
    assert nothing.weaker


def test_privleak_needs_the_same_examples() -> None:
    other = losses({"forget": [1.0, 4.0, 5.0], "holdout": [2.0, 3.0]})
    with pytest.raises(RecordsError, match="1 appear only in the retain model's"):
        privleak(losses(MEMORISED), dataset="forget", retain=other)
    with pytest.raises(RecipeError, match="reference"):
        privleak(losses(MEMORISED), dataset="forget", attack="reference")


def test_privleak_leaves_out_what_either_model_could_not_score() -> None:
    own = losses({"forget": [0.0, 0.0, math.nan], "holdout": [2.0, 3.0]})
    other = losses({"forget": [1.0, 4.0, 9.0], "holdout": [math.nan, 3.0]})
    result = privleak(own, dataset="forget", retain=other)
    assert result.unscored == ["forget/002", "holdout/000"]
    assert (result.n, result.extra["auc"], result.extra["retain_auc"]) == (3, 1, 1 / 2)
    none = losses({"forget": [math.nan, math.nan, 1.0], "holdout": [2.0, 3.0]})
    result = privleak(own, dataset="forget", retain=none)
    assert not result.measured
    assert "could be scored with both models" in result.note
    assert result.unscored == ["forget/000", "forget/001", "forget/002"]
