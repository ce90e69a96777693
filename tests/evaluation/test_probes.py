"""Probes: the same numbers and texts as the plainest use of transformers, one example at a time."""

from __future__ import annotations

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.evaluation.probes import (
    batches,
    generate_answers,
    generation_settings,
    most_tokens,
    score_answers,
    stop_tokens,
)
from unlearnkit.evaluation.questions import generation_questions, likelihood_questions


@pytest.fixture(scope="module")
def asked(tiny_tokenizer, fictional_rows):
    rows = canonical(datasets.Dataset.from_list(fictional_rows("forget10_perturbed"))).to_list()
    template = Template.for_tokenizer(tiny_tokenizer)
    likelihood = likelihood_questions("forget", rows, tiny_tokenizer, template)
    likelihood += likelihood_questions(
        "texts", [{"example_id": "t", "text": rows[0]["prompt"]}], tiny_tokenizer, template
    )
    return likelihood, generation_questions("forget", rows, tiny_tokenizer, template)


def lora(model, **options):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, config).eval()


@pytest.fixture(params=["plain", "adapter", "learned positions"])
def model(request, tiny_model, tiny_tokenizer):
    if request.param == "plain":
        return tiny_model()
    if request.param == "adapter":
        return lora(tiny_model(), lora_alpha=32)
    with torch.random.fork_rng():  # learned positions: wrong ones would show
        torch.manual_seed(0)
        special = {"bos_token_id": tiny_tokenizer.bos_token_id, "eos_token_id": tiny_tokenizer.eos_token_id}
        size = {
            "vocab_size": len(tiny_tokenizer),
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 256,
        }
        config = GPT2Config(**size, **special, initializer_range=0.2)
        return GPT2LMHeadModel(config).eval()


def scores(model, questions, *, batch_tokens=4096, pad_id=2):
    done = []
    found = {}
    for results in score_answers(
        model, questions, pad_id=pad_id, batch_tokens=batch_tokens, done=done.append
    ):
        found.update(results)
    assert sum(done) == len(questions)
    return found


def texts(model, tokenizer, questions, *, batch_tokens=4096, max_new_tokens=12):
    found = {}
    options = {
        "pad_id": tokenizer.pad_token_id,
        "batch_tokens": batch_tokens,
        "max_new_tokens": max_new_tokens,
    }
    for results in generate_answers(model, tokenizer, questions, **options, done=lambda n: None):
        found.update(results)
    return found


@torch.no_grad()
def naive(model, question):
    """All logits of one unpadded sequence, log-softmax, and the labels one by one."""
    ids = [*question.prompt_ids, *question.answer_ids]
    logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    start = len(question.prompt_ids)
    rows = logp[start - 1 : len(ids) - 1]
    labels = torch.tensor(ids[start:])
    mean = (rows.exp() * rows).sum(-1)
    return {
        "logps": rows[torch.arange(len(labels)), labels].tolist(),
        "hits": (rows.argmax(-1) == labels).tolist(),
        "means": mean.tolist(),
        "variances": ((rows.exp() * rows.square()).sum(-1) - mean.square()).tolist(),
    }


def close(one, two):
    assert one["hits"] == two["hits"]
    for name in ("logps", "means", "variances"):
        ours, theirs = (torch.tensor(x[name], dtype=torch.float64) for x in (one, two))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scores_are_those_of_transformers(model, asked):
    found = scores(model, asked[0])
    for question in asked[0]:
        result = found[question.pair]
        assert len(result["logps"]) == len(question.answer_ids)
        close(result, naive(model, question))


def test_scores_do_not_depend_on_batches_order_or_padding(tiny_model, asked):
    model, questions = tiny_model(), asked[0]
    base = scores(model, questions)
    others = (
        scores(model, questions, batch_tokens=1),
        scores(model, questions[::-1], batch_tokens=300),
        scores(model, questions, pad_id=77),
    )
    for other in others:
        assert set(other) == set(base)
        for name, result in base.items():
            close(other[name], result)


def test_each_row_goes_through_the_model_once_and_in_bounds(tiny_model, asked):
    model = tiny_model()
    shapes = []
    model.register_forward_pre_hook(
        lambda m, a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    scores(model, asked[0], batch_tokens=200)
    assert sum(rows for rows, _ in shapes) == len(asked[0])
    assert all(rows * length <= 200 or rows == 1 for rows, length in shapes)
    assert [length for _, length in shapes] == sorted((n for _, n in shapes), reverse=True), (
        "the longest first"
    )


def test_batches():
    assert list(batches([3, 9, 5, 1], 10)) == [[1], [2, 0], [3]]
    assert list(batches([30], 10)) == [[0]]
    assert list(batches([], 10)) == []


def test_what_cannot_be_scored_is_empty(tiny_model, tiny_tokenizer, asked):
    model = tiny_model()
    lengths = {q.pair: len(q.prompt_ids) + len(q.answer_ids) for q in asked[0]}
    room = model.config.max_position_embeddings = sorted(lengths.values())[5]
    single = likelihood_questions("t", [{"example_id": "t", "text": "A"}], tiny_tokenizer, None)
    found = scores(model, asked[0] + single)
    assert found[single[0].pair]["logps"] == []
    assert [bool(found[pair]["logps"]) for pair in lengths] == [n <= room for n in lengths.values()]
    assert 5 < sum(n <= room for n in lengths.values()) < len(lengths)


# Generation


@torch.no_grad()
def one_by_one(model, tokenizer, question, stop, max_new_tokens=12):
    ids = torch.tensor([question.prompt_ids])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
        eos_token_id=stop, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


@pytest.fixture
def stopping(model, asked, tiny_tokenizer):
    """The model, and a list of stop tokens of which some answers use each, and some none."""
    eos = tiny_tokenizer.eos_token_id
    free = [one_by_one(model, tiny_tokenizer, q, [eos]) for q in asked[1]]
    stop = sorted({eos, free[0][3], free[1][5]})
    model.generation_config.eos_token_id = stop
    return model, stop


@pytest.mark.parametrize("batch_tokens", [1, 150, 10000])
def test_texts_are_those_of_generate(stopping, asked, tiny_tokenizer, batch_tokens):
    model, stop = stopping
    assert stop_tokens(model, tiny_tokenizer) == stop
    found = texts(model, tiny_tokenizer, asked[1], batch_tokens=batch_tokens)
    lengths = []
    for question in asked[1]:
        ids = one_by_one(model, tiny_tokenizer, question, stop)
        lengths.append(len(ids))
        said = [i for i in ids if i not in stop]
        assert found[question.prompt_name] == {
            "text": tiny_tokenizer.decode(said, skip_special_tokens=True).strip(), "num_new_tokens": len(ids),
        }  # fmt: skip
    assert min(lengths) < 12, "an answer that stopped by itself"


def test_an_empty_answer(tiny_model, tiny_tokenizer, asked):
    model = tiny_model()
    model.generation_config.eos_token_id = one_by_one(model, tiny_tokenizer, asked[1][0], [1])[0]
    assert texts(model, tiny_tokenizer, asked[1][:1]) == {
        asked[1][0].prompt_name: {"text": "", "num_new_tokens": 1}
    }


def test_answers_end_where_the_positions_end(tiny_model, tiny_tokenizer, asked):
    model = tiny_model()
    free = texts(model, tiny_tokenizer, asked[1])
    lengths = sorted(len(q.prompt_ids) for q in asked[1])
    room = model.config.max_position_embeddings = lengths[1] + 3
    assert most_tokens(model) == room
    found = texts(model, tiny_tokenizer, asked[1])
    for q in asked[1]:
        bound = max(0, min(12, room - len(q.prompt_ids)))
        assert found[q.prompt_name]["num_new_tokens"] == min(bound, free[q.prompt_name]["num_new_tokens"])
        if bound == 0:
            assert found[q.prompt_name]["text"] is None
        else:
            assert free[q.prompt_name]["text"].startswith(found[q.prompt_name]["text"].rstrip("�"))
    assert {found[q.prompt_name]["text"] is None for q in asked[1]} == {True, False}


def test_the_models_own_settings_hold_and_are_named(tiny_model, tiny_tokenizer, asked):
    model = tiny_model()
    before = texts(model, tiny_tokenizer, asked[1]), generation_settings(model)
    model.generation_config.repetition_penalty = 5.0
    assert texts(model, tiny_tokenizer, asked[1]) != before[0]
    assert generation_settings(model) != before[1]
    assert "transformers_version" not in generation_settings(model)
