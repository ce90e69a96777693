"""Suites: every name in them is checked before a model is loaded."""

from __future__ import annotations

import re

import pytest

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.suite import load_suite
from unlearnkit.recipe import StreamSpec

SUITE = """\
suite: small
version: 3
data:
  forget: {path: "{split}.jsonl", limit: 5}
  retain: null
probes:
  answer_likelihood: [forget, retain]
  generate_answer: [forget]
  max_new_tokens: 7
metrics:
  forget_probability: {kind: probability, dataset: forget, group: forget, title: Probability}
  retain_rouge: {kind: rouge, dataset: retain, measure: fmeasure}
"""


@pytest.fixture
def write(tmp_path):
    def build(*changes):
        text = SUITE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return build


def test_a_suite_from_a_file(write):
    suite = load_suite(write(), {"split": "forget05", "retain": {"path": "keep.jsonl"}})
    assert (suite.name, suite.version, suite.split, suite.root) == ("small", 3, "forget05", None)
    assert suite.data == {
        "forget": [StreamSpec("forget05.jsonl", limit=5)], "retain": [StreamSpec("keep.jsonl")],
    }  # fmt: skip
    assert suite.probes.max_new_tokens == 7
    spec = suite.metrics["retain_rouge"]
    assert (spec.kind, spec.dataset, spec.options) == ("rouge", "retain", {"measure": "fmeasure"})


def test_tofu_fills_in_the_split():
    assert load_suite("tofu").data["forget"] == [StreamSpec(name="forget10_perturbed")]
    suite = load_suite(
        "tofu", {"split": "forget01", "root": "somewhere", "retain": None, "world_facts": "w.json"}
    )
    assert suite.data["forget"] == [StreamSpec(name="forget01_perturbed")]
    assert suite.data["retain"] == []
    assert suite.data["world_facts"] == [StreamSpec("w.json")]
    assert suite.root == "somewhere"
    assert load_suite("tofu").root == "locuslab/TOFU"
    assert load_suite("tofu").version >= 1


def test_an_override_may_have_several_sources_of_any_form(tmp_path):
    given = ["a.jsonl", {"path": "b.csv", "rows": "::2"}, StreamSpec("c.json"), tmp_path / "d.json"]
    sources = load_suite("forget", {"forget": given}).data["forget"]
    assert sources == [StreamSpec("a.jsonl"), StreamSpec("b.csv", rows="::2"), StreamSpec("c.json"),
                       StreamSpec(str(tmp_path / "d.json"))]  # fmt: skip
    assert sources != load_suite("forget").data["forget"] == [], "the next suite is untouched"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([("kind: probability", "kind: probabilty")], ["'probabilty' is not known", "'probability'"]),
        (
            [("measure: fmeasure", "measure: fmeasur")],
            ["measure must be one of recall", "did you mean 'fmeasure'"],
        ),
        ([("measure: fmeasure", "mesure: fmeasure")], ["unknown key 'mesure'", "did you mean 'measure'"]),
        ([("max_new_tokens", "max_tokens")], ["unknown key 'max_tokens' in probes", "max_new_tokens"]),
        ([("max_new_tokens: 7", "max_new_tokens: 0")], ["probes.max_new_tokens must be at least 1"]),
        ([("likelihood: [forget", "likelihood: [foget")], ["'foget' is used", "did you mean 'forget'"]),
        ([("dataset: retain", "dataset: retian")], ["'retian' is used", "did you mean 'retain'"]),
        ([("version: 3", "version: one")], ["version must be a whole number"]),
        ([("suite: small", "suit: small")], ["unknown key 'suit'", "did you mean 'suite'"]),
        ([("title: Probability", "title: [1]")], ["metrics.forget_probability.title must be text"]),
        ([("limit: 5", "limt: 5")], ["evaluation.data.forget", "unknown key 'limt'", "did you mean 'limit'"]),
        ([("limit: 5", "limit: five")], ["evaluation.data.forget.limit must be a whole number"]),
        ([("retain: null", "retain: 3")], ["evaluation.data.retain must be a path or a section"]),
        ([("forget: {path", "forget: [3, {path"), ("limit: 5}", "limit: 5}]")], ["forget must be a path"]),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_a_model_is_loaded(write, changes, parts):
    path = write(*changes)
    with pytest.raises(RecipeError, match=".*".join(map(re.escape, parts))):
        evaluate("no/such/model", suite=path, data={"split": "x"})


def test_all_mistakes_are_shown_together_with_their_lines(write):
    path = write(("kind: probability", "kind: prob"), ("measure: f", "mesure: f"), ("max_new_tokens", "mnt"))
    with pytest.raises(RecipeError) as caught:
        load_suite(path, {"split": "x"})
    lines = str(caught.value).splitlines()
    assert len([line for line in lines if f"{path.name}:" in line]) == 3
    assert any(f"{path.name}:9" in line for line in lines)


@pytest.mark.parametrize("section", ["data", "probes", "metrics"])
def test_a_section_that_is_a_list(tmp_path, section):
    path = tmp_path / "bad.yaml"
    path.write_text(f"suite: bad\nversion: 1\n{section}: [a, b]\n")
    with pytest.raises(RecipeError, match=f"{section} must be a section of keys"):
        load_suite(path)


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("tofu", {"split": "forget11"}, "there is no split 'forget11'; did you mean 'forget01'|'forget10'"),
        ("tofu", {"forgt": "x.jsonl"}, "suite tofu has no data set 'forgt'; did you mean 'forget'"),
        ("tofu", {"rot": "x"}, "no data set 'rot'; did you mean 'root'"),
        ("tofo", {}, "tofo.*tofu"),
    ],
)
def test_wrong_overrides_and_names(name, data, parts):
    with pytest.raises(RecipeError, match=parts):
        evaluate("no/such/model", suite=name, data=data)


def test_a_split_that_is_not_given(write):
    with pytest.raises(RecipeError, match=r"path is '{split}\.jsonl', but no split is given"):
        load_suite(write())


def test_a_loaded_suite_takes_no_overrides():
    with pytest.raises(RecipeError, match="load_suite"):
        evaluate("no/such/model", suite=load_suite("forget"), data={"forget": "x.jsonl"})
