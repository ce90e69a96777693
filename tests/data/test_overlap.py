"""A row that is to be forgotten and kept at once is found, however it is written, and named."""

from __future__ import annotations

import datasets
import pytest

from unlearnkit.data.columns import canonical
from unlearnkit.data.overlap import overlapping_rows, refuse_overlap
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError
from unlearnkit.recipe import StreamSpec


def table(*rows):
    return canonical(datasets.Dataset.from_list(list(rows)))


def pair(prompt, completion="x"):
    return {"prompt": prompt, "completion": completion}


FORGET = table(pair("Who is Ana?"), pair("Who is Bo?"), pair("Who is Cy?"))


@pytest.mark.parametrize(
    "row",
    [
        pair("Who is Bo?", "another answer"),
        pair("  who is\tBO? "),
        pair("Who is Bo？"),
        pair([{"role": "user", "content": "Who is Bo?"}]),
        {"messages": [{"role": "user", "content": "Who is Bo?"}, {"role": "assistant", "content": "x"}]},
    ],
)
def test_the_same_question_is_found_in_any_dress(row):
    assert overlapping_rows(FORGET, table(row)) == [(1, 0)]


@pytest.mark.parametrize(
    "row",
    [
        pair("Who is Bob?"),
        pair("x", "Who is Bo?"),
        {"text": "Who was Bo?"},
        pair([{"role": "user", "content": "Bo?"}]),
    ],
)
def test_other_questions_are_none(row):
    assert overlapping_rows(FORGET, table(row)) == []


def test_documents_and_longer_chats():
    assert overlapping_rows(table({"text": "A  b."}), table({"text": "c"}, {"text": "a B."})) == [(0, 1)]

    def chat(first):
        turns = [("user", first), ("assistant", "Yes."), ("user", "And?"), ("assistant", "No.")]
        return {"messages": [{"role": r, "content": c} for r, c in turns]}

    assert overlapping_rows(table(chat("One?")), table(chat("Two?"), chat("One?"))) == [(0, 1)]


def test_the_message_names_the_first_rows_and_the_setting():
    retain = table(*(pair(f"Q{i}") for i in range(3)), *(pair(f"Who is {n}?") for n in ("Cy", "Ana", "Ana")))
    with pytest.raises(DataError) as caught:
        refuse_overlap(FORGET, retain, retain_name="keep")
    assert str(caught.value) == (
        "2 example(s) are in the forget set and in the keep set (forget row 0 = keep row 4, "
        "forget row 2 = keep row 3, counted from 0); remove them from one side, or set "
        "data.allow_overlap: true"
    )
    many = table(*(pair(f"Q{i}") for i in range(8)))
    with pytest.raises(DataError, match=r"8 example\(s\).*forget row 4 = retain row 4 and 3 more"):
        refuse_overlap(many, many)
    refuse_overlap(FORGET, table(pair("Q")))


def test_the_benchmarks_splits_do_not_overlap():
    def split(name):
        return load_stream(StreamSpec("fictional", name=name))

    refuse_overlap(split("forget10"), split("retain90"))
    assert len(overlapping_rows(split("forget10"), split("full"))) == len(split("forget10"))
