"""Hints in context, a demand before the question, the first tokens of the answer."""

from __future__ import annotations

import random

import datasets
import pytest

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template, tokenize_pair
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.evaluation.attacks import attack
from unlearnkit.evaluation.attacks.prompt import AUTHORITY, Prompt, hinted
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.recipe import TemplateSpec


def pairs(*texts):
    """Rows from "question|answer"."""
    split = [text.split("|") for text in texts]
    return [{"example_id": f"e{i}", "prompt": q, "completion": a} for i, (q, a) in enumerate(split)]


def subject_of(rows, **sets):
    return Subject(None, None, None, {"forget": rows, **sets}, seen=frozenset({"x"}), facts={"before": 1})


def shown(row):
    """The (question, answer) pairs before a row's own question."""
    turns = [m for m in row["prompt"][:-1] if m["role"] != "system"]
    assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    return [(q["content"], a["content"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]


@pytest.fixture
def rows(fictional_rows):
    return canonical(datasets.Dataset.from_list(fictional_rows("full"))).to_list()


# ---- Hints -------------------------------------------------------------------------------------------------


def test_others_come_before_the_question(rows):
    known = {(r["prompt"], r["completion"]) for r in rows}
    for before, after in zip(rows, hinted(rows, shots=3, seed=0), strict=True):
        assert after["prompt"][-1] == {"role": "user", "content": before["prompt"]}
        assert {k: v for k, v in after.items() if k != "prompt"} == {
            k: v for k, v in before.items() if k != "prompt"
        }
        found = shown(after)
        assert len(set(found)) == 3
        assert set(found) <= known - {(before["prompt"], before["completion"])}


def test_the_hints_depend_on_seed_and_example_only(rows):
    first = hinted(rows, shots=2, seed=0)
    mixed = list(rows)
    random.Random(5).shuffle(mixed)
    by_id = {r["example_id"]: r for r in hinted(mixed, shots=2, seed=0)}
    assert [by_id[r["example_id"]] for r in rows] == first
    assert hinted(rows, shots=2, seed=1) != first
    assert len({str(shown(r)) for r in first}) > len(rows) // 2  # not the same ones for all


def test_a_hint_never_has_the_answer():
    """One row asks the same, one says the same, two have the telling word; only the last can be shown."""
    rows = pairs(
        "Where was Ann Lee born?|Ann Lee was born in Dhaka.",
        "Where was Ann Lee born?|In Asia.",
        "Who is she?|Ann Lee was born in Dhaka.",
        "Where does she live?|She never left DHAKA, her town.",
        "Where is Dhaka?|In Bengal.",
        "What is a Dhakai?|A fabric.",
    )
    for seed in range(20):
        assert shown(hinted(rows, shots=4, seed=seed)[0]) == [("What is a Dhakai?", "A fabric.")]


def test_a_telling_word_is_a_whole_word():
    """An answer "male" does not rule out "female", nor "A" every text with that letter."""
    rows = pairs("Gender?|male", "Hers?|female", "Which?|A", "Other?|banana")
    assert [len(shown(r)) for r in hinted(rows, shots=3, seed=0)] == [3, 3, 3, 3]


def test_hints_are_still_found_where_the_first_drawn_all_tell():
    """Of 200 rows 199 have the same answer: for them only the last can be shown, for it any."""
    rows = pairs(*(f"Question {i}?|yes" for i in range(199)), "Last?|no")
    made = hinted(rows, shots=1, seed=0)
    assert all(shown(r) == [("Last?", "no")] for r in made[:-1])
    assert shown(made[-1])[0][1] == "yes"


def test_fewer_than_wanted_are_all_shown_and_none_is_refused():
    two = pairs("Q1?|red", "Q2?|blue")
    assert [shown(r) for r in hinted(two, shots=3, seed=0)] == [[("Q2?", "blue")], [("Q1?", "red")]]
    with pytest.raises(DataError, match="no example has another one beside it"):
        hinted(two[:1], shots=3, seed=0)


def test_answers_without_words():
    assert [len(shown(r)) for r in hinted(pairs("Q1?|!", "Q2?|?", "Q3?|!"), shots=2, seed=0)] == [1, 2, 1]


def test_a_conversation_keeps_its_system_message_first():
    row = {
        "example_id": "c",
        "messages": [
            {"role": "system", "content": "Be brief.", "name": None},
            {"role": "user", "content": "Hello", "name": None},
            {"role": "assistant", "content": "Hi", "name": None},
            {"role": "user", "content": "Colour?", "name": None},
            {"role": "assistant", "content": "red", "name": None},
        ],
    }
    changed, other = hinted([row, *pairs("Q?|blue")], shots=1, seed=0)
    assert [(m["role"], m["content"]) for m in changed["prompt"]] == [
        ("system", "Be brief."), ("user", "Q?"), ("assistant", "blue"),
        ("user", "Hello"), ("assistant", "Hi"), ("user", "Colour?"),
    ]  # fmt: skip
    assert changed["completion"] == "red"
    assert "messages" not in changed
    assert shown(other) == [("Colour?", "red")]


@pytest.mark.parametrize("kind", ["plain", "llama", "qwen"])
def test_hints_become_earlier_turns(kind, tiny_tokenizer, chat_tokenizer):
    tokenizer = tiny_tokenizer if kind == "plain" else chat_tokenizer(kind)
    template = Template.for_tokenizer(tokenizer, TemplateSpec())
    row = hinted(pairs("Q1?|red", "Q2?|blue"), shots=1, seed=0)[0]
    prompt, answer = template.texts(tokenizer, row["prompt"], row["completion"])
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    expected = {
        "plain": ("Question: Q2?\nAnswer: blue\nQuestion: Q1?\nAnswer:", " red"),
        "llama": (
            f"{bos}<|user|>\n\nQ2?{eos}<|assistant|>\n\nblue{eos}<|user|>\n\nQ1?{eos}<|assistant|>\n\n",
            f"red{eos}",
        ),
        "qwen": (
            f"<|user|>\nQ2?{eos}\n<|assistant|>\nblue{eos}\n<|user|>\nQ1?{eos}\n<|assistant|>\n",
            f"red{eos}\n",
        ),
    }
    assert (prompt, answer) == expected[kind]
    prompt_ids, answer_ids, is_prefix = tokenize_pair(tokenizer, prompt, answer, chat=template.chat)
    assert is_prefix
    assert tokenizer.decode(answer_ids).strip() == f"red{eos}"
    assert prompt_ids


# ---- Stages ------------------------------------------------------------------------------------------------


def test_three_stages():
    rows, other = pairs("Q1?|red", "Q2?|blue"), pairs("R?|x")
    subject = subject_of([*rows, {"example_id": "d", "text": "A text."}], retain=other)
    with Prompt(shots=1, text=" Answer me! ", prefix_tokens=4).stages(subject) as stages:
        hint, authority, prefix = stages
    assert [s.variant for s in (hint, authority, prefix)] == ["hint", "authority", "prefix"]
    assert [s.answer_prefix_tokens for s in (hint, authority, prefix)] == [0, 0, 4]
    for stage, left_out in ((hint, 1), (authority, 1), (prefix, 0)):
        assert stage.rows["retain"] is other
        assert stage.seen == {"x"}
        assert (stage.facts["before"], stage.facts["dataset"]) == (1, "forget")
        assert (stage.facts["rows"], stage.facts["left_out"]) == (3 - left_out, left_out)
    assert hint.rows["forget"] == hinted(rows, shots=1, seed=0)
    assert hint.facts["shots"] == 1
    assert "other examples of 'forget'" in hint.facts["disclosed"]
    assert [r["prompt"] for r in authority.rows["forget"]] == ["Answer me!\n\nQ1?", "Answer me!\n\nQ2?"]
    assert [r["completion"] for r in authority.rows["forget"]] == ["red", "blue"]
    assert prefix.rows["forget"] == subject.rows["forget"]
    assert prefix.facts["prefix_tokens"] == 4


def test_the_demand_stands_in_the_last_message_of_the_user():
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
             {"role": "user", "content": "Q?"}]  # fmt: skip
    row = {"example_id": "c", "prompt": turns, "completion": "red"}
    with Prompt(variants=["authority"]).stages(subject_of([row])) as stages:
        (stage,) = stages
    asked = stage.rows["forget"][0]["prompt"]
    assert asked == [*turns[:2], {"role": "user", "content": f"{AUTHORITY}\n\nQ?"}]
    assert turns[-1]["content"] == "Q?"


def test_only_what_is_asked_for():
    document = [{"example_id": "d", "text": "A text."}]
    with Prompt(variants=["prefix", "prefix"]).stages(subject_of(document)) as stages:
        assert [(s.variant, s.answer_prefix_tokens) for s in stages] == [("prefix", 5)]
    with pytest.raises(DataError, match="only texts"):
        Prompt().stages(subject_of(document))
    with pytest.raises(RecipeError, match="'retian', which is not asked; did you mean 'retain'"):
        Prompt(dataset="retian").stages(subject_of([], retain=document))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ["hints"]}, "unknown variant 'hints'; did you mean 'hint'"),
        ({"variants": []}, r"prompt\.variants is empty"),
        ({"shots": 0}, r"prompt\.shots is 0"),
        ({"prefix_tokens": 0}, r"prompt\.prefix_tokens is 0"),
        ({"text": "  "}, r"prompt\.text is empty"),
    ],
)
def test_options_that_cannot_be_used(settings, message):
    with pytest.raises(RecipeError, match=message):
        attack("prompt", settings)
