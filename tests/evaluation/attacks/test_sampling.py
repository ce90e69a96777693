"""The worst of m samples: what the subject says of it, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.attacks import attack
from unlearnkit.evaluation.attacks.sampling import Sampling
from unlearnkit.evaluation.attacks.subject import Subject

ROWS = [{"example_id": "e1", "prompt": "Q?", "completion": "A"}]


def test_one_stage_that_only_asks_more_often():
    subject = Subject(object(), None, None, {"forget": ROWS}, seen=frozenset({"x"}), facts={"before": 1})
    with Sampling(samples=5, temperature=0.7, top_p=0.9, seed=3).stages(subject) as stages:
        (stage,) = stages
    assert stage.best_of == 5
    assert stage.variant == "worst of 5"
    assert stage.facts == {
        "before": 1, "dataset": "forget", "samples": 5, "temperature": 0.7, "top_p": 0.9, "seed": 3,
    }  # fmt: skip
    json.dumps(stage.facts)
    changed = {"best_of", "variant", "facts"}
    for one in dataclasses.fields(Subject):
        if one.name not in changed:
            assert getattr(stage, one.name) is getattr(subject, one.name)


def test_eight_by_default():
    with attack("sampling").stages(Subject(None, None, None, {"forget": ROWS})) as stages:
        assert [s.best_of for s in stages] == [8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, r"sampling\.samples is 1"),
        ({"temperature": 0}, r"sampling\.temperature is 0"),
        ({"temperature": float("nan")}, r"sampling\.temperature is nan"),
        ({"temperature": float("inf")}, r"sampling\.temperature is inf"),
        ({"top_p": 0.0}, r"sampling\.top_p is 0"),
        ({"top_p": 1.1}, r"sampling\.top_p is 1\.1"),
    ],
)
def test_options_that_cannot_be_used(settings, message):
    with pytest.raises(RecipeError, match=message):
        attack("sampling", settings)


def test_a_data_set_that_is_not_asked():
    with pytest.raises(RecipeError, match="'forgot', which is not asked; did you mean 'forget'"):
        Sampling(dataset="forgot").stages(Subject(None, None, None, {"forget": ROWS}))
