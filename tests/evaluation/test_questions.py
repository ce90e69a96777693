"""Data sets -> questions: which pairs are asked, and what names them."""

from __future__ import annotations

import datasets
import pytest

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.evaluation.questions import generation_questions, likelihood_questions
from unlearnkit.evaluation.records import new_records
from unlearnkit.recipe import TemplateSpec


def rows_of(*rows):
    return canonical(datasets.Dataset.from_list(list(rows))).to_list()


@pytest.fixture
def asked(tiny_tokenizer):
    """`asked(rows)`: likelihood and generation questions in plain tags."""

    def ask(rows, spec=None):
        options = ("forget", rows, tiny_tokenizer, Template.for_tokenizer(tiny_tokenizer, spec))
        return likelihood_questions(*options), generation_questions(*options)

    return ask


def test_one_question_for_each_answer(asked, fictional_rows, tiny_tokenizer):
    rows = rows_of(*fictional_rows("forget10_perturbed"))
    likelihood, generation = asked(rows)
    for i, row in enumerate(rows):
        of_row = likelihood[7 * i : 7 * (i + 1)]
        assert [(q.field, q.index) for q in of_row] == [
            ("answer", 0), ("paraphrased_answer", 0), *(("perturbed_answer", k) for k in range(5)),
        ]  # fmt: skip
        texts = [row["completion"], row["paraphrased_answer"], *row["perturbed_answer"]]
        assert [q.answer for q in of_row] == texts
        for q, text in zip(of_row, texts, strict=True):
            assert tiny_tokenizer.decode(q.answer_ids) == f" {text}{tiny_tokenizer.eos_token}"
            assert tiny_tokenizer.decode(q.prompt_ids) == f"Question: {row['prompt']}\nAnswer:"
            assert (q.prompt, q.example_id, q.dataset) == (row["prompt"], row["example_id"], "forget")
        assert generation[i].field == "generation"
        assert generation[i].prompt_ids == of_row[0].prompt_ids
    assert len(likelihood) == 7 * len(rows)
    assert len(generation) == len(rows)


def test_rows_without_paraphrases_or_wrong_answers(asked):
    rows = rows_of(
        {"question": "Q1", "answer": "A", "paraphrased_answer": None, "perturbed_answer": None},
        {"question": "Q2", "answer": "A", "paraphrased_answer": "", "perturbed_answer": []},
        {"question": "Q3", "answer": "A", "paraphrased_answer": "P", "perturbed_answer": ["W", ""]},
    )
    fields = [(q.prompt, q.field, q.index) for q in asked(rows)[0]]
    assert fields == [
        ("Q1", "answer", 0), ("Q2", "answer", 0),
        ("Q3", "answer", 0), ("Q3", "paraphrased_answer", 0), ("Q3", "perturbed_answer", 0),
    ]  # fmt: skip
    single = rows_of({"question": "Q", "answer": "A", "perturbed_answer": "W"})
    assert [q.answer for q in asked(single)[0]] == ["A", "W"], "a single wrong answer may be plain text"


def test_messages_are_shown_as_text(asked):
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")]
    likelihood, generation = asked(rows_of({"messages": [{"role": r, "content": c} for r, c in turns]}))
    assert [(q.prompt, q.answer) for q in likelihood + generation] == [("One?\nYes.\nTwo?", "No.")] * 2


def test_documents(asked, tiny_tokenizer):
    text = "Ana lived in Lund and wrote elegies."
    ids = tuple(tiny_tokenizer(text).input_ids)
    (scored,), (spoken,) = asked(rows_of({"text": text}))
    assert (scored.prompt_ids, scored.answer_ids) == (ids[:1], ids[1:])
    half = len(ids) // 2
    assert (spoken.prompt_ids, spoken.answer_ids) == (ids[:half], ids[half:])
    assert spoken.prompt + spoken.answer == text
    (single,), _ = asked(rows_of({"text": "A"}))
    assert single.answer_ids == (), "a document of one token has nothing to score"


def test_names_are_of_tokens_alone(asked):
    rows = rows_of(
        {"question": "Q", "answer": "A"}, {"question": "Q", "answer": "B"}, {"question": "R", "answer": "A"}
    )
    likelihood, generation = asked(rows)
    assert len({q.pair for q in likelihood}) == 3
    assert generation[0].prompt_name == generation[1].prompt_name != generation[2].prompt_name
    assert [q.pair for q in asked(rows[::-1])[0]] == [q.pair for q in likelihood][::-1]
    other = asked(rows, TemplateSpec(answer_start="A: "))[0]
    assert not {q.pair for q in likelihood} & {q.pair for q in other}, "another template, other tokens"


def test_records(asked, tiny_tokenizer):
    (q,), (g,) = asked(rows_of({"question": "Q", "answer": "A"}))
    numbers = {"logps": [-1.0, -2.0], "hits": [True, False], "means": [-3.0, -3.0], "variances": [1.0, 1.0]}
    frame = new_records(
        [
            q.scored(numbers, {tiny_tokenizer.eos_token_id}),
            g.spoken({"text": "B", "tokens": [7], "num_new_tokens": 3}, {tiny_tokenizer.eos_token_id}),
        ]
    )
    assert frame["num_tokens"].tolist() == [2, 3]
    assert frame["ends_with_eos"].tolist() == [True, False]
    assert frame["reference_text"].tolist() == ["A", "A"]
    assert frame["text"].tolist()[1] == "B"
    assert not new_records([q.scored(numbers, {12345})])["ends_with_eos"].any()
