"""Risky stretches: read strictly, kept by every shape, and mapped to exactly the tokens that they cover."""

from __future__ import annotations

import itertools
import json
import re

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unlearnkit.data.columns import canonical, content_id
from unlearnkit.data.encoding import encode
from unlearnkit.data.formats import IGNORE, Template, text_to_learn, tokenize_stream
from unlearnkit.data.spans import Span, merged, spans_of, token_risks
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError
from unlearnkit.methods.slung import SLUNG
from unlearnkit.recipe import StreamSpec, TemplateSpec

ANA = {"start": 3, "end": 6, "risk": "high"}


def row(*spans):
    return {"example_id": "e7", "spans": list(spans)}


# Reading


def test_spans_come_in_order_and_those_of_one_class_that_overlap_become_one():
    found = spans_of(row((8, 9, "low"), (2, 5, "high"), (0, 3, "high"), (5, 6, "high")), "0123456789")
    assert found == ((0, 5, "high"), (5, 6, "high"), (8, 9, "low"))
    assert spans_of(row(ANA), "0123456789") == (Span(3, 6, "high"),)


@pytest.mark.parametrize("value", [None, [], ()])
def test_a_row_may_have_none(value):
    assert (
        spans_of({"example_id": "e", "spans": value}, "text") == spans_of({"example_id": "e"}, "text") == ()
    )


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("high", ["'high'", "list of"]),
        ({"start": 1}, ["list of"]),
        ([{"start": 1, "end": 3}], ["is no span", "risk, which is a word"]),
        ([{"start": 1, "end": 3, "risk": " "}], ["is no span"]),
        ([{"start": 1, "end": 3, "risk": None}], ["is no span"]),
        ([{"start": 1.0, "end": 3, "risk": "high"}], ["1.0", "whole numbers"]),
        ([{"start": True, "end": 3, "risk": "high"}], ["whole numbers"]),
        ([(1, 3)], ["is no span"]),
        ([7], ["7 is no span"]),
        ([(1, 1, "high")], ["1:1 (high)", "4 characters", "from 0"]),
        ([(3, 2, "high")], ["3:2"]),
        ([(-1, 2, "high")], ["-1:2"]),
        ([(2, 5, "high")], ["2:5", "4 characters"]),
        ([(0, 3, "high"), (2, 4, "middle")], ["0:3 high and 2:4 middle", "shorten one"]),
    ],
)  # fmt: skip
def test_what_is_refused(value, parts):
    with pytest.raises(DataError, match=".*".join(map(re.escape, ["example e7", *parts]))) as caught:
        spans_of({"example_id": "e7", "spans": value}, "text")
    assert "\n" not in str(caught.value)


SPAN = st.tuples(st.integers(0, 30), st.integers(1, 9)).map(lambda p: Span(p[0], p[0] + p[1], "high"))
SPANS = st.lists(SPAN, max_size=8)


@settings(deadline=None)
@given(SPANS)
def test_merging_keeps_every_character_and_no_other(spans):
    found = merged(spans, "e")
    assert {c for s in found for c in range(s.start, s.end)} == {
        c for s in spans for c in range(s.start, s.end)
    }
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    assert merged(found, "e") == found


# Columns


def test_every_shape_keeps_them_and_their_content_ids():
    shapes = [
        {"prompt": "Who?", "completion": "It is Ana."},
        {"question": "Who?", "answer": "It is Ana."},
        {"text": "It is Ana."},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is Ana."}]},
    ]
    for shape in shapes:
        table = canonical(datasets.Dataset.from_list([{**shape, "spans": [ANA]}, {**shape, "spans": None}]))
        assert table["spans"][:] == [[ANA], None]
        bare = canonical(datasets.Dataset.from_list([shape, shape]))
        assert table["example_id"][:] == bare["example_id"][:]
        assert content_id({**table[0]}) == bare[0]["example_id"]
        assert text_to_learn(table[0]) == "It is Ana."


def test_json_lines_with_and_without(tmp_path):
    """Rows without, with null and with an empty list, and a column of another name."""
    rows = [{"text": "So Ana says.", "risky": [ANA]}, {"text": "a"}, {"text": "b", "risky": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, {"text": "c", "risky": []}]))
    table = load_stream(StreamSpec(path=str(path), columns={"text": "text", "spans": "risky"}))
    assert [spans_of(one, one["text"]) for one in table] == [(Span(3, 6, "high"),), (), (), ()]


# Tokens


def test_a_token_is_risky_if_it_overlaps_or_is_the_white_space_before():
    """ "My  friend" with a span on "friend": two spaces, of which the second touches it."""
    text = "My  friend's"
    offsets = [(0, 2), (2, 3), (3, 4), (4, 10), (10, 12)]
    assert token_risks(text, offsets, [Span(4, 10, "high")]) == ["", "", "high", "high", ""]
    assert token_risks(text, [(2, 5), (5, 11)], [Span(4, 10, "high")]) == ["high", "high"]  # in part
    assert token_risks(text, [(0, 2), (2, 4)], [Span(2, 4, "a"), Span(4, 10, "b")]) == ["", "a"]
    assert token_risks(text, [(0, 0), (12, 12)], [Span(0, 2, "high")]) == ["", ""]  # special tokens
    assert token_risks(text, [(4, 4)], [Span(4, 10, "high")]) == ["high"]  # a space with its range trimmed
    assert token_risks(text, offsets, []) == [""] * 5


def test_of_two_classes_the_one_that_covers_more_of_a_token_counts():
    spans = [Span(0, 2, "a"), Span(2, 3, "b"), Span(3, 8, "c")]
    assert token_risks("x" * 8, [(0, 3), (1, 3), (1, 8)], spans) == ["a", "a", "c"]


@settings(deadline=None)
@given(SPANS, st.lists(st.integers(1, 4), max_size=12))
def test_the_search_finds_what_a_look_at_every_pair_finds(spans, lengths):
    text = "ab cd " * 8
    edges = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    offsets = list(itertools.pairwise(edges))
    spans = merged(spans, "e")
    expected = [
        any(a < s.end and s.start < b for s in spans)
        or (text[a:b].isspace() and any(s.start == b for s in spans))
        for a, b in offsets
    ]
    assert [bool(risk) for risk in token_risks(text, offsets, spans)] == expected


def covered(tokenizer, text, word):
    """The tokens of `text` that a span on `word` makes risky, as pieces of the text."""
    start = text.index(word)
    tokens = encode(tokenizer, text, offsets=True)
    risks = token_risks(text, tokens.offsets, [Span(start, start + len(word), "high")])
    return [text[a:b] for (a, b), risk in zip(tokens.offsets, risks, strict=True) if risk]


def test_a_byte_level_tokenizer_with_characters_of_several_bytes(tiny_tokenizer):
    """Every token of a character of four bytes stands for the whole of it."""
    for word in ("José", "😀", "李明", "n\N{COMBINING TILDE}o"):
        text = f"So {word}'s book"
        found = covered(tiny_tokenizer, text, word)
        assert "".join(dict.fromkeys("".join(found))).strip() == "".join(dict.fromkeys(word))
        rest = text.replace(word, "")
        assert set("".join(found)) - set(word) <= {" "}
        assert covered(tiny_tokenizer, text, "book") == covered(tiny_tokenizer, f"{rest}", "book")


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer of which white space is a token of its own."""
    words = {word: i for i, word in enumerate(["[UNK]", "</s>", " ", "So", "Ana", "says", "it", ".", "'s"])}
    raw = RawTokenizer(models.WordLevel(words, unk_token="[UNK]"))
    splits = [pre_tokenizers.Split(cut, "isolated") for cut in (" ", "'s", ".")]
    raw.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="[UNK]")


def test_a_tokenizer_with_tokens_for_spaces(spaced):
    assert covered(spaced, "So Ana says it", "Ana") == [" ", "Ana"]
    assert covered(spaced, "So Ana says it", "So") == ["So"]
    assert covered(spaced, "So Ana's", "Ana") == [" ", "Ana"]


# Through the template


def masked(tokenizer, row, kind, **options):
    """What the masked variant leaves out of the labels of one row, decoded; and what is left."""
    template = Template.for_tokenizer(tokenizer, TemplateSpec(kind=kind))
    whole = tokenize_stream([row], tokenizer, template, max_length=128, **options).rows
    rows = tokenize_stream([row], tokenizer, template, max_length=128, selectors=[SLUNG()], **options).rows
    gone, kept = [], []
    for one, other in zip(rows, whole, strict=True):
        assert one["input_ids"] == other["input_ids"]  # nothing leaves the context
        for new, old in zip(one["labels"], other["labels"], strict=True):
            (gone if new != old else kept).append(old)
    return tokenizer.decode(gone), tokenizer.decode([token for token in kept if token != IGNORE])


@pytest.mark.parametrize("kind", ["plain", "llama", "qwen"])
def test_spans_of_an_answer_are_counted_from_the_answer(chat_tokenizer, tiny_tokenizer, kind):
    """The same word stands in the prompt; a chat template may strip the answer."""
    tokenizer = tiny_tokenizer if kind == "plain" else chat_tokenizer(kind)
    for answer in ("It is Reyes who writes.", " Reyes and Reyes write. "):
        start = answer.index("Reyes")
        example = {
            "example_id": "e", "prompt": "Who is Reyes? Is it Reyes?", "completion": answer,
            "spans": [{"start": start, "end": start + 5, "risk": "high"}],
        }  # fmt: skip
        gone, kept = masked(tokenizer, example, "plain" if kind == "plain" else "chat")
        assert gone.strip() == "Reyes"
        assert kept.strip().startswith(("It is who writes.", "and Reyes write."))


def test_an_answer_is_not_looked_for_in_what_the_template_writes_before_it(chat_tokenizer):
    """The template writes a tag that holds the answer's word, before it or behind it."""
    tokenizer = chat_tokenizer("qwen")
    body = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n{% else %}"
    end = "{% endif %}{% endfor %}"
    example = {
        "example_id": "e", "prompt": "What?", "completion": "think",
        "spans": [{"start": 0, "end": 5, "risk": "high"}],
    }  # fmt: skip
    tokenizer.chat_template = body + "<think></think>{{ m.content }}" + tokenizer.eos_token + "\n" + end
    gone, kept = masked(tokenizer, example, "chat")
    assert gone == "think"
    assert kept.startswith("<think></think>")
    tokenizer.chat_template = body + "<think>{{ m.content }}</think>" + tokenizer.eos_token + end
    with pytest.raises(DataError, match=r"example e: .*more than once"):
        masked(tokenizer, example, "chat")


def test_spans_survive_cutting_and_pieces(tiny_tokenizer):
    """A document in pieces of eight tokens, and an answer of which the end is cut away."""
    text = " ".join(["one two Reyes three"] * 6) + " and more"
    spans = [{"start": m.start(), "end": m.end(), "risk": "high"} for m in re.finditer("Reyes", text)]
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    document = {"example_id": "d", "text": text, "spans": spans}
    pieces = tokenize_stream([document], tiny_tokenizer, template, max_length=8, selectors=[SLUNG()]).rows
    whole = tokenize_stream([document], tiny_tokenizer, template, max_length=512, selectors=[SLUNG()]).rows
    assert len(pieces) > 3
    assert [token for piece in pieces for token in piece["input_ids"]] == whole[0]["input_ids"]
    labels = [label for piece in pieces for label in piece["labels"]]
    starts = [i * 8 for i in range(len(pieces))]
    assert all(labels[i] == IGNORE for i in starts)  # a piece's first token is no target
    assert all(
        a == b for i, (a, b) in enumerate(zip(labels, whole[0]["labels"], strict=True)) if i not in starts
    )

    answer = {"example_id": "a", "prompt": "Say:", "completion": text, "spans": spans}
    full = tokenize_stream([answer], tiny_tokenizer, template, max_length=512, selectors=[SLUNG()]).rows[0]
    cut = tokenize_stream(
        [answer], tiny_tokenizer, template, max_length=30, truncate=True, selectors=[SLUNG()]
    ).rows[0]  # fmt: skip
    assert cut["labels"] == full["labels"][:30]
    assert IGNORE in full["labels"][20:30]
