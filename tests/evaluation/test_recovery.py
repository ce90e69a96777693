"""How much an attack brings back, as a share of what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import pytest
from helpers_metrics import answer, generation
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError, RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import new_records

TEN = "one two three four five six seven eight nine ten"


def model(probabilities: Mapping[str, float]) -> pd.DataFrame:
    """A model that gives each example's answer this probability, and says as many tenths of it."""
    rows = []
    for name, p in probabilities.items():
        rows.append(answer(name, [] if math.isnan(p) else [math.log(p) if p else -800.0]))
        text = None if math.isnan(p) else " ".join(TEN.split()[: round(10 * p)])
        rows.append(generation(name, TEN, text))
    return new_records(rows)


TARGET = model({"a": 1.0, "b": 0.8, "c": 0.9})
UNLEARNED = model({"a": 0.2, "b": 0.2, "c": 0.2})


@pytest.mark.parametrize("measure", ["rouge", "probability"])
def test_share_of_the_means(measure: str) -> None:
    """Means 0.9, 0.2 and (0.9 + 0.2 + 0.4) / 3 = 0.5: (0.5 - 0.2) / (0.9 - 0.2) = 3/7.

    A mean of the examples' own shares would give (7/8 + 0 + 2/7) / 3.
    """
    attacked = model({"a": 0.9, "b": 0.2, "c": 0.4})
    result = metrics.recovered_share(
        attacked,
        unlearned=UNLEARNED,
        target=TARGET,
        measure=measure,
    )
    assert result.value == pytest.approx(3 / 7)
    assert result.extra == pytest.approx({"target": 0.9, "unlearned": 0.2, "attacked": 0.5})
    assert (result.n, result.unscored, result.note) == (3, [], "")
    assert result.per_example is not None
    assert result.per_example.to_dict() == pytest.approx({"a": 1.0, "b": 0.0, "c": 2 / 7})
    assert result.per_example.mean() == pytest.approx(result.value)
    assert result.low is not None
    assert result.high is not None
    assert 0 <= result.low < 3 / 7 < result.high <= 1.1
    assert {"rouge": "ROUGE-L recall", "probability": "length-normalised"}[measure] in result.variant


def test_everything_nothing_and_beyond() -> None:
    options = {"unlearned": UNLEARNED, "target": TARGET}
    everything = metrics.recovered_share(TARGET, **options)
    assert (everything.value, everything.low, everything.high) == pytest.approx((1, 1, 1))
    nothing = metrics.recovered_share(UNLEARNED, **options)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    less = metrics.recovered_share(model(dict.fromkeys("abc", 0.1)), **options)
    assert less.value == pytest.approx(-1 / 7)
    more = metrics.recovered_share(model(dict.fromkeys("abc", 1.0)), **options)
    assert more.value == pytest.approx(8 / 7)


def test_disclosed_examples_are_left_out() -> None:
    """The attack trained on a, which comes back whole; of b and c, (0.3 - 0.2) / (0.85 - 0.2) = 2/13 does."""
    attacked = model({"a": 1.0, "b": 0.3, "c": 0.3})
    result = metrics.recovered_share(attacked, unlearned=UNLEARNED, target=TARGET, leave_out=["a"])
    assert result.value == pytest.approx(2 / 13)
    assert result.n == 2
    assert result.per_example is not None
    assert "a" not in result.per_example.index
    everything = metrics.recovered_share(attacked, unlearned=UNLEARNED, target=TARGET, leave_out=list("abc"))
    assert everything.note == ("not measured: no example is left that all three models were scored on")
    # They may be absent from the attacked evaluation altogether, which is then no gap.
    held_out = metrics.recovered_share(
        model({"b": 0.3, "c": 0.3}), unlearned=UNLEARNED, target=TARGET, leave_out=["a"]
    )
    assert held_out.as_json() == result.as_json()


@pytest.mark.parametrize("after", [0.9, 1.0])
def test_nothing_forgotten_has_no_share(after: float) -> None:
    unlearned = model(dict.fromkeys("abc", after))
    result = metrics.recovered_share(TARGET, unlearned=unlearned, target=TARGET)
    assert math.isnan(result.value)
    assert result.note == f"not measured: nothing was forgotten: 0.900 before and {after:.3f} after"
    assert result.extra == pytest.approx({"target": 0.9, "unlearned": after, "attacked": 0.9})
    assert result.n == 3


def test_the_threshold_is_a_drop_of_the_mean() -> None:
    """0.9 to 0.8 is a drop of 0.1: a share at the threshold 0.09, none at 0.11."""
    options = {"unlearned": model({"a": 0.9, "b": 0.7, "c": 0.8}), "target": TARGET}
    assert metrics.recovered_share(TARGET, **options, threshold=0.09).value == pytest.approx(1)
    assert math.isnan(metrics.recovered_share(TARGET, **options, threshold=0.11).value)


def test_no_interval_where_resamples_forget_nothing() -> None:
    """Only one of three examples was forgotten: (2/3)^3 = 30 % of the resamples do not hold it."""
    unlearned = model({"a": 0.0, "b": 0.8, "c": 0.9})
    result = metrics.recovered_share(TARGET, unlearned=unlearned, target=TARGET)
    assert result.value == pytest.approx(1)
    assert (result.low, result.high) == (None, None)
    assert "no interval" in result.note


def test_unscored_and_missing_examples() -> None:
    """c has no answer in one of three: left out of all. (0.6 - 0.2) / (0.9 - 0.2) = 4/7 of a and b."""
    whole, partly = {"a": 0.6, "b": 0.6, "c": 0.9}, {"a": 0.6, "b": 0.6, "c": math.nan}
    expected = pytest.approx(4 / 7)
    unscored = metrics.recovered_share(model(partly), unlearned=UNLEARNED, target=TARGET)
    assert (unscored.value, unscored.n, unscored.unscored) == (expected, 2, ["c"])
    target = model({"a": 1.0, "b": 0.8, "c": math.nan})
    unscored = metrics.recovered_share(model(whole), unlearned=UNLEARNED, target=target)
    assert (unscored.value, unscored.n, unscored.unscored) == (expected, 2, ["c"])
    fewer = metrics.recovered_share(model({"a": 0.6, "b": 0.6}), unlearned=UNLEARNED, target=TARGET)
    assert (fewer.value, fewer.n, fewer.unscored) == (expected, 2, [])
    assert "was not asked about 1 of the other examples" in fewer.note
    with pytest.raises(RecordsError, match=r"1 examples of 'forget' .* unlearned model lack \(such as z\)"):
        metrics.recovered_share(
            model(whole | {"z": 1.0}), unlearned=UNLEARNED, target=model({"a": 1, "b": 1, "c": 1, "z": 1})
        )


def test_missing_records_and_options() -> None:
    options = {"unlearned": UNLEARNED, "target": TARGET}
    only_text = new_records([generation("a", TEN, "one")])
    missing = metrics.recovered_share(only_text, **options, measure="probability")
    assert missing.note == "not measured: no scored answers for 'forget' of the attacked model"
    elsewhere = metrics.recovered_share(TARGET, **options, dataset="holdout")
    assert elsewhere.note == "not measured: no generations for 'holdout' of the target model"
    with pytest.raises(RecipeError, match="measure='bleu'"):
        metrics.recovered_share(TARGET, **options, measure="bleu")


def test_the_control_puts_the_retain_model_in_the_unlearned_ones_place() -> None:
    """Retain 0.1, attacked 0.3, target 0.9: 0.2 / 0.8 would come to a model that never knew."""
    retain, attacked = model(dict.fromkeys("abc", 0.1)), model(dict.fromkeys("abc", 0.3))
    control = metrics.recovered_share(attacked, unlearned=retain, target=TARGET)
    assert control.value == pytest.approx(1 / 4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 10)] * 3), min_size=1, max_size=6),
    st.integers(0, 2**31 - 1),
)
def test_identity_and_row_order(examples: list[tuple[int, int, int]], seed: int) -> None:
    """Value x gap = gain, and the examples may come in any order."""
    target, unlearned, attacked = (
        model({f"e{i}": tenths[side] / 10 for i, tenths in enumerate(examples)}) for side in range(3)
    )
    result = metrics.recovered_share(attacked, unlearned=unlearned, target=target)
    means = result.extra
    gap = means["target"] - means["unlearned"]
    assert result.measured == (gap > 0.01)
    if result.measured:
        assert result.value * gap == pytest.approx(means["attacked"] - means["unlearned"])
    mixed = metrics.recovered_share(
        attacked.sample(frac=1, random_state=seed),
        unlearned=unlearned.sample(frac=1, random_state=seed),
        target=target,
    )
    assert mixed.as_json() == result.as_json()
