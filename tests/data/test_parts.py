"""Parts of a stream: pairs stay together, and answers are drawn by (index, epoch, seed) alone."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from unlearnkit.data.answers import AnswerColumn, Refusals
from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template, tokenize_stream
from unlearnkit.data.mixing import StreamMix
from unlearnkit.data.pairing import anchor_of
from unlearnkit.data.parts import StreamRows, draw, stream_of, streams_of, tokenize_parts
from unlearnkit.errors import DataError
from unlearnkit.recipe import MixSpec

FORGET = [
    {"prompt": f"Who wrote {i}?", "completion": f"Author {i}", "alternate_answer": [f"A{i}", f"B{i}"]}
    for i in range(4)
]
PAIRS = [{"prompt": f"Say {i}", "chosen": f"yes {i}", "rejected": f"never {i}"} for i in range(3)]


@pytest.fixture
def parts(tiny_tokenizer):
    """`parts(names, answers, **options)`: tokens by part and rows by stream of FORGET and PAIRS."""
    template = Template.for_tokenizer(tiny_tokenizer)

    def run(names, answers=None, *, epochs=3, seed=0, max_length=64, truncate=False, pairs=PAIRS):
        streams = {
            name: canonical(Dataset.from_list(rows)) for name, rows in (("forget", FORGET), ("pairs", pairs))
        }
        return tokenize_parts(
            names,
            streams,
            lambda rows, name: tokenize_stream(
                rows, tiny_tokenizer, template, max_length=max_length, truncate=truncate, name=name
            ),
            answers or {},
            epochs=epochs,
            seed=seed,
            max_length=max_length,
        )

    return run


@pytest.fixture
def answer_of(tiny_tokenizer):
    """The text that a token row teaches."""
    return lambda row: tiny_tokenizer.decode(
        [t for t in row["labels"] if t != -100], skip_special_tokens=True
    ).strip()


def test_names():
    assert stream_of("pairs.chosen") == "pairs"
    assert stream_of("retain") == "retain"
    assert streams_of(("forget", "forget.refusal", "retain")) == ("forget", "retain")


def test_a_pair_stays_together(parts, answer_of):
    tokenized, rows = parts(("pairs.chosen", "pairs.rejected"))
    assert list(tokenized) == ["pairs.chosen", "pairs.rejected"]
    mix = StreamMix(rows, seed=3)
    for n in range(9):
        item = mix[n]
        (chosen,), (rejected,) = item["pairs.chosen"], item["pairs.rejected"]
        number = n % 3
        assert chosen["example_id"] == rejected["example_id"]
        assert (answer_of(chosen), answer_of(rejected)) == (f"yes {number}", f"never {number}")


def test_the_rows_of_both_parts_are_aligned_in_a_batch(parts):
    tokenized, rows = parts(("pairs.chosen", "pairs.rejected"))
    batch = StreamCollator(tuple(tokenized), pad_id=0)([StreamMix(rows)[n] for n in (2, 0)])
    for part, table in tokenized.items():
        for row, number in zip(batch[part]["input_ids"].tolist(), (2, 0), strict=True):
            expected = table.rows[number]["input_ids"]
            assert row[: len(expected)] == expected
    assert batch["pairs.chosen"]["labels"].shape == batch["pairs.rejected"]["labels"].shape


def test_drawn_answers_follow_index_epoch_and_seed(parts, answer_of):
    """Every refusal of three comes once in three epochs; other rows and other seeds have other orders."""
    refusals = Refusals(("I do not know.", "I cannot say.", "No idea."))
    names, answers = ("forget", "forget.refusal"), {"forget.refusal": refusals}
    tokenized, rows = parts(names, answers)
    mix = StreamMix(rows)

    def drawn(some_mix):
        return [
            [answer_of(some_mix[epoch * 4 + i]["forget.refusal"][0]) for epoch in range(3)] for i in range(4)
        ]

    assert all(set(own) == set(refusals.texts) for own in drawn(mix))
    assert len({tuple(own) for own in drawn(mix)}) > 1
    assert drawn(StreamMix(parts(names, answers)[1])) == drawn(mix)
    assert drawn(StreamMix(parts(names, answers, seed=1)[1])) != drawn(mix)
    assert [answer_of(mix[i]["forget"][0]) for i in range(4)] == [r["completion"] for r in FORGET]
    assert len(tokenized["forget.refusal"].rows) == 12
    ids = [row["example_id"] for row in tokenized["forget.refusal"].rows]
    assert len(set(ids)) == 12


def test_only_what_is_drawn_is_tokenised(parts):
    answers = {"forget.refusal": Refusals.load()}
    tokenized, rows = parts(("forget", "forget.refusal"), answers, epochs=2)
    assert len(tokenized["forget.refusal"].rows) == 8
    assert [rows["forget"].at(1, 5)[part] for part in tokenized] == [
        rows["forget"].at(1, 1)[part] for part in tokenized
    ]  # epoch 5 of 2: begun anew


def test_alternates_belong_to_their_row(parts, answer_of):
    _, rows = parts(("forget", "forget.alternate"), {"forget.alternate": AnswerColumn("alternate_answer")})
    for epoch in range(4):
        for i in range(4):
            assert answer_of(rows["forget"].at(i, epoch)["forget.alternate"][0]) in (f"A{i}", f"B{i}")


def test_a_draw_takes_every_candidate_before_one_comes_again():
    table = draw([4, 1, 3], epochs=12, seed=5, name="x")
    for start in (0, 4, 8):
        assert sorted(table[start : start + 4, 0]) == [0, 1, 2, 3]
    assert (table[:, 1] == 0).all()
    for start in (0, 3, 6, 9):
        assert sorted(table[start : start + 3, 2]) == [0, 1, 2]
    longer = draw([4, 1, 3], epochs=20, seed=5, name="x")
    assert (longer[:12] == table).all()  # how many epochs are planned changes none of them


def test_lengths_are_those_of_the_longest_part():
    long, short = ({"input_ids": [1] * n} for n in (7, 2))
    rows = StreamRows({"a": [long, short], "a.b": [short, long]}, {"a.b": np.asarray([[1, 0], [0, 0]])})
    assert rows.lengths(0).tolist() == [7, 2]
    assert rows.lengths(1).tolist() == [7, 2]
    assert StreamRows({"a": [short, short], "a.b": [short, long]}).lengths(0).tolist() == [2, 7]
    assert len(rows) == 2


def test_what_truncation_leaves_equal_is_refused(parts):
    """Both sides begin alike; cut to the common beginning they are one answer."""
    alike = [
        {"prompt": "Q", "chosen": "one two three four five yes", "rejected": "one two three four five no"}
    ]
    names = ("pairs.chosen", "pairs.rejected")
    parts(names, pairs=alike)
    with pytest.raises(DataError, match=r"data\.pairs.*max_length"):
        parts(names, pairs=alike, max_length=14, truncate=True)


def test_the_anchor_without_a_word_about_it():
    assert anchor_of("forget", ("retain", "forget")) == "forget"
    assert anchor_of("forget", ("retain", "pairs")) == "pairs"
    assert anchor_of(None, ("train", "other")) == "train"
    assert anchor_of("other", ("train", "other")) == "other"
    assert len(StreamMix({"retain": range(9), "pairs": range(2)}, MixSpec())) == 2


def test_no_candidate_follows_itself():
    table = draw([2, 5, 1, 3], epochs=40, seed=1, name="x")
    assert (table[1:, [0, 1, 3]] != table[:-1, [0, 1, 3]]).all()
    assert (table[:, 2] == 0).all()


def test_an_answer_that_cutting_makes_the_rows_own_is_refused(parts):
    """Both begin alike for longer than there is room."""
    answers = {
        "forget.refusal": Refusals(("Author 2 and more of it, much more of it than there is room for",))
    }
    names = ("forget", "forget.refusal")
    parts(names, answers)
    with pytest.raises(DataError, match=r"data\.forget: .*forget\.refusal.*raise data\.max_length"):
        parts(names, answers, max_length=15, truncate=True)


def test_pairs_where_one_answer_is_read_are_refused(parts):
    with pytest.raises(
        DataError, match=r"data\.pairs holds preference pairs.*columns: \{completion: rejected\}"
    ):
        parts(("pairs",))
