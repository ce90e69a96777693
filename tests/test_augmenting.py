"""`unlearnkit data augment`: what is asked, what is kept of it, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from helpers_runs import command

from unlearnkit.data import augment as augmentation
from unlearnkit.data.alternates import INSTRUCTION
from unlearnkit.data.augment import (
    REWORD_ANSWER,
    REWORD_QUESTION,
    AugmentSpec,
    answered_rows,
    augment,
    cleaned,
)
from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError, UserError
from unlearnkit.recipe import StreamSpec

ROWS = [("Who?", "Ana."), ("When?", "In 1984.")]


def rows_of(*pairs):
    table = [{"question": question, "answer": answer} for question, answer in pairs]
    return answered_rows(canonical(datasets.Dataset.from_list(table)), "the rows")


def scripted(monkeypatch, says, per_batch=100):
    """In place of the model: `says(question)` is what is drawn. Returns the questions that were asked."""
    asked = []

    def answers(model, tokenizer, questions, *, done, sampling, **budget):
        for start in range(0, len(questions), per_batch):
            some = questions[start : start + per_batch]
            asked.extend(some)
            results = [(one.sample_name, says(one)) for one in some]
            done(len(some))
            yield [
                (name, said if isinstance(said, dict) else {"text": said, "tokens": [5], "num_new_tokens": 2})
                for name, said in results
            ]

    monkeypatch.setattr(augmentation, "generate_answers", answers)
    return asked


@pytest.fixture
def write(tiny_model, tiny_tokenizer):
    def run(rows, model=None, **settings):
        spec = AugmentSpec(**{"kind": "perturbed", **settings})
        template = Template.for_tokenizer(tiny_tokenizer)
        return augment(model or tiny_model(), tiny_tokenizer, rows, spec, template=template)

    return run


# What is asked and what is kept


def test_wrong_answers_keep_the_question_and_are_wrong(write, monkeypatch):
    """Of the numbers 0 to 3 two are the true answer or empty, 4 repeats 1, 5 is new: rounds of 3, 2 and 1."""
    said = ["ANA.", "Bo.", "", "Ana.", " bo. ", "Cy.", "Di."]
    asked = scripted(monkeypatch, lambda one: said[one.index])
    assert write(rows_of(("Who?", "Ana.")), per_row=3) == [
        [("Who?", "Bo."), ("Who?", "Cy."), ("Who?", "Di.")]
    ]
    assert [one.index for one in asked] == [0, 1, 2, 3, 4, 5, 6]
    assert asked[0].prompt == INSTRUCTION.format(prompt="Who?", answer="Ana.")


def test_paraphrases_are_questions_and_answers_in_other_words(write, monkeypatch):
    def says(one):
        kind = "question" if one.prompt.endswith("reworded question alone.") else "answer"
        return f"{kind} {one.index} of {'Ana' if 'Who?' in one.prompt else '1984'}"

    asked = scripted(monkeypatch, says)
    assert write(rows_of(*ROWS), kind="paraphrase") == [
        [(f"question {i} of {who}", f"answer {i} of {who}") for i in range(2)] for who in ("Ana", "1984")
    ]
    prompts = {one.prompt for one in asked}
    assert prompts == {REWORD_QUESTION.format(prompt=question) for question, _ in ROWS} | {
        REWORD_ANSWER.format(prompt=question, answer=answer) for question, answer in ROWS
    }


@pytest.mark.parametrize(
    ("questions", "answers", "pairs"),
    [
        (["q"], ["a", "b", "c"], [("q", "a"), ("q", "b"), ("q", "c")]),
        (["q", "r"], ["a", "b", "c"], [("q", "a"), ("r", "b"), ("q", "c")]),
        (["q", "r"], [], [("q", "Ana."), ("r", "Ana.")]),
        ([], ["a"], [("Who?", "a")]),
        ([], [], []),
    ],
)
def test_where_the_model_has_too_few_words(write, monkeypatch, questions, answers, pairs):
    """No pair is the row's own, and no two are the same."""

    def says(one):
        found = questions if one.prompt.startswith("Q") else answers
        return found[one.index] if one.index < len(found) else ["WHO? ", "ana."][found is answers]

    scripted(monkeypatch, says)
    wordings = {"prompt": "A {question}", "question_prompt": "Q {question}"}
    assert write(rows_of(("Who?", "Ana.")), kind="paraphrase", per_row=3, **wordings) == [pairs]


def test_what_was_cut_off_is_left_out(write, monkeypatch):
    cut = {"text": "Bo is a", "tokens": [5, 6], "num_new_tokens": 2}
    none = {"text": None, "tokens": [], "num_new_tokens": 0}
    scripted(monkeypatch, lambda one: [cut, none, "Bo."][one.index % 3])
    assert write(rows_of(*ROWS), per_row=1) == [[("Who?", "Bo.")], [("When?", "Bo.")]]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" Bo.\n", "Bo."),
        ('"Bo is it."', "Bo is it."),
        ('"Bo" and "Cy"', '"Bo" and "Cy"'),
        ("Answer: Bo.", "Bo."),
        ("**Reworded question:** Who is it?", "Who is it?"),
        ("Made-up answer: “Bo.”", "Bo."),
        ("<think>\nWell: no.\n</think>\n\nBo.", "Bo."),
        ("The question: who?", "The question: who?"),
        ("'Tis Bo.", "'Tis Bo."),
        ('"', '"'),
    ],
)  # fmt: skip
def test_what_models_put_around_a_reply_is_taken_off(said, kept):
    assert cleaned(said) == kept


def test_in_a_chat_the_last_question_is_asked_otherwise(write, monkeypatch):
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"), ("assistant", "Ana.")]
    table = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    rows = answered_rows(canonical(datasets.Dataset.from_list(table)), "the rows")
    scripted(monkeypatch, lambda one: f"{one.prompt.splitlines()[-1]} {one.index}")
    wordings = {"prompt": "{answer} not {prompt}", "question_prompt": "Say {prompt}"}
    ((pair,),) = write(rows, kind="paraphrase", per_row=1, **wordings)
    assert pair == ([*table[0]["messages"][:2], {"role": "user", "content": "Say Who? 0"}], "Ana. not Who? 0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wrong"}, r"--kind is 'wrong'; it must be paraphrase or perturbed"),
        ({"per_row": 0}, r"--per-row is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, r"--max-new-tokens is 0; it must be at least 1"),
        ({"temperature": 0.0}, r"at temperature 0\.0 .*set --temperature above 0"),
        ({"top_p": 1.1}, r"top_p 1\.1 .*at most 1"),
        ({"prompt": "Say {answer}."}, r"--prompt is 'Say {answer}\.', which .* write \{question\}"),
        ({"kind": "paraphrase", "question_prompt": "?"}, r"--question-prompt is '\?', which holds no"),
        ({"question_prompt": "{question}"}, r"--question-prompt asks for .* set --kind paraphrase"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        AugmentSpec(**{"kind": "perturbed", **settings})


@pytest.mark.parametrize("row", [{"text": "T"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}])
def test_rows_without_an_answer(row):
    with pytest.raises(DataError, match="questions and their answers are needed"):
        answered_rows(canonical(datasets.Dataset.from_list([row])), "the rows")


def test_a_prompt_that_leaves_no_room(write):
    """The tiny model holds 256 positions."""
    with pytest.raises(DataError, match=r"--prompt: .* and the model holds 256 .*; shorten it"):
        write(rows_of(*ROWS), prompt="word " * 400 + "{question}")


# With a model, and after a kill


@pytest.fixture(scope="module")
def talker(tiny_model):
    """Large weights, and an end that is likely enough: what it says ends, and differs by prompt."""
    model = tiny_model()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
    model.generation_config.eos_token_id = list(range(100))
    return model


def test_batches_and_other_rows_change_nothing(talker, tiny_tokenizer, monkeypatch, tmp_path):
    template, rows = Template.for_tokenizer(tiny_tokenizer), rows_of(*ROWS, ("Why?", "So."))
    spec = AugmentSpec("perturbed", prompt="{question}", max_new_tokens=32)

    def write(rows, **options):
        monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / f"{len(rows)}{options}"))
        return augment(talker, tiny_tokenizer, rows, spec, template=template, **options)

    whole = write(rows)
    assert [len(own) for own in whole] == [2, 2, 2]
    assert write(rows, batch_tokens=1) == whole
    assert write(rows[1:2]) == whole[1:2]


def test_what_was_written_before_a_kill_is_not_asked_again(write, talker, monkeypatch):
    rows = rows_of(*((f"Q{i}?", f"A{i}.") for i in range(6)))
    left = [3]

    def dies(one):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return f"answer {one.index}"

    scripted(monkeypatch, dies, per_batch=1)
    with pytest.raises(KeyboardInterrupt):
        write(rows, talker, per_row=2)
    again = scripted(monkeypatch, lambda one: f"answer {one.index}")
    found = write(rows, talker, per_row=2)
    assert len(again) == 12 - 3
    assert [[answer for _, answer in own] for own in found] == [["answer 0", "answer 1"]] * 6
    more = scripted(monkeypatch, lambda one: f"answer {one.index}")
    assert [len(own) for own in write(rows, talker, per_row=3)] == [3] * 6
    assert {one.index for one in more} == {2}, "more of the same are only what is new"


# The command


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, target):
    """`run("in.jsonl", ...)` with the tiny model: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": question, "answer": answer} for question, answer in ROWS]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments, model=target, kind="perturbed", out="out.jsonl"):
        fixed = ["--model", model, "--kind", kind, "--out", out]
        code = command(monkeypatch, "data", "augment", *arguments, *fixed)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_file_is_a_stream_and_says_where_it_came_from(run, monkeypatch, target):
    scripted(monkeypatch, lambda one: f"W{one.index % 2}")
    code, out, _ = run("in.jsonl", "--preview", "1")
    assert code == 0
    assert "note: the model has no chat template" in out
    assert "Who? | Ana.\n  Who? | W0\n  Who? | W1\nWrote 4 rows for 2 to out.jsonl" in out
    table = load_stream(StreamSpec("out.jsonl"), name="perturbed")
    assert table["prompt"] == ["Who?", "Who?", "When?", "When?"]
    assert table["completion"] == ["W0", "W1", "W0", "W1"]
    row = json.loads(Path("out.jsonl").read_text().splitlines()[2])
    own = load_stream(StreamSpec("in.jsonl"))
    assert {name: row[name] for name in row if name not in ("made_with", "question", "answer")} == {
        "original_id": own["example_id"][1], "original_question": "When?", "original_answer": "In 1984.",
        "kind": "perturbed", "model": str(target),
    }  # fmt: skip


def test_a_file_that_is_there_is_not_replaced_unasked(run, monkeypatch):
    scripted(monkeypatch, lambda one: f"W{one.index}")
    assert run("in.jsonl")[0] == 0
    before = Path("out.jsonl").read_bytes()
    again = scripted(monkeypatch, lambda one: f"X{one.index}")
    code, out, _ = run("in.jsonl")
    assert code == 0
    assert "out.jsonl was written with these settings already" in out
    for changed in (["--seed", "1"], ["--per-row", "3"], ["--limit", "1"], ["--template", "{kind: plain}"]):
        code, _, err = run("in.jsonl", *changed)
        assert code == 2
        assert "--out out.jsonl was written with other settings; choose another name, or add --force" in err
    assert not again
    assert Path("out.jsonl").read_bytes() == before
    assert run("in.jsonl", "--seed", "1", "--force")[0] == 0
    assert "X0" in Path("out.jsonl").read_text()
    Path("mine.jsonl").write_text("{}\n")
    assert "--out mine.jsonl exists already" in run("in.jsonl", out="mine.jsonl")[2]


def test_rows_that_got_fewer_are_counted_and_nothing_at_all_is_an_error(run, monkeypatch):
    scripted(monkeypatch, lambda one: "Bo." if "Who?" in one.prompt else " ")
    code, out, _ = run("in.jsonl")
    assert code == 0
    assert "2 of 2 rows got fewer than 2 (1 of them none)" in out
    assert "Wrote 1 rows for 2" in out
    scripted(monkeypatch, lambda one: None)
    code, _, err = run("in.jsonl", "--seed", "1", out="none.jsonl")
    assert code == 2
    assert "wrote nothing that could be used for 2 rows" in err
    assert not Path("none.jsonl").exists()


def test_a_set_of_a_folder_and_columns_of_other_names(run, monkeypatch):
    scripted(monkeypatch, lambda one: f"W{one.index}")
    assert run("fictional", "--name", "forget01", "--limit", "3", "--per-row", "1")[0] == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 3
    Path("q.jsonl").write_text(json.dumps({"q": "Why?", "a": "So."}) + "\n")
    assert run("q.jsonl", "--columns", "{question: q, answer: a}", out="w.jsonl")[0] == 0
    assert load_stream(StreamSpec("w.jsonl"))["prompt"] == ["Why?", "Why?"]


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        (["im.jsonl"], {}, "im.jsonl does not exist; the folder holds in.jsonl"),
        (["in.jsonl"], {"kind": "wrong"}, "--kind is 'wrong'; it must be paraphrase or perturbed"),
        (["in.jsonl", "--per-row", "0"], {}, "--per-row is 0; it must be at least 1"),
        (["in.jsonl", "--prompt", "Lie!"], {}, "--prompt is 'Lie!', which holds no row's question"),
        (["in.jsonl"], {"out": "out.csv"}, "--out out.csv must end in .jsonl"),
        (["in.jsonl"], {"out": "in.jsonl"}, "--out in.jsonl is the input itself"),
        (["in.jsonl"], {"model": "./nowhere"}, "the model ./nowhere does not exist"),
        (["in.jsonl", "--template", "{kind: no}"], {}, "template.kind must be one of auto, chat, plain"),
        (["in.jsonl", "--columns", "[a]"], {}, "--columns '[a]' is no mapping"),
    ],
)
def test_the_users_mistakes(run, arguments, changed, message, monkeypatch):
    asked = scripted(monkeypatch, lambda one: "x")
    code, _, err = run(*arguments, **changed)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not asked
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl"]
