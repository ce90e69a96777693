"""Preference pairs: every way in which TRL writes them becomes one; every broken one is named."""

from __future__ import annotations

import json
import re

import datasets
import pytest
from trl.data_utils import maybe_extract_prompt

from unlearnkit.data.columns import canonical, content_id
from unlearnkit.data.formats import (
    IGNORE,
    Template,
    refuse_equal_pairs,
    tokenize_stream,
    with_answer,
)
from unlearnkit.data.overlap import refuse_kept_rejections, refuse_overlap
from unlearnkit.data.pairs import as_pairs
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError
from unlearnkit.recipe import StreamSpec, TemplateSpec

PLAIN = {"prompt": "Who?", "chosen": "Ana.", "rejected": "Bo."}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


CHAT = {"prompt": [user("Who?")], "chosen": [bot("Ana.")], "rejected": [bot("Bo.")]}
WHOLE = {"chosen": [user("Who?"), bot("Ana.")], "rejected": [user("Who?"), bot("Bo.")]}
LONG = {
    "chosen": [user("Hi"), bot("Yes?"), user("Who?"), bot("Ana.")],
    "rejected": [user("Hi"), bot("Yes?"), user("Who?"), bot("Bo.")],
}


def raw(*rows):
    return datasets.Dataset.from_list(list(rows))


def table(*rows, columns=None):
    return canonical(raw(*rows), columns, where="the set")


def sides(data):
    return [{name: row[name] for name in PLAIN} for row in data]


def refused(parts, *rows, columns=None):
    with pytest.raises(DataError, match=".*".join(map(re.escape, parts))) as caught:
        table(*rows, columns=columns)
    assert "\n" not in str(caught.value)


# Shapes


@pytest.mark.parametrize("row", [PLAIN, CHAT, WHOLE, LONG, {"prompt": "Who?", **WHOLE}])
def test_pairs_become_what_trl_makes_of_them(row):
    """Explicit and implicit prompts, plain and conversational: TRL's own reading is the oracle."""
    data = table(row)
    assert sides(data) == [maybe_extract_prompt(row)]
    assert data.column_names == ["prompt", "chosen", "rejected", "example_id"]


def test_an_answer_may_be_text_where_the_prompt_is_a_chat_and_the_other_way_round():
    for row in ({**PLAIN, "prompt": [user("Who?")]}, {**CHAT, "prompt": "Who?"}):
        assert sides(table(row)) == [row]


def test_trl_loses_an_answer_that_both_conversations_begin_with():
    """TRL's common beginning may swallow a whole side; here the last message is always the answer."""
    longer = [*WHOLE["chosen"], user("Sure?"), bot("No.")]
    refused(
        ["1 row(s) have a rejected of several messages after the prompt", "row 0"],
        {"chosen": WHOLE["chosen"], "rejected": longer},
    )


def test_names_of_columns():
    data = table({"q": "Who?", "good": "Ana.", "bad": "Bo."},
                 columns={"prompt": "q", "chosen": "good", "rejected": "bad"})  # fmt: skip
    assert sides(data) == [PLAIN]
    assert sides(table({"question": "Who?", "chosen": "Ana.", "rejected": "Bo."})) == [PLAIN]
    assert sides(table({**PLAIN, "chosen": 1984, "rejected": 1985}))[0]["chosen"] == "1984"


def test_twice_changes_nothing():
    for row in (PLAIN, CHAT, LONG):
        data = table(row, row)
        again = as_pairs(data, "x")
        assert again.to_list() == data.to_list()
        assert canonical(data).to_list() == data.to_list()


def test_further_columns_stay():
    data = table({**PLAIN, "example_id": "mine", "alternate_answer": ["Cy."], "score": 3})
    assert data.to_list() == [{**PLAIN, "example_id": "mine", "alternate_answer": ["Cy."]}]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({**PLAIN, "completion": "Di."}, ["prompt", "completion"]),
        ({**WHOLE, "messages": [user("Who?"), bot("Di.")]}, ["messages"]),
    ],
)
def test_beside_another_answer_both_uses_work(row, shape):
    data = table(row)
    assert data.column_names == [*shape, "chosen", "rejected", "example_id"]
    pairs = as_pairs(data, "data.pairs")
    assert pairs.column_names == ["prompt", "chosen", "rejected", "example_id"]
    assert sides(pairs) == [maybe_extract_prompt(row) if "messages" in row else PLAIN]
    assert data["example_id"] == [content_id({c: row[c] for c in shape})], "an id is by the answer alone"


def test_sides_that_nobody_asks_for_are_not_judged():
    broken = {"prompt": "Who?", "completion": "Di.", "chosen": None, "rejected": ""}
    data = table(broken, broken)
    with pytest.raises(DataError, match=r"data\.pairs: 2 row\(s\) have an empty chosen"):
        as_pairs(data, "data.pairs")
    with pytest.raises(DataError, match=r"data\.pairs has no column rejected.*`columns: \{prompt"):
        as_pairs(data.remove_columns("rejected"), "data.pairs")


def test_pairs_come_before_a_column_of_texts():
    assert table({**PLAIN, "text": "t"}).column_names == ["prompt", "chosen", "rejected", "example_id"]


def test_ids_name_both_sides():
    other = {**PLAIN, "rejected": "Cy."}
    ids = table(PLAIN, other, PLAIN)["example_id"]
    assert ids == [content_id(PLAIN), content_id(other), f"{content_id(PLAIN)}-2"]
    assert len(set(ids)) == 3
    named = {**CHAT, "prompt": [{**user("Who?"), "name": "Bo"}]}
    assert table(CHAT)["example_id"] == table(named, CHAT)["example_id"][1:], "whatever stands in other rows"


# Streams


def test_several_sources(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(json.dumps({**PLAIN, "alternate_answer": "Cy."}) + "\n")
    two.write_text(
        json.dumps({**PLAIN, "prompt": "When?", "completion": "x", "alternate_answer": "Di."}) + "\n"
    )
    data = load_stream([StreamSpec(path=str(one)), StreamSpec(path=str(two))], name="pairs")
    assert set(data.column_names) == {*PLAIN, "alternate_answer", "example_id"}
    assert list(data["prompt"]) == ["Who?", "When?"]
    (tmp_path / "three.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(DataError, match="different columns"):
        load_stream([StreamSpec(path=str(one)), StreamSpec(path=str(tmp_path / "three.jsonl"))])


def test_the_built_in_benchmarks_pairs():
    data = load_stream(StreamSpec("fictional", name="pairs", limit=40), name="pairs")
    assert data.column_names == ["prompt", "chosen", "rejected", "example_id"]
    assert len(set(data["example_id"])) == 40


# Bad rows


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("  ", ["2 row(s) have an empty SIDE (row 1, 2", "fill them in or remove them"]),
        (None, ["2 row(s) have an empty SIDE"]),
    ],
)
def test_an_empty_side(side, value, parts):
    bad = {**PLAIN, side: value}
    refused([part.replace("SIDE", side) for part in parts], PLAIN, bad, bad)


@pytest.mark.parametrize("prompt", [" ", None])
def test_an_empty_prompt(prompt):
    refused(["1 row(s) have an empty prompt (row 1"], PLAIN, {**PLAIN, "prompt": prompt})


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "rejected": " Ana.\n"},
        {**CHAT, "rejected": [bot("Ana. ")]},
        {"chosen": WHOLE["chosen"], "rejected": WHOLE["chosen"]},
    ],
)
def test_equal_sides(row):
    refused(["1 row(s) have the same text as chosen and as rejected (row 0", "nothing to prefer"], row)


def test_case_may_be_what_is_preferred():
    assert table({**PLAIN, "rejected": "ana."})["rejected"] == ["ana."]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({**CHAT, "chosen": [user("Ana.")]}, ["have a chosen that does not end with the assistant's"]),
        ({"chosen": WHOLE["chosen"], "rejected": WHOLE["chosen"][:1]}, ["have a rejected that does not end"]),
        ({**CHAT, "rejected": []}, ["empty rejected"]),
        ({**CHAT, "rejected": [bot("")]}, ["empty rejected"]),
        ({**CHAT, **WHOLE}, ["have a chosen of several messages after the prompt", "put the earlier ones"]),
        ({"chosen": [bot("Ana.")], "rejected": [bot("Bo.")]}, ["no prompt", "`columns: {prompt: ...}`"]),
        ({"chosen": "Who? Ana.", "rejected": "Who? Bo."}, ["no prompt", "`columns: {prompt: ...}`"]),
        ({"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("d")]}, ["several messages"]),
        ({**PLAIN, "chosen": ["Ana."]}, ["have a chosen that is neither text nor a list of messages"]),
        ({**PLAIN, "prompt": ["Who?"]}, ["have a prompt that is neither text nor a list of messages"]),
        ({"prompt": "Who?", "chosen": "Ana."}, ["columns prompt, chosen", "prompt with chosen and rejected"]),
    ],
)
def test_conversations_that_are_no_pair(row, parts):
    refused(parts, row)


# Overlap with the other streams


def test_a_pair_may_ask_what_is_to_be_forgotten_but_not_reject_what_is_kept():
    pairs = table(PLAIN, {"prompt": "When?", "chosen": "1984.", "rejected": "1985."})
    kept = [
        table({"prompt": " when? ", "completion": "1985. "}),
        table({"messages": [user("When?"), bot("1985.")]}),
        table({"prompt": "When?", "chosen": "1985.", "rejected": "1."}),
    ]
    for retain in kept:
        with pytest.raises(DataError, match=r"1 pair\(s\) reject .*keep set.*pairs row 1 = keep row 0, .*"
                           r"data\.allow_overlap: true"):  # fmt: skip
            refuse_kept_rejections(pairs, retain, retain_name="keep")
    for retain in (
        table({"prompt": "When?", "completion": "1984."}),
        table({"prompt": "Who?", "completion": "1985."}),
        table({"text": "1985."}),
        table({"prompt": "When?", "completion": "1984.", "chosen": "1985.", "rejected": "1."}),
    ):
        refuse_kept_rejections(pairs, retain)


def test_a_shared_prompt_alone_is_an_overlap_of_forget_and_retain_only():
    with pytest.raises(DataError, match="forget row 0 = retain row 0"):
        refuse_overlap(table({"prompt": "Who?", "completion": "x"}), table(PLAIN))


# Tokens


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "x"},
        {"prompt": [user("Who?")], "completion": [bot("x")]},
        {"messages": [user("Who?"), bot("x")]},
        PLAIN,
    ],
)
@pytest.mark.parametrize("answer", ["Ana.", [bot("Ana.")]])
@pytest.mark.parametrize("kind", ["plain", "llama"])
def test_another_answer_to_the_same_question(tiny_tokenizer, chat_tokenizer, row, answer, kind):
    """The tokens are those of the plain row with that answer, whatever shape the row had."""
    tokenizer = tiny_tokenizer if kind == "plain" else chat_tokenizer(kind)
    template = Template.for_tokenizer(tokenizer, TemplateSpec())

    def tokens(rows):
        return tokenize_stream(rows, tokenizer, template, max_length=64).rows

    row = table(row)[0]
    answered = with_answer(row, answer)
    assert tokens([answered]) == tokens(
        [{"prompt": "Who?", "completion": "Ana.", "example_id": row["example_id"]}]
    )
    assert "Ana." in tokenizer.decode([t for t in tokens([answered])[0]["labels"] if t != IGNORE])


def test_a_text_cannot_be_answered():
    with pytest.raises(DataError, match=r"example .* is a text without a prompt.*prompt and completion"):
        with_answer(table({"text": "t"})[0], "Ana.")


def tokenized(tokenizer, pairs, max_length, truncate=True):
    template = Template.for_tokenizer(tokenizer, TemplateSpec())
    return [
        tokenize_stream(
            [with_answer(row, row[side]) for row in pairs], tokenizer, template, max_length=max_length,
            truncate=truncate, name=f"pairs.{side}",
        )
        for side in ("chosen", "rejected")
    ]  # fmt: skip


def test_pairs_whose_difference_was_cut_off_are_named(tiny_tokenizer):
    """The second pair differs at its end alone: at one token less than its length both sides are the same
    but for the last token, at one less than that they are equal.
    """
    tail = {
        "prompt": "Who?",
        "chosen": "She wrote elegies in Lund a",
        "rejected": "She wrote elegies in Lund b",
    }
    pairs = table(PLAIN, tail)
    whole = tokenized(tiny_tokenizer, pairs, 64)
    refuse_equal_pairs(*whole, "pairs", 64)
    length = whole[0].lengths[1]
    differ = next(
        i for i, (a, b) in enumerate(zip(*(t.rows[1]["input_ids"] for t in whole), strict=True)) if a != b
    )
    assert whole[0].lengths[0] < differ < length
    refuse_equal_pairs(*tokenized(tiny_tokenizer, pairs, differ + 1), "pairs", differ + 1)
    with pytest.raises(DataError, match=rf"data\.pairs: 1 pair\(s\) .*same tokens \(row 1, counted.*"
                       rf"data\.max_length={differ} cuts off where they differ, so raise it"):  # fmt: skip
        refuse_equal_pairs(*tokenized(tiny_tokenizer, pairs, differ), "pairs", differ)


def test_equal_tokens_without_a_cut_are_not_blamed_on_the_length(chat_tokenizer):
    """The template trims what stands around an answer's text."""
    pairs = table({**PLAIN, "chosen": "Ana.", "rejected": "Ana\u00a0."})
    one, _ = tokenized(chat_tokenizer(), pairs, 64)
    with pytest.raises(DataError, match="the template or the tokenizer drops"):
        refuse_equal_pairs(one, one, "pairs", 64)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_that_does_not_fit_is_named(tiny_tokenizer, side):
    pairs = table(PLAIN, {**PLAIN, side: "She wrote elegies in Lund, and nobody read them."})
    with pytest.raises(DataError, match=rf"data\.pairs\.{side}: 1 example\(s\) do not fit .*row 1 has .*"
                       r"set data\.max_length to \d+ or more, or data\.truncate: true"):  # fmt: skip
        tokenized(tiny_tokenizer, pairs, 20, truncate=False)


def test_a_side_of_which_cutting_leaves_nothing_is_refused(tiny_tokenizer):
    pairs = table({**PLAIN, "prompt": "Who wrote elegies in Lund, and did anybody read them?"})
    with pytest.raises(DataError, match=r"data\.pairs\.chosen: 1 example\(s\) do not fit data\.max_length=9.*"
                       r" to \d+ or more; cutting would leave nothing of their answers"):  # fmt: skip
        tokenized(tiny_tokenizer, pairs, 9)
