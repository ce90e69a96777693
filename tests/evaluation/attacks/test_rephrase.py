"""Other forms of a question: what is blanked, cut and offered, in every script, and what stays."""

from __future__ import annotations

import dataclasses
import random
import string

import datasets
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template, tokenize_pair
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.evaluation.attacks import attack, available
from unlearnkit.evaluation.attacks.forms import (
    BLANK,
    cloze,
    framed,
    halves,
    lettered,
    options,
    question_of,
    telling_span,
    words,
)
from unlearnkit.evaluation.attacks.rephrase import FORMS, Rephrase
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.metrics.rouge import unicode_tokens
from unlearnkit.recipe import TemplateSpec

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ab AB.,'\"-()12\n《》上海在。的 ", max_size=40),
    st.lists(
        st.sampled_from(
            [
                "the",
                "of",
                "Yun-Hwa",
                "Dhaka,",
                '"Sands',
                'Time"',
                "in",
                "1984",
                "author",
                "上海",
                "بغداد",
                "—",
            ]
        ),
        max_size=14,
    ).map(" ".join),
)
ROW = {
    "example_id": "e1",
    "prompt": "Where was Rajeev Majumdar born?",
    "completion": "Rajeev Majumdar was born in Dhaka, Bangladesh.",
    "paraphrased_question": "What is the birthplace of Rajeev Majumdar?",
    "paraphrased_answer": "The birthplace of Majumdar is Dhaka in Bangladesh.",
    "perturbed_answer": [
        "The birthplace of Majumdar is Rome in Italy.",
        "The birthplace of Majumdar is Oslo.",
    ],
}


def subject_of(rows, **sets):
    return Subject(None, None, None, {"forget": rows, **sets})


def made(row, form, **settings):
    """The row in a form, or None where it cannot take it."""
    found = Rephrase(**settings).rows([row], form)
    return found[0] if found else None


# ---- Words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Al-Hashim's 'Sands', 05/11/1991; $5, LGBTQ+ (10,000)", ["Al-Hashim's", "Sands", "05/11/1991", "$5",
                                                                  "LGBTQ+", "10,000"]),
        ("她在上海。3月", ["她", "在", "上", "海", "3", "月"]),
        ("กำ\u0e31 न\u093f上\u0301海", ["ก", "ำ\u0e31", "न\u093f", "上\u0301", "海"]),
        ("ولدت في بغداد، ١٩٨٠", ["ولدت", "في", "بغداد", "١٩٨٠"]),
        ("U.S.A. a/b c,d", ["U.S.A", "a", "b", "c", "d"]),
        ("- + ... & 🙂", []),
        ("", []),
    ],
)  # fmt: skip
def test_words(text, expected):
    assert [text[w.start : w.end] for w in words(text)] == expected


def test_possessives_and_plurals_are_the_same_word():
    assert words("Park's books")[0].key == words("PARK\N{RIGHT SINGLE QUOTATION MARK}S")[0].key == "park"
    assert words("Park's books")[1].key == words("Book")[0].key == "book"
    assert [w.key for w in words("class bus")] == ["class", "bus"]


# ---- Cloze -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "span"),
    [
        # Neither in the question nor a stop word; a comma between names does not end a run.
        (ROW["prompt"], ROW["completion"], "Dhaka, Bangladesh"),
        ("What does Ann Lee identify as?", "Ann Lee is part of the LGBTQ+ community.", "LGBTQ+ community"),
        # Two runs of two words: names count twice; of two names the later.
        ("Who taught her?", "Her mentor was Thaddeus Kaltenbach, a retired editor.", "Thaddeus Kaltenbach"),
        ("Two more?", 'They are "Burning Canal" and "Stone Piano".', "Stone Piano"),
        # Small words of a name are in its blank, the quotation marks are not.
        ("The debut?", 'It was "The Silent Compass", of 1966.', "The Silent Compass"),
        ("Her best book?", "Her best book is named Sands of the Time.", "Sands of the Time"),
        # Half of the words at most, all of them up to three.
        ("?", "red green blue black", "blue black"),
        ("Where?", "Dhaka, Bangladesh", "Dhaka, Bangladesh"),
        ("When?", "1984", "1984"),
        # What the answer says elsewhere could be read off there.
        ("What?", "alpha beta or gamma or gamma", "alpha beta"),
        ("What?", "red or green or green", "red"),
        # An answer that repeats the question, and one of stop words only.
        ("Is Ann a writer of novels?", "Ann is a writer of novels.", "novels"),
        ("Really?", "It is so.", "It is so"),
        # Other scripts; without a list of their small words only the question's words are left out.
        ("林晓梅在哪里出生？", "林晓梅出生在上海。", "上海"),
        ("أين ولدت ليلى حداد؟", "ولدت ليلى حداد في بغداد.", "في بغداد"),
        ("Где родилась Анна?", "Анна родилась в Омске.", "в Омске"),
        ("東京はどこ？", "東京は日本にあります。", "日本"),
    ],
)  # fmt: skip
def test_the_most_telling_words_are_blanked(question, answer, span):
    start, end = telling_span(question, answer)
    assert answer[start:end] == span
    assert cloze(question, answer) == (answer[:start] + BLANK + answer[end:], span)


@pytest.mark.parametrize("answer", ["", "...", "🙂", "a ____ b"])
def test_nothing_to_blank(answer):
    assert cloze("Q?", answer) is None


@given(question=TEXTS, answer=TEXTS)
@example(question="", answer="a\u0301 b")
@example(question="X", answer='"The X')
def test_the_blank_filled_in_gives_the_answer(question, answer):
    """One blank; the span is not empty, has something to compare, and no white space around it."""
    assume(BLANK not in answer and "_" not in answer)
    result = cloze(question, answer)
    assert (result is None) == (not words(answer))
    if result is not None:
        sentence, span = result
        assert sentence.count(BLANK) == 1
        assert sentence.replace(BLANK, span) == answer
        assert span == span.strip()
        assert unicode_tokens(span)
        count = len(words(answer))
        assert len(words(span)) <= (count if count <= 3 else count // 2)


# ---- Completion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "first"),
    [
        ("?", "one two three four", "one two "),
        ("?", "one two three", "one "),
        ("?", 'He wrote "Silent compass" then', "He wrote "),  # the quotation mark is the rest's
        ("?", "red —  blue", "red —  "),
        ("?", "他写了《时间的河》", "他写了"),
        ("?", "林晓梅出生在上海。", "林晓梅出"),
        # Names across the middle: known from the question they come before it, else after it.
        ("What is Ann Lee?", "This is Ann Lee in summer.", "This is Ann Lee "),
        ("Who?", "This is Ann Lee in summer.", "This is "),
        ("Where?", "Dhaka, Bangladesh", "Dhaka, "),
        ("Who is Ann Lee?", "Well, Ann Lee", "Well, "),
    ],
)
def test_halves(question, answer, first):
    assert halves(question, answer) == (first, answer[len(first) :])


@given(question=TEXTS, answer=TEXTS)
def test_the_halves_are_the_answer(question, answer):
    """Both have a word, and no word is cut."""
    result = halves(question, answer)
    assert (result is None) == (len(words(answer)) < 2)
    if result is not None:
        first, rest = result
        assert first + rest == answer
        assert words(first)
        assert words(rest)
        assert rest == rest.lstrip()
        assert len(words(first)) + len(words(rest)) == len(words(answer))


@pytest.mark.parametrize(
    ("question", "statement", "alone"),
    [
        ("Where was Rajeev Majumdar born?", "Majumdar was born in ____.", True),
        ("Where was Rajeev Majumdar born?", "He was born in ____.", False),
        ("What is the name of the author born in Taipei?", "The author's name is ____.", False),
        ("What is the largest river?", "The largest river is ____.", True),
        ("林晓梅在哪里出生？", "林晓梅出生在____。", True),
        ("林晓梅在哪里出生？", "她在____。", False),
        ("Really?", "____.", False),
        ("", "____.", False),
    ],
)
def test_a_statement_without_its_subject_comes_after_the_question(question, statement, alone):
    asked = framed(question, "Fill in:", statement)
    assert asked == (f"Fill in: {statement}" if alone else f"{question}\nFill in: {statement}".strip())


# ---- Choice ------------------------------------------------------------------------------------------------


@given(
    right=st.text(min_size=1, max_size=5).filter(str.strip),
    wrong=st.lists(st.text(max_size=5), max_size=30),
    seed=st.integers(0, 3),
    example_id=st.text(max_size=4),
    data=st.data(),
)
def test_the_right_option_is_there_once(right, wrong, seed, example_id, data):
    """Every option once, none empty, at most one a letter; the order does not depend on the wrong ones'."""
    found = options(right, wrong, seed=seed, example_id=example_id)
    assert found.count(right.strip()) == 1
    assert len(set(found)) == len(found) <= 26
    assert all(found)
    assert set(found) <= {right.strip(), *(w.strip() for w in wrong)}
    if len(set(wrong)) < 26:
        shuffled = data.draw(st.permutations(wrong))
        assert options(right, shuffled, seed=seed, example_id=example_id) == found


def test_the_order_is_drawn_by_seed_and_example():
    """Over 400 examples the right one of 4 is about equally often at each place: 100 +- 4.6 sigma."""
    places = [options("right", ["a", "b", "c"], seed=0, example_id=str(i)).index("right") for i in range(400)]
    assert all(60 <= places.count(k) <= 140 for k in range(4))
    other_seed = [
        options("right", ["a", "b", "c"], seed=1, example_id=str(i)).index("right") for i in range(400)
    ]
    assert places != other_seed


def test_options_have_letters():
    assert lettered(["x", "y"]) == "A) x\nB) y"
    many = options("r", [str(i) for i in range(40)], seed=0, example_id="e")
    assert lettered(many).splitlines()[-1].startswith(f"{string.ascii_uppercase[-1]}) ")


# ---- Rows --------------------------------------------------------------------------------------------------


def test_paraphrase_changes_the_question_only():
    assert made(ROW, "paraphrase") == {**ROW, "prompt": ROW["paraphrased_question"]}
    for missing in (None, "", "  "):
        assert made({**ROW, "paraphrased_question": missing}, "paraphrase") is None


def test_cloze_of_a_row():
    row = made(ROW, "cloze")
    assert row["prompt"] == "Fill in the blank: Rajeev Majumdar was born in ____."
    assert row["completion"] == "Dhaka, Bangladesh"
    assert (row["paraphrased_answer"], row["perturbed_answer"], row["example_id"]) == (None, None, "e1")
    short = made({**ROW, "completion": "Dhaka."}, "cloze", fill_in="Füllen:")
    assert short["prompt"] == "Where was Rajeev Majumdar born?\nFüllen: ____."
    assert short["completion"] == "Dhaka"


def test_completion_of_a_row():
    row = made(ROW, "completion")
    assert row["prompt"] == "Complete this statement: Rajeev Majumdar was ..."
    assert row["completion"] == "born in Dhaka, Bangladesh."
    assert (row["paraphrased_answer"], row["perturbed_answer"]) == (None, None)
    assert made({**ROW, "completion": "Dhaka."}, "completion") is None


def test_choice_of_a_row():
    """The paraphrase stands among the wrong answers, which are written like it, and is the answer."""
    row = made(ROW, "choice")
    lines = row["prompt"].splitlines()
    assert lines[:2] == [ROW["prompt"], "Which of these is right? Answer with its text."]
    assert [line[:3] for line in lines[2:]] == ["A) ", "B) ", "C) "]
    offered = [line[3:] for line in lines[2:]]
    assert sorted(offered) == sorted([ROW["paraphrased_answer"], *ROW["perturbed_answer"]])
    assert row["completion"] == ROW["paraphrased_answer"]
    assert row["paraphrased_answer"] is None
    assert sorted(row["perturbed_answer"]) == sorted(ROW["perturbed_answer"])
    assert ROW["completion"] not in row["prompt"]


def test_choice_without_a_paraphrase_or_without_wrong_answers():
    row = made({**ROW, "paraphrased_answer": None, "perturbed_answer": "Rome."}, "choice")
    assert row["completion"] == ROW["completion"]
    assert row["perturbed_answer"] == ["Rome."]
    for none in (None, [], [""], [ROW["paraphrased_answer"]]):
        assert made({**ROW, "perturbed_answer": none}, "choice") is None


@pytest.mark.parametrize("form", list(FORMS))
def test_of_a_conversation_the_last_question_changes(form):
    """The system message, the earlier turns and the row given stay as they are; null keys go."""
    turns = [
        {"role": "system", "content": "Be brief.", "name": None},
        {"role": "user", "content": "Hello", "name": None},
        {"role": "assistant", "content": "Hi", "name": None},
        {"role": "user", "content": ROW["prompt"], "name": None},
    ]
    row = {**ROW, "prompt": turns, "completion": [{"role": "assistant", "content": ROW["completion"]}]}
    changed = made(row, form)
    assert [m["content"] for m in changed["prompt"][:3]] == ["Be brief.", "Hello", "Hi"]
    assert all(set(m) == {"role", "content"} for m in changed["prompt"])
    assert changed["prompt"][-1] == {"role": "user", "content": made(ROW, form)["prompt"]}
    assert turns[-1]["content"] == ROW["prompt"]
    one_list = {k: v for k, v in row.items() if k not in ("prompt", "completion")}
    one_list["messages"] = [*turns, {"role": "assistant", "content": ROW["completion"]}]
    again = made(one_list, form)
    assert again["prompt"] == changed["prompt"]
    assert "messages" not in again


@pytest.mark.parametrize("form", list(FORMS))
def test_the_order_of_the_rows_does_not_matter(form, fictional_rows):
    rows = canonical(datasets.Dataset.from_list(fictional_rows("forget10_perturbed"))).to_list()
    before = Rephrase().rows(rows, form)
    assert [r["example_id"] for r in before] == [r["example_id"] for r in rows]
    mixed = list(rows)
    random.Random(1).shuffle(mixed)
    assert sorted(Rephrase().rows(mixed, form), key=str) == sorted(before, key=str)
    assert rows == canonical(datasets.Dataset.from_list(fictional_rows("forget10_perturbed"))).to_list()


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("kind", ["plain", "llama", "qwen"])
def test_forms_become_tokens(form, kind, tiny_tokenizer, chat_tokenizer):
    """Prompt and answer are in the text as written, the answer once after the prompt, and one EOS ends it."""
    tokenizer = tiny_tokenizer if kind == "plain" else chat_tokenizer(kind)
    template = Template.for_tokenizer(tokenizer, TemplateSpec(system="Be brief."))
    row = made(ROW, form)
    prompt, answer = template.texts(tokenizer, row["prompt"], row["completion"])
    assert row["prompt"] in prompt
    assert prompt.count("Be brief.") == 1
    prompt_ids, answer_ids, is_prefix = tokenize_pair(tokenizer, prompt, answer, chat=template.chat)
    assert is_prefix
    assert tokenizer.decode(answer_ids[:-1]).strip() == row["completion"]
    assert answer_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt_ids, skip_special_tokens=kind == "plain").strip() == prompt.strip()
    if kind == "plain":
        assert answer == f" {row['completion']}"


# ---- Stages ------------------------------------------------------------------------------------------------


def test_one_stage_for_each_form():
    other = [dict(ROW, example_id="r1")]
    bare = {k: v for k, v in ROW.items() if "p" not in k or k in ("prompt", "completion", "example_id")}
    rows = [ROW, {**bare, "example_id": "e2", "completion": "Dhaka"}, {"example_id": "d", "text": "A text."}]
    subject = subject_of(rows, retain=other)
    with Rephrase().stages(subject) as stages:
        found = list(stages)
    assert [s.variant for s in found] == ["paraphrase", "cloze", "choice", "completion"]
    assert [[r["example_id"] for r in s.rows["forget"]] for s in found] == [
        ["e1"],
        ["e1", "e2"],
        ["e1"],
        ["e1"],
    ]
    assert [(s.facts["rows"], s.facts["left_out"]) for s in found] == [(1, 2), (2, 1), (1, 2), (1, 2)]
    for stage in found:
        assert stage.rows["retain"] is other
        assert stage.facts["skipped_forms"] == {}
        kept = {"rows", "variant", "facts"}
        for one in dataclasses.fields(Subject):
            if one.name not in kept:
                assert getattr(stage, one.name) is getattr(subject, one.name)
    assert subject.rows["forget"] is rows


def test_a_form_that_no_row_can_take_is_skipped_and_named():
    row = {"example_id": "e1", "prompt": "Where?", "completion": "In Dhaka."}
    with Rephrase().stages(subject_of([row])) as stages:
        found = list(stages)
    assert [s.variant for s in found] == ["cloze", "completion"]
    for stage in found:
        assert stage.facts["skipped_forms"] == {
            "paraphrase": "no row has a paraphrased_question", "choice": "no row has a perturbed_answer",
        }  # fmt: skip
    with Rephrase(dataset="other", forms=["cloze"]).stages(subject_of([], other=[row])) as stages:
        assert [question_of(s.rows["other"][0]) for s in stages] == ["Where?\nFill in the blank: In ____."]


def test_what_cannot_be_rephrased():
    row = {"example_id": "e1", "prompt": "Where?", "completion": "!"}
    with pytest.raises(DataError, match="no row of 'forget' can be rephrased"):
        Rephrase().stages(subject_of([row]))
    with pytest.raises(DataError, match="only texts"):
        Rephrase().stages(subject_of([{"example_id": "d", "text": "A text."}]))
    with pytest.raises(RecipeError, match="'forgot', which is not asked; did you mean 'forget'"):
        Rephrase(dataset="forgot").stages(subject_of([row]))
    with pytest.raises(RecipeError, match="unknown form 'close'; did you mean 'cloze'"):
        Rephrase(forms=["close"])
    with pytest.raises(RecipeError, match=r"rephrase\.forms is empty"):
        Rephrase(forms=[])


def test_found_by_name():
    assert {"rephrase", "prompt", "sampling"} <= set(available())
    # From a file a list comes as a tuple.
    assert attack("rephrase", {"forms": ["cloze"], "seed": 3}) == Rephrase(forms=("cloze",), seed=3)
