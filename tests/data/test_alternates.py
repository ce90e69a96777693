"""Alternate answers: what the model says decides them, and nothing else; what is known is not asked again."""

from __future__ import annotations

import json

import datasets
import pytest
import torch

from unlearnkit.data import alternates
from unlearnkit.data.alternates import INSTRUCTION, generate_alternates, with_alternates, write_alternates
from unlearnkit.data.answers import AnswerColumn
from unlearnkit.data.cells import levelled
from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.data.streams import load_stream
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.recipe import AlternatesSpec, StreamSpec

SPEC = AlternatesSpec(per_prompt=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def data(fictional_rows):
    return canonical(datasets.Dataset.from_list(fictional_rows("full")[:6]))


@pytest.fixture(scope="module")
def model(tiny_model):
    """Large weights: what it says differs from prompt to prompt."""
    model = tiny_model()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.4)
    return model


@pytest.fixture
def generate(model, tiny_tokenizer, data):
    def run(rows=data, model=model, tokenizer=tiny_tokenizer, **options):
        template = Template.for_tokenizer(tokenizer)
        options = {"per_prompt": 3, "max_new_tokens": 8, **options}
        return generate_alternates(model, tokenizer, rows, template=template, **options)

    return run


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr(alternates, "_cache_path", lambda *args: None)


def scripted(monkeypatch, says):
    """In place of the model: `says(question)` is what is drawn. Returns the rounds, as (prompt, number)."""
    rounds = []

    def answers(model, tokenizer, questions, *, done, sampling, **budget):
        rounds.append([(one.prompt, one.index) for one in questions])
        yield [(one.sample_name, {"text": says(one)}) for one in questions]

    monkeypatch.setattr(alternates, "generate_answers", answers)
    return rounds


def test_each_row_gets_its_own_distinct_answers(generate, data):
    found = generate()
    assert [len(own) for own in found] == [3] * 6
    assert all(len(set(map(levelled, own))) == 3 for own in found)
    assert len({text for own in found for text in own}) == 18


@pytest.mark.usefixtures("no_cache")
def test_batches_and_other_rows_change_nothing(generate, data):
    """Each row's answers are a function of the row and the seed."""
    whole = generate()
    assert generate(batch_tokens=1) == generate(batch_tokens=150) == whole
    assert generate(data.select([4, 1])) == [whole[4], whole[1]]
    assert generate(per_prompt=2) == [own[:2] for own in whole]
    others = generate(seed=1)
    assert all(set(one).isdisjoint(other) for one, other in zip(whole, others, strict=True))
    assert generate(temperature=0.5) != whole
    assert generate(top_p=0.5) != whole


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_draws(generate, monkeypatch, world):
    """Every process asks for its share of each round; put together they say what one process says."""
    whole = generate()
    shares = []
    real = alternates.generate_answers

    def of_all(value):
        return [said(rank) for rank in range(world)]

    def said(rank):
        asker, asked = current[-1]
        mine = list(asked.values())[rank::world]
        shares.append(len(mine))
        results = real(
            asker.model, asker.tokenizer, mine, pad_id=2, batch_tokens=4096, max_new_tokens=8,
            done=lambda count: None, sampling=asker.sampling,
        )  # fmt: skip
        return {name: result["text"] for part in results for name, result in part}

    current = []
    ask = alternates._Asker.__call__

    def remember(self, asked):
        current.append((self, asked))
        return ask(self, asked)

    monkeypatch.setattr(alternates._Asker, "__call__", remember)
    monkeypatch.setattr(alternates, "processes", lambda: (1, world))
    monkeypatch.setattr(
        alternates, "gathered", lambda value: [value] * world if value is False else of_all(value)
    )
    assert generate() == whole
    assert sum(shares[:world]) == 18
    assert max(shares[:world]) - min(shares[:world]) <= 1


def test_what_is_known_is_not_asked_again(generate, model, data, monkeypatch, tiny_model):
    found = generate()

    def fail(*args, **options):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(alternates, "generate_answers", fail)
    assert generate() == found
    changes = [
        {"model": tiny_model()}, {"seed": 1}, {"temperature": 0.9}, {"top_p": 0.9}, {"per_prompt": 2},
        {"max_new_tokens": 7}, {"prompt": "instruct"}, {"rows": data.select(range(5))},
        {"rows": data.map(lambda row: {"completion": row["completion"] + "!"})},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(AssertionError, match="the model was asked"):
            generate(**change)


@pytest.mark.parametrize("content", ["", "[[]]", "[1, 2", '[["a"]]', "null"])
def test_a_broken_file_is_drawn_anew(generate, content):
    found = generate()
    (path,) = (alternates.cache_folder() / "alternates").iterdir()
    path.write_text(content)
    assert generate() == found
    assert json.loads(path.read_text()) == found


def test_a_model_that_its_weights_do_not_name_leaves_nothing_on_disk(generate, tiny_model):
    hooked = tiny_model()
    hooked.lm_head.register_forward_hook(lambda module, args, out: out)
    assert len(generate(model=hooked)) == 6
    assert not (alternates.cache_folder() / "alternates").exists()


def test_what_is_no_alternate_is_left_out_and_drawn_again(generate, data, monkeypatch):
    """Draws 0 to 2 of a row are empty, the true answer, and a good one; 3 repeats the good one, 4 is the true
    answer again, 5 a second good one, 6 a third. So the rounds ask for the numbers 0-2, 3-4, 5-6 and no more.
    """
    truth = dict(zip(data["prompt"], data["completion"], strict=True))

    def says(one):
        true = truth[one.prompt].upper()
        return ["", f" {true}\n", "One.", " one. ", truth[one.prompt], "Two.", "Three."][one.index]

    rounds = scripted(monkeypatch, says)
    assert generate() == [["One.", "Two.", "Three."]] * 6
    assert [sorted({number for _, number in one}) for one in rounds] == [[0, 1, 2], [3, 4], [5, 6]]


def test_rows_that_have_enough_are_not_asked_again(generate, data, monkeypatch):
    first = data["prompt"][0]
    rounds = scripted(monkeypatch, lambda one: "same" if one.prompt == first else f"a{one.index}")
    found = generate()
    assert found == [["same"], *[["a0", "a1", "a2"]] * 5]
    assert [{prompt for prompt, _ in one} for one in rounds[1:]] == [{first}] * 4
    assert [[number for _, number in one] for one in rounds[1:]] == [[3, 4], [5, 6], [7, 8], [9, 10]]


@pytest.mark.parametrize("says", [lambda one: None, lambda one: " ", lambda one: one.answer])
def test_rows_that_get_nothing_are_named_with_the_remedies(generate, monkeypatch, says):
    rounds = scripted(monkeypatch, says)
    with pytest.raises(DataError, match=r"data\.alternates: the model gave 6 row\(s\) no answer other than "
                       r"their own \(row 0, 1, 2, 3, 4, \.\.\., counted from 0\) in 5 rounds of 3 draws at "
                       r"temperature 1\.0; raise data\.alternates\.temperature, or .*_answer"):  # fmt: skip
        generate()
    assert len(rounds) == 5
    assert not (alternates.cache_folder() / "alternates").exists(), "a failure is not kept"


# What is asked


def asked(generate, monkeypatch, rows, **options):
    prompts = {}

    def says(one):
        prompts[one.prompt] = one.prompt_ids
        return f"a{one.index}"

    scripted(monkeypatch, says)
    generate(canonical(datasets.Dataset.from_list(rows)), **options)
    return prompts


def test_the_instruction_holds_question_and_answer(generate, monkeypatch):
    """Braces in a question are text: they are not filled in."""
    row = {"prompt": "Who is {answer}?", "completion": "{prompt} Ana."}
    expected = INSTRUCTION.replace("{prompt}", "Q").replace("{answer}", "A")
    (text,) = asked(generate, monkeypatch, [row], prompt="instruct")
    assert text.replace(row["prompt"], "Q").replace(row["completion"], "A") == expected
    (text,) = asked(generate, monkeypatch, [row], prompt="{prompt} {answer} {prompt}!")
    assert text == "Who is {answer}? {prompt} Ana. Who is {answer}?!"


@pytest.mark.parametrize("shape", ["prompt", "messages"])
def test_in_a_chat_the_last_question_is_replaced(generate, monkeypatch, chat_tokenizer, shape):
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"), ("assistant", "Ana.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    row = {"messages": messages} if shape == "messages" else {
        "prompt": messages[:3], "completion": messages[3:]
    }  # fmt: skip
    (text,) = asked(generate, monkeypatch, [row], prompt="Not {answer}: {prompt}", tokenizer=chat_tokenizer())
    assert text == "Hi\nYes?\nNot Ana.: Who?"


def test_the_question_itself_is_asked_as_the_trainer_writes_it(generate, monkeypatch, tiny_tokenizer):
    row = {"prompt": "Who?", "completion": "Ana."}
    ((text, ids),) = asked(generate, monkeypatch, [row]).items()
    assert text == "Who?"
    assert tiny_tokenizer.decode(ids) == "Question: Who?\nAnswer:"


# Bad settings


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.0}, r"temperature 0\.0.*set the temperature above 0"),
        ({"top_p": 0.0}, r"top_p 0\.0.*above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p 1\.5"),
        ({"prompt": "Say {answer} otherwise."}, r"data\.alternates\.prompt is .*write \{prompt\}.*instruct"),
    ],
)
def test_settings_that_cannot_be(generate, options, match):
    with pytest.raises(RecipeError, match=match):
        generate(**options)


def test_texts_ask_nothing(generate):
    with pytest.raises(DataError, match="is a text without a prompt"):
        generate(canonical(datasets.Dataset.from_list([{"text": "t"}])))


# With the data


def test_the_file_is_a_stream(model, tiny_tokenizer, data, tmp_path):
    """What a run keeps beside its recipe can be given to another run, answers and ids unchanged."""
    answered = with_alternates(model, tiny_tokenizer, data, SPEC)
    assert [len(own) for own in answered["alternate_answer"]] == [3] * 6
    path = tmp_path / "run" / "alternates.jsonl"
    write_alternates(answered, path)
    again = load_stream(StreamSpec(path=str(path)), name="forget")
    assert again.to_list() == answered.select_columns(again.column_names).to_list()
    assert again["example_id"] == data["example_id"]
    column = AnswerColumn("alternate_answer")
    assert column.candidates(again, "data.forget") == column.candidates(answered, "data.forget")
    with pytest.raises(
        DataError, match=r"has a column alternate_answer, and data\.alternates asks for new ones"
    ):
        with_alternates(model, tiny_tokenizer, again, SPEC)


def test_every_setting_counts(model, tiny_tokenizer, data, monkeypatch):
    given = {}

    def remember(model, tokenizer, data, *, template, **options):
        given.update(options)
        return [["x"]] * len(data)

    monkeypatch.setattr(alternates, "generate_alternates", remember)
    spec = AlternatesSpec(2, 0.7, 0.9, "instruct", 5, 11)
    with_alternates(model, tiny_tokenizer, data, spec)
    assert given == vars(spec)


def test_the_model_is_left_as_it_was(generate, tiny_model):
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    generate(model=model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_prompt_that_leaves_no_room_is_refused(generate):
    """The tiny model holds 256 positions."""
    with pytest.raises(
        DataError, match=r"tokens, and the model holds 256 .*shorten data\.alternates\.prompt"
    ):
        generate(prompt="word " * 400 + "{prompt}")
