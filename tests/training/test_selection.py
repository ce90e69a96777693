"""The rules that choose a checkpoint and end a training."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.training.selection import Choice, Every, Keep, Stop, check_rules

KEEP = {"lowest": "f", "with": "r", "at_least": 0.9}


def choice(keep: Any = KEEP, stop: Any = None) -> Choice:
    return Choice(keep and Keep.parse(keep), stop and Stop.parse(stop))


def fed(made: Choice, *pairs: tuple[float | None, float | None]) -> Choice:
    """Step 0 is the first pair, then steps 10, 20, ..."""
    for number, (f, r) in enumerate(pairs):
        made.take(10 * number, {"f": f, "r": r})
    return made


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [("50 steps", 50, "step"), ("1 step", 1, "step"), ("step", 1, "step"), ("epoch", 1, "epoch"),
     ("2 epochs", 2, "epoch"), ("1 epochs", 1, "epoch")],
)  # fmt: skip
def test_every_is_read(text: str, count: int, unit: str) -> None:
    assert Every.parse(text) == Every(count, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "hint"),
    [(50, "; did you mean '50 steps'?"), ("50 stpes", "; did you mean '50 steps'?"),
     ("epochs", "; did you mean 'epoch'?"), ("1 epcoh", "; did you mean '1 epoch'?"), ("0 steps", ""),
     ("-3 steps", ""), ("1.5 epochs", ""), ("hourly", ""), (True, ""), ("", ""), (None, ""), ([5], "")],
)  # fmt: skip
def test_every_is_refused(value: Any, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Every.parse(value)
    assert str(caught.value).startswith("must be '50 steps', 'epoch' or '2 epochs', found ")
    assert str(caught.value).endswith(hint if hint else str(caught.value)[-1])
    assert ("did you mean" in str(caught.value)) == bool(hint)


def test_when_it_is_time() -> None:
    assert [s for s in range(1, 10) if Every.parse("3 steps").due(s, 0.5)] == [3, 6, 9]
    # 4 steps an epoch; 1/3 epochs sum up to whole ones but for rounding.
    assert [s for s in range(1, 13) if Every.parse("epoch").due(s, s / 4)] == [4, 8, 12]
    assert [s for s in range(1, 13) if Every.parse("2 epochs").due(s, s / 3)] == [6, 12]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"lowst": "f", "with": "r"}, "has the unknown key 'lowst'; did you mean 'lowest'?"),
        ({"lowest": "f", "highest": "f", "with": "r"}, "has both lowest and highest; keep one"),
        ({"with": "r"}, "has no metric to go by"),
        ({"lowest": "f"}, "does not say what has to stay"),
        ({"lowest": 3, "with": "r"}, "has lowest: 3; name a metric"),
        ({"lowest": "f", "with": "r", "at_least": "most"}, "has at_least: 'most'; give a number"),
        ({"lowest": "f", "with": "r", "at_least": math.nan}, "has at_least: nan; give a number"),
        ({"lowest": "f", "with": "r", "at_least": -1}, "has at_least -1; give a share"),
        ("lowest f", "must be a section of keys"),
    ],
)
def test_a_keep_that_cannot_be_read(value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Keep.parse(value)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"patience": 0}, "has patience 0; give a whole number"),
        ({"patience": True}, "has patience true; give a whole number"),
        ({"patience": 2, "when": "f", "below": 1}, "has patience, when, below; write"),
        ({"when": "f"}, "has when; write"),
        ({"when": "f", "below": 1, "above": 0}, "has when, below, above; write"),
        ({}, "has no key; write"),
        ({"patienc": 3}, "has the unknown key 'patienc'; did you mean 'patience'?"),
    ],
)
def test_a_stop_that_cannot_be_read(value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Stop.parse(value)
    assert str(caught.value).startswith(words)


def test_rules_that_lack_one_another() -> None:
    assert check_rules("epoch", KEEP, {"patience": 3}) == []
    assert check_rules("epoch", None, {"when": "f", "below": 0.2}) == []
    assert [key for key, _ in check_rules(None, KEEP, None)] == ["keep"]
    assert [key for key, _ in check_rules(None, None, {"when": "f", "below": 0.2})] == ["stop"]
    [(key, words)] = check_rules("epoch", None, {"patience": 3})
    assert key == "stop"
    assert words.startswith("with patience needs a rule")
    assert [key for key, _ in check_rules("epoch", "x", 3)] == ["keep", "stop"]


def test_the_lowest_that_keeps_enough_wins() -> None:
    """The guard is 0.5 at step 0, so at least 0.45 has to stay: step 30 has the lowest f, but r 0.44."""
    made = fed(choice(), (0.9, 0.5), (0.6, 0.5), (0.4, 0.45), (0.1, 0.44), (0.5, 0.5))
    assert made.best == (20, 0.4)
    assert made.entry(40, 120) == {
        "rule": "lowest f with r at least 90 % of the target's", "step": 20, "of_steps": 120,
        "metrics": ["f", "r"], "satisfied": True,
    }  # fmt: skip


def test_the_target_itself_never_wins() -> None:
    assert fed(choice(), (0.1, 0.5), (0.6, 0.5)).best == (10, 0.6)


def test_of_equal_ones_the_earlier_wins_and_highest_turns_round() -> None:
    assert fed(choice(), (0.9, 1), (0.5, 1), (0.5, 1)).best == (10, 0.5)
    highest = choice({"highest": "f", "with": "r", "at_least": 0.9})
    assert fed(highest, (0.1, 1), (0.5, 1), (0.7, 1), (0.7, 1), (0.6, 1)).best == (20, 0.7)


def test_what_is_not_measured_never_wins() -> None:
    assert fed(choice(), (1, 1), (None, 1), (math.nan, 1), (0.5, None), (0.5, math.nan)).best is None
    assert fed(choice(), (1, None), (0.5, 1)).best is None
    assert fed(choice(), (1, 1), (math.nan, 1), (0.7, 1)).best == (20, 0.7)


def test_a_negative_guard_may_fall_by_the_same_share() -> None:
    """A tenth of |-2| may be lost: down to -2.2."""
    assert fed(choice(), (1, -2.0), (0.5, -2.2)).best == (10, 0.5)
    assert fed(choice(), (1, -2.0), (0.5, -2.21)).best is None


def test_no_checkpoint_satisfies_the_rule() -> None:
    entry = fed(choice(), (0.9, 1.0), (0.1, 0.5)).entry(10, 20)
    assert entry is not None
    assert (entry["satisfied"], entry["step"]) == (False, 10)
    assert entry["note"] == (
        "no checkpoint satisfied the rule (lowest f with r at least 90 % of the target's), so the weights of "
        "the last step, 10, were kept"
    )


def test_patience_counts_from_the_last_better_one() -> None:
    made = choice(stop={"patience": 2})
    assert fed(made, (0.9, 1), (0.5, 1), (0.5, 1), (0.4, 1), (0.6, 1)).stopped is None
    made.take(50, {"f": 0.4, "r": 1})
    assert (made.stopped, made.best) == (50, (30, 0.4))
    entry = made.entry(50, 100)
    assert entry is not None
    assert entry["stop"] == {"rule": "stop after 2 evaluations without a better checkpoint", "step": 50}
    # What never satisfied the condition has no better one either.
    assert fed(choice(stop={"patience": 2}), (0.9, 1), (0.5, 0), (0.4, 0)).stopped == 20


def test_stop_when_a_level_is_crossed() -> None:
    made = fed(choice(None, {"when": "f", "below": 0.2}), (0.1, 1), (0.2, 1), (None, 1), (0.19, 1), (0.3, 1))
    assert made.stopped == 30
    assert made.entry(30, 100) == {
        "rule": "stop when f is below 0.2", "step": 30, "of_steps": 100, "metrics": ["f"], "satisfied": True
    }  # fmt: skip
    assert fed(choice(None, {"when": "r", "above": 0.5}), (1, 1), (1, 0.5), (1, 0.51)).stopped == 20
    never = fed(choice(None, {"when": "f", "below": 0.2}), (1, 1), (1, 1)).entry(10, 10)
    assert never is not None
    assert not never["satisfied"]
    assert choice(None).entry(10, 10) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_choice_is_what_looking_at_all_at_once_finds(pairs: list[tuple[int, int]]) -> None:
    """The first minimum of f among the steps after 0 whose r is at least 0.9 of the first r."""
    made = fed(choice(), *pairs)
    allowed = [(f, 10 * i) for i, (f, r) in enumerate(pairs) if i and r >= 0.9 * pairs[0][1]]
    assert made.best == (None if not allowed else (min(allowed)[1], min(allowed)[0]))
