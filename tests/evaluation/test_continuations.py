"""Documents to go on with: where they are split, short ones, and ones that are longer than the model's
positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.errors import RecipeError
from unlearnkit.evaluation.asks import Ask
from unlearnkit.evaluation.continuations import continuation_questions, split_before_suffix
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.suite import load_suite

SUITE = """\
suite: documents
version: 1
data: {texts: null}
probes:
  continue_text: [{dataset: texts, suffix_tokens: 6}]
metrics:
  exact: {kind: verbatim_exact, dataset: texts}
  overlap: {kind: verbatim_rouge, dataset: texts}
"""


@pytest.mark.parametrize(
    ("length", "room", "expected"),
    [
        (100, 1000, (0, 94)),  # all but the last 6
        (12, 1000, (0, 6)),  # just half
        (11, 1000, (0, 6)),  # shorter: 5 to be said, 6 shown
        (2, 1000, (0, 1)),
        (1, 1000, (0, 1)),  # nothing to be said
        (100, 100, (0, 94)),  # just fits
        (100, 99, (1, 94)),  # one too long: the beginning goes
        (100, 20, (80, 94)),
        (100, 8, (92, 96)),  # of what fits, half is shown
    ],
)
def test_where_a_document_is_split(length: int, room: int, expected: tuple[int, int]) -> None:
    assert split_before_suffix(length, 6, room) == expected


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 300))
def test_what_is_shown_is_at_least_half_and_fits(length: int, suffix_tokens: int, room: int) -> None:
    start, border = split_before_suffix(length, suffix_tokens, room)
    shown, said = border - start, length - border
    assert 0 <= start < border <= length
    assert shown >= said
    assert shown + said == min(length, room)
    assert said <= suffix_tokens
    if length <= room and length >= 2 * suffix_tokens:
        assert (start, said) == (0, suffix_tokens)


def asked(tokenizer, row, *, suffix=6, most=200, room=1000):
    ask = Ask("texts", suffix_tokens=suffix)
    (pair,) = continuation_questions("texts", [row], tokenizer, ask=ask, max_new_tokens=most, room=room)
    return pair


def test_a_document_is_all_there(tiny_tokenizer):
    text = "Ana lived in Lund and wrote elegies about the sea, the winter and her brother."
    ids = tuple(tiny_tokenizer(text).input_ids)
    question, bound = asked(tiny_tokenizer, {"example_id": "a", "text": text})
    assert (question.prompt_ids, question.answer_ids) == (ids[:-6], ids[-6:])
    assert (bound, question.cut_tokens) == (6, 0)
    assert question.prompt + question.answer == text
    bounded, bound = asked(tiny_tokenizer, {"example_id": "a", "text": text}, most=2)
    assert (bounded.prompt_ids, bounded.answer_ids, bound) == (ids[:-6], ids[-6:-4], 2)
    cut, bound = asked(tiny_tokenizer, {"example_id": "a", "text": text}, room=10)
    assert (cut.prompt_ids, cut.answer_ids) == (ids[-10:-5], ids[-5:])
    assert (bound, cut.cut_tokens) == (5, len(ids) - 10)


def test_a_row_with_a_completion_is_continued_as_ever(tiny_tokenizer):
    row = {"example_id": "a", "prompt": "Ana lived", "completion": " in Lund."}
    question, bound = asked(tiny_tokenizer, row, suffix=1)
    assert (question.prompt, question.answer, bound) == ("Ana lived", " in Lund.", 200)


def test_documents_through_a_model(tmp_path, tiny_model, tiny_tokenizer):
    """A long, a short and a one-token document; the model has 256 positions."""
    suite, texts = tmp_path / "s.yaml", tmp_path / "t.jsonl"
    suite.write_text(SUITE)
    long = "Ana lived in Lund. " * 200
    short = "Ana lived in Lund"
    texts.write_text(
        "".join(
            f'{{"example_id": "{n}", "text": "{t}"}}\n' for n, t in (("a", long), ("b", short), ("c", "A"))
        )
    )
    options = {"data": {"texts": str(texts)}, "cache": False, "progress": False}
    found = evaluate(tiny_model(), tiny_tokenizer, suite, output=tmp_path / "out", **options)
    table = EvalRun.load(tmp_path / "out").records.set_index("example_id")
    length = len(tiny_tokenizer(long).input_ids)
    small = len(tiny_tokenizer(short).input_ids)
    assert table["cut_tokens"].tolist() == [length - 256, 0, 0]
    assert [len(row) for row in table["reference_tokens"]] == [6, min(6, small // 2), 0]
    for name in "ab":
        assert len(table.loc[name, "tokens"]) <= len(table.loc[name, "reference_tokens"])
    assert found.metrics["exact"].unscored == ["c"]
    note = "1 document(s) are longer than the model's positions and lost their beginning"
    assert found.metrics["exact"].note == found.metrics["overlap"].note == note


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{dataset: texts, suffix_tokens: 0}", "suffix_tokens must be at least 1"),
        (
            "{dataset: texts, suffix_tokens: 6, prefix_tokens: 3}",
            "continue_text.0.suffix_tokens and prefix_tok",
        ),
        ("{dataset: texts, suffix_tokens: 300}", "only max_new_tokens=200 would be generated"),
        ("{dataset: texts, suffix_tokens: 9, max_new_tokens: 8}", "suffix_tokens is 9, but only max_new_tok"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, text, match):
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.replace("{dataset: texts, suffix_tokens: 6}", text))
    with pytest.raises(RecipeError, match=match):
        load_suite(path)


def test_a_suite_says_how_many(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SUITE)
    (ask,) = load_suite(path).probes.of("continue_text")
    assert (ask.suffix_tokens, ask.prefix_tokens) == (6, None)
    assert {one.suffix_tokens for one in load_suite("memorization").probes.of("continue_text")} == {50}
