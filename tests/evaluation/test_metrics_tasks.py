"""Scores of tasks: means over documents and tasks, perplexities, filters, what could not be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.metrics import task_score
from unlearnkit.evaluation.records import new_records


def rows(dataset, values, field="acc", sizes=None):
    return [
        {
            "probe": "lm_eval", "dataset": dataset, "example_id": f"{i:05d}", "field": field, "value": value,
            "num_tokens": 0 if sizes is None else sizes[i],
        }
        for i, value in enumerate(values)
    ]  # fmt: skip


def test_a_task_and_a_group():
    """a: 1 of 4; b: 2 of 2. Documents: 3/6; tasks: (1/4 + 1)/2 = 5/8."""
    frame = new_records(rows("all/x/a", [1, 0, 0, 0]) + rows("all/b", [1, 1]) + rows("other", [0] * 9))
    assert task_score(frame, dataset="a").value == 0.25
    assert task_score(frame, dataset="x").value == 0.25
    assert task_score(frame, dataset="all/x/a").value == 0.25
    both = task_score(frame, dataset="all")
    assert (both.value, both.n, both.extra["tasks"]) == (0.5, 6, 2)
    assert list(both.per_example.index) == ["b/00000", "b/00001", *(f"a/0000{i}" for i in range(4))]
    assert both.low < 0.5 < both.high
    equal = task_score(frame, dataset="all", weight="tasks")
    assert equal.value == 0.625
    assert 0.5 <= equal.low < 0.625 < equal.high <= 1, "b is always 1, so the half of it stays"
    assert math.isnan(task_score(frame, dataset="al").value), "a part of a name is not a name"
    with pytest.raises(RecipeError, match="weight='task'"):
        task_score(frame, dataset="all", weight="task")


def test_the_interval_covers_what_the_binomial_says():
    """Of n = 400 with p = 1/4: half a width of 1.96 sqrt(p (1-p) / n) = 0.0424, to a tenth."""
    frame = new_records(rows("a", [1.0] * 100 + [0.0] * 300))
    result = task_score(frame, dataset="a")
    assert result.high - result.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 * 0.75 / 400), rel=0.1)
    others = {task_score(frame, dataset="a", seed=seed).low for seed in (1, 2, 3)}
    assert others != {result.low}, "the seed draws it"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing(value):
    result = task_score(new_records(rows("a", [value] * 3)), dataset="a")
    assert (result.value, result.low, result.high) == (value, value, value)


def test_a_single_document():
    result = task_score(new_records(rows("a", [1.0])), dataset="a")
    assert (result.value, result.low, result.high, result.n) == (1.0, 1.0, 1.0, 1)


def test_perplexities_are_means_over_words():
    """2 nats a word over 3 words and 6 over 1: (6 + 6)/4 = 3 nats a word, not the mean 4 of the texts."""
    frame = new_records(
        rows("a", [2.0, 6.0], "word_perplexity", [3, 1]) + rows("a", [2.0, 6.0], "bits_per_byte", [3, 1])
    )
    result = task_score(frame, dataset="a")
    assert result.value == pytest.approx(math.exp(3))
    assert math.exp(2) <= result.low < result.value < result.high <= math.exp(6) + 1e-6
    assert task_score(frame, dataset="a", field="bits_per_byte").value == pytest.approx(3 / math.log(2))


def test_fields():
    frame = new_records(
        rows("a", [0, 1], "exact_match,strict")
        + rows("a", [1, 1], "exact_match,loose")
        + rows("a", [0, 0], "f")
    )
    assert task_score(frame, dataset="a").extra["field"] == "exact_match,strict"
    assert task_score(frame, dataset="a", field="exact_match").value == 0.5
    assert task_score(frame, dataset="a", field="exact_match,loose").value == 1
    assert task_score(frame, dataset="a", field="f").value == 0
    missing = task_score(frame, dataset="a", field="acc")
    assert not missing.measured
    assert missing.note == (
        "not measured: the task 'a' has no acc (it has exact_match,strict, exact_match,loose, f)"
    )
    assert "no records of the task 'b'" in task_score(frame, dataset="b").note
    assert "no records" in task_score(new_records([]), dataset="b").note


def test_what_could_not_be_scored_is_named():
    result = task_score(new_records(rows("a", [1.0, math.nan, 0.0])), dataset="a")
    assert (result.value, result.n, result.unscored) == (0.5, 2, ["00001"])
    nothing = task_score(new_records(rows("a", [math.nan])), dataset="a")
    assert not nothing.measured
    assert nothing.unscored == ["00000"]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.integers(0, 99),
    st.sampled_from(["documents", "tasks"]),
)
def test_the_order_of_records_does_not_matter(values, seed, weight):
    frame = new_records(rows("g/a", values) + rows("g/b", values[::-1][:3]))
    shuffled = frame.iloc[np.random.default_rng(seed).permutation(len(frame))]
    one, other = (task_score(each, dataset="g", weight=weight) for each in (frame, shuffled))
    assert one.as_json() == other.as_json()
