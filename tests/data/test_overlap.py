"""A row that is to be forgotten and kept at once is found, however it is written, and named."""

from __future__ import annotations

import datasets
import pytest

from unlearnkit.data.columns import canonical
from unlearnkit.data.overlap import overlapping_rows, refuse_contradictions, refuse_overlap
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError
from unlearnkit.preflight import load_streams
from unlearnkit.recipe import DataSpec, ModelSpec, Recipe, StreamSpec
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.prepare import chosen_streams


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


# Streams that are forgotten as well, and streams of wrong answers


class _Opposite(UnlearnConfig):
    """Settings of a method that forgets two streams and is told wrong answers in a third."""

    forgotten_streams = ("forget", "paraphrase")
    wrong_answer_streams = ("perturbed",)


STREAMS = {
    "forget": table(pair("Who is Ana?", "A poet."), pair("Who is Bo?", "A baker.")),
    "paraphrase": table(pair("Who then is Ana?", "Poet."), pair("Who is Bo?", "A baker by trade.")),
    "perturbed": table(pair("who is ANA?", "A nurse."), pair("Who then is Ana?", "A cook.")),
    "retain": table(pair("Who is Di?", "A poet.")),
}
ROLES = (_Opposite.forgotten_streams, _Opposite.wrong_answer_streams)


def test_augmentation_may_ask_what_the_forget_set_asks():
    refuse_contradictions(STREAMS, *ROLES)
    for name in ("paraphrase", "perturbed"):  # to every other method these are rows to keep
        with pytest.raises(DataError, match=rf"are in the forget set and in the {name} set"):
            refuse_contradictions({"forget": STREAMS["forget"], name: STREAMS[name]})


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("retain", pair("Who then is ana?", "x"), r"^1 example\(s\) are in the paraphrase set and in the "
         r"retain set \(paraphrase row 0 = retain row 0, counted from 0\); remove"),
        ("retain", pair("Who is Ana?", "x"), r"are in the forget set and in the retain set \(forget row 0"),
        ("perturbed", pair("WHO is Ana?", " a  Poet."), r"^1 example\(s\) of the perturbed set, which holds "
         r"wrong answers, answer what the forget set answers \(forget row 0 = perturbed row 0, counted from "
         r"0\); remove them, or set data\.allow_overlap: true$"),
        ("perturbed", pair("Who then is Ana?", "Poet."), r"the paraphrase set answers \(paraphrase row 0"),
        ("perturbed", {"messages": [{"role": "user", "content": "Who is Ana?"},
         {"role": "assistant", "content": "A poet."}]}, r"what the forget set answers"),
    ],
)  # fmt: skip
def test_what_contradicts_them_is_named(name, row, message):
    with pytest.raises(DataError, match=message):
        refuse_contradictions(STREAMS | {name: table(row)}, *ROLES)


def test_texts_have_no_answers_that_could_differ():
    texts = {"forget": table({"text": "Ana wrote."}), "perturbed": table({"text": "ana  wrote."})}
    with pytest.raises(DataError, match="are in the forget set and in the perturbed set"):
        refuse_contradictions(texts, *ROLES)


def test_the_method_says_which_streams_these_are(tmp_path):
    """Before a model is loaded and where a trainer is made alike."""
    args = _Opposite(output_dir=str(tmp_path))
    assert set(chosen_streams(STREAMS, tuple(STREAMS), args)) == set(STREAMS)
    specs = {}
    for name, rows in STREAMS.items():
        rows.to_json(tmp_path / f"{name}.jsonl")
        specs[name] = [StreamSpec(str(tmp_path / f"{name}.jsonl"))]
    recipe = Recipe("npo", ModelSpec("m"), DataSpec(specs), "r")
    assert set(load_streams(recipe, tuple(STREAMS), args=args)) == set(STREAMS)
    plain = UnlearnConfig(output_dir=str(tmp_path))
    for check in (
        lambda: chosen_streams(STREAMS, tuple(STREAMS), plain),
        lambda: load_streams(recipe, tuple(STREAMS), args=plain),
    ):
        with pytest.raises(DataError, match="in the forget set and in the paraphrase set"):
            check()
