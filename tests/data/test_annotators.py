"""Annotators: names, patterns, a classifier of sentences, a function of the user's."""

from __future__ import annotations

import dataclasses
import json
import sys

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.annotators import Call, Names, Patterns, SentenceClassifier, annotate, sentences
from unlearnkit.data.columns import canonical
from unlearnkit.data.spans import Span
from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.preflight import load_streams
from unlearnkit.recipe import load_recipe


def found(annotator, *texts):
    """What an annotator finds, as text and class."""
    return [
        [(text[s.start : s.end], s.risk) for s in spans]
        for text, spans in zip(texts, annotator(texts), strict=True)
    ]  # fmt: skip


# Annotators


def test_names_and_patterns():
    assert found(Names(["Ana Reyes"], "private"), "By Ana Reyes, for Ana.", "None.") == [
        [("Ana Reyes", "private"), ("Ana", "private")], [],
    ]  # fmt: skip
    both = Patterns([r"\d{4}", r"(?<=in )\w*"], "middle")
    assert found(both, "in 1984 or 2001") == [[("1984", "middle"), ("2001", "middle"), ("1984", "middle")]]
    with pytest.raises(RecipeError, match="malformed"):
        Patterns(["("])(["x"])


@settings(deadline=None)
@given(st.text())
def test_sentences_cover_a_text_from_end_to_end(text):
    """Nothing lies between two of them: white space belongs to the sentence that follows."""
    cut = sentences(text)
    assert "".join(text[a:b] for a, b in cut) == (text if cut else "")
    assert cut or not text.strip()
    assert all(a < b for a, b in cut)


def test_the_space_between_two_sentences_belongs_to_the_second():
    assert [" Ana reads.  Bo writes! "[a:b] for a, b in sentences(" Ana reads.  Bo writes! ")] == [
        " Ana reads.", "  Bo writes! ",
    ]  # fmt: skip
    assert sentences("") == []


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_tokenizer):
    """(folder, score): a tiny random classifier, and the probability that it gives to "toxic"."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.5, pad_token_id=tiny_tokenizer.pad_token_id,
        id2label={0: "fine", 1: "toxic", 2: "odd"}, label2id={"fine": 0, "toxic": 1, "odd": 2},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)

    def score(text):
        with torch.no_grad():
            return model(**tiny_tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item()

    return str(folder), score


def test_sentences_by_the_score_of_a_label(classifier):
    """Each sentence is scored by itself, whatever the batch; the highest threshold below its score counts."""
    folder, score = classifier
    texts = [
        "Ana reads a long book. Bo wrote it! Why?",
        "One sentence alone",
        "",
        "Who is it? It is him. No.",
    ]
    scores = {text[a:b]: score(text[a:b].strip()) for text in texts for a, b in sentences(text)}
    low, high = sorted(scores.values())[1], sorted(scores.values())[4]
    gap = 1e-4
    expected = [
        [
            (text[a:b], "high" if scores[text[a:b]] > high - gap else "middle")
            for a, b in sentences(text)
            if scores[text[a:b]] > low - gap
        ]
        for text in texts
    ]
    thresholds = {"middle": low - gap, "high": high - gap}
    for size in (1, 3):
        assert found(SentenceClassifier(folder, "toxic", thresholds, size), *texts) == expected
    assert {risk for spans in expected for _, risk in spans} == {"high", "middle"}


def test_what_a_classifier_must_have(classifier, tmp_path):
    folder, _ = classifier
    with pytest.raises(ModelError, match=r"no label 'bad'; it has fine, toxic, odd"):
        SentenceClassifier(folder, "bad")(["A text."])
    with pytest.raises(ModelError, match=r"cannot be loaded .*sequence classification"):
        SentenceClassifier(str(tmp_path), "bad")(["A text."])
    for thresholds in ({}, {"high": 1.5}, {"": 0.5}):
        with pytest.raises(RecipeError, match=r"thresholds of a classifier .*\{high: 0\.99\}"):
            SentenceClassifier(folder, "toxic", thresholds)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's."""
    (tmp_path / "finders.py").write_text(
        "def first(text):\n    return [(0, 1), (2, 3, 'low'), {'start': 3, 'end': 4, 'risk': 'x'}]\n"
        "def none(text):\n    return None\n"
        "def beyond(text):\n    return [(0, 99)]\n"
        "word = 'no function'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "finders"
    sys.modules.pop("finders", None)


def test_a_function_of_the_users(module):
    assert Call("finders:first")(["abcd"]) == [[Span(0, 1, "high"), Span(2, 3, "low"), Span(3, 4, "x")]]
    assert Call("finders:none", "x")(["abcd", "e"]) == [[], []]
    with pytest.raises(DataError, match=r"'abcd' of finders:beyond.*0:99"):
        Call("finders:beyond")(["abcd"])
    for name, message in (
        ("finders:nobody", "is not found .*PYTHONPATH"), ("nowhere:first", "is not found"),
        ("finders", "is no function; write package.module:function"), ("finders:word", "is no function"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            Call(name)(["abcd"])


# Tables


def qa(*answers, **columns):
    rows = [{"prompt": "Who is Ana?", "completion": answer} for answer in answers]
    return canonical(datasets.Dataset.from_list(rows))


def test_annotating_adds_to_what_is_there_and_leaves_the_rest():
    """Only answers are searched; ids stay, and doing it twice changes nothing."""
    table = qa("It is Ana.", "Nobody.")
    once = annotate(table, [Names(["Ana"])])
    assert once["spans"][:] == [[{"start": 6, "end": 9, "risk": "high"}], []]
    assert once["example_id"][:] == table["example_id"][:]
    assert annotate(once, [Names(["Ana"])]).to_list() == once.to_list()
    more = annotate(once.select([1, 0]), [Patterns(["It"], "middle"), Patterns(["Ana."])])
    assert more["spans"][1] == [
        {"start": 0, "end": 2, "risk": "middle"},
        {"start": 6, "end": 10, "risk": "high"},
    ]
    assert annotate(qa("No.", "No!"), [Names(["Ana"])])["spans"][:] == [[], []]


def test_what_cannot_be_annotated():
    table = qa("It is Ana.")
    name = table["example_id"][0]
    with pytest.raises(
        DataError, match=rf"example {name}: .*6:9 high and 6:10 middle overlap .*the same risk"
    ):
        annotate(table, [Names(["Ana"]), Patterns(["Ana."], "middle")])
    pairs = canonical(datasets.Dataset.from_list([{"prompt": "Who?", "chosen": "Ana.", "rejected": "Bo."}]))
    with pytest.raises(DataError, match=r"data\.pairs holds preference pairs"):
        annotate(pairs, [Names(["Ana"])], where="data.pairs")


# Recipes


def recipe(tmp_path, annotate, **data):
    """A recipe of the method on one file with one answer that names Ana."""
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"question": "Who?", "answer": "It is Ana Reyes."}) + "\n"
    )
    path = tmp_path / "r.yaml"
    sections = {"train": str(tmp_path / "rows.jsonl"), "annotate": annotate, **data}
    path.write_text(json.dumps({"method": "slung", "model": "m", "data": sections, "evaluation": None}))
    return load_recipe(path)


def test_a_recipe_annotates_its_streams(tmp_path):
    """Every stream that is read, or those that an entry names; the spans are part of what names the data."""
    (tmp_path / "names.txt").write_text("Reyes\n")
    other = {
        "train": str(tmp_path / "rows.jsonl"),
        "general": str(tmp_path / "rows.jsonl"),
        "root": str(tmp_path),
    }
    made = recipe(
        tmp_path,
        [{"names": "names.txt"}, {"patterns": ["It"], "risk": "middle", "streams": ["general"]}],
        mix={"anchor": "train"},
        **other,
    )
    streams = load_streams(made, ("train",))
    high, middle = ({"start": 10, "end": 15, "risk": "high"}, {"start": 0, "end": 2, "risk": "middle"})
    assert [streams[name]["spans"][:] for name in ("train", "general")] == [[[high]], [[middle]]]
    again = load_recipe(_written(tmp_path, made))
    assert again == made
    assert again.data.annotate[0].risk == "high"
    assert recipe(tmp_path, None).data.annotate is None
    assert made.fingerprint != recipe(tmp_path, None, mix={"anchor": "train"}, **other).fingerprint


@pytest.mark.parametrize(("method", "notes"), [("slung", 0), ("sft", 1)])
def test_spans_that_the_method_does_not_read_are_noted(tmp_path, method, notes):
    made = dataclasses.replace(recipe(tmp_path, [{"names": ["Ana"]}]), method=method)
    found = []
    load_streams(made, ("train",), found.append)
    assert sum("reads no spans" in text for text in found) == notes == len(found)


def _written(tmp_path, made):
    path = tmp_path / "resolved.yaml"
    path.write_text(made.to_yaml())
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"names": ["Ana"]}, r"data\.annotate must be a list.*a dash before"),
        (["Ana"], r"data\.annotate\.0 must be a section of keys, found 'Ana'"),
        ([{"risk": "high"}], r"data\.annotate\.0 has none of names, patterns, classifier, call"),
        ([{"names": ["A"], "patterns": ["B"]}], r"has names and patterns; keep one of them"),
        ([{"name": ["A"]}], r"unknown key 'name' in data\.annotate\.0; did you mean 'names'"),
        ([{"names": []}], r"data\.annotate\.0\.names is empty"),
        ([{"names": ["A", ""]}], r"data\.annotate\.0\.names is empty, or one of its entries"),
        ([{"patterns": ["A"], "parts": True}], r"parts belongs to names, not to patterns"),
        ([{"names": ["A"], "label": "toxic"}], r"label belongs to classifier, not to names"),
        ([{"classifier": "m", "label": "t", "risk": "x"}], r"risk belongs to .*thresholds name the classes"),
        ([{"classifier": "m"}], r"data\.annotate\.0 has no label"),
        ([{"classifier": "m", "label": "t", "thresholds": {"high": "x"}}], r"thresholds must be"),
        ([{"names": ["A"], "streams": ["trian"]}], r"'trian' is not a stream .*did you mean 'train'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe(tmp_path, entries, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, entries)
