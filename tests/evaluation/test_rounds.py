"""Generation in rounds: what goes on after some new tokens is put together anew, and nothing shows it."""

from __future__ import annotations

import pytest
import torch

from unlearnkit.data.formats import Template
from unlearnkit.evaluation import probes
from unlearnkit.evaluation.decode import Sampling
from unlearnkit.evaluation.questions import generation_questions

BOUND = 20


@pytest.fixture(scope="module")
def questions(tiny_tokenizer, fictional_rows):
    rows = [
        {"example_id": str(i), "prompt": row["question"], "completion": row["answer"]}
        for i, row in enumerate(fictional_rows("full")[:9])
    ]
    return generation_questions("forget", rows, tiny_tokenizer, Template.for_tokenizer(tiny_tokenizer))


@pytest.fixture
def model(tiny_model):
    """Large weights: what it says differs from prompt to prompt."""
    model = tiny_model()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.4)
    return model


def spoken(model, tokenizer, questions, *, batch_tokens=4096, sampling=None):
    done, found = [], {}
    for results in probes.generate_answers(
        model, tokenizer, questions, pad_id=tokenizer.pad_token_id, batch_tokens=batch_tokens,
        max_new_tokens=BOUND, done=done.append, sampling=sampling,
    ):  # fmt: skip
        assert not found.keys() & {name for name, _ in results}
        found.update(results)
    assert sum(done) == len(questions)
    return found


@pytest.mark.parametrize("sampling", [None, Sampling(seed=3), Sampling(temperature=0.8, top_p=0.9)])
def test_rounds_change_nothing(model, tiny_tokenizer, questions, monkeypatch, sampling):
    """One round of 20 tokens, and rounds that end after 2, 8 and 20, in batches of all sizes."""
    free = spoken(model, tiny_tokenizer, questions, sampling=sampling)
    said = sorted((one["tokens"] for one in free.values()), key=len)
    # Tokens that end some answers early, in the middle of a round and with its last token.
    model.generation_config.eos_token_id = [said[0][1], said[-1][4]]
    whole = spoken(model, tiny_tokenizer, questions, sampling=sampling)
    assert {len(one["tokens"]) for one in whole.values()} > {BOUND}
    monkeypatch.setattr(probes, "_FIRST_ROUND", 2)
    for batch_tokens in (1, 200, 4096):
        assert spoken(model, tiny_tokenizer, questions, batch_tokens=batch_tokens, sampling=sampling) == whole


def test_what_goes_on_is_put_together_anew(model, tiny_tokenizer, questions, monkeypatch):
    """Rounds of one token, then four: what did not end with its first token goes through the model in one
    batch, prompt and token together."""
    first = spoken(model, tiny_tokenizer, questions)
    ends = [first[q.prompt_name]["tokens"][0] for q in questions]
    model.generation_config.eos_token_id = [ends[0]]
    going_on = len(questions) - ends.count(ends[0])
    monkeypatch.setattr(probes, "_FIRST_ROUND", 1)
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda m, a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    spoken(model, tiny_tokenizer, questions)
    hook.remove()
    assert shapes[0][0] == len(questions)
    assert shapes[1][0] == going_on < len(questions)
    assert shapes[1][1] > 1


def test_the_rounds_reach_the_bound():
    assert probes._rounds(10) == [10]
    assert probes._rounds(64) == [64]
    assert probes._rounds(200) == [64, 200]
    assert probes._rounds(2000) == [64, 256, 1024, 2000]
