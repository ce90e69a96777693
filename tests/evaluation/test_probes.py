"""Probes: the same numbers and texts as the plainest use of transformers, one example at a time."""

from __future__ import annotations

import dataclasses

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.batching import batches
from unlearnkit.evaluation.probes import (
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


def scores(model, questions, *, batch_tokens=4096, pad_id=2, share_prompts=None):
    done = []
    found = {}
    for results in score_answers(
        model, questions, pad_id=pad_id, batch_tokens=batch_tokens, done=done.append,
        share_prompts=share_prompts,
    ):  # fmt: skip
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


@pytest.mark.parametrize("share_prompts", [False, True])
def test_scores_are_those_of_transformers(model, asked, share_prompts):
    found = scores(model, asked[0], share_prompts=share_prompts)
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
        scores(model, questions, share_prompts=False),
        scores(model, questions, share_prompts=False, batch_tokens=1),
        scores(model, questions[::-1], share_prompts=False, batch_tokens=300, pad_id=77),
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
    scores(model, asked[0], batch_tokens=200, share_prompts=False)
    assert sum(rows for rows, _ in shapes) == len(asked[0])
    assert all(rows * length <= 200 or rows == 1 for rows, length in shapes)
    assert [length for _, length in shapes] == sorted((n for _, n in shapes), reverse=True), (
        "the longest first"
    )


def test_a_prompt_goes_through_the_model_once_for_all_of_its_answers(tiny_model, asked):
    """The tokens that the model sees: each prompt once, and each answer once."""
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(
        lambda m, a, kw: seen.append((kw["input_ids"], kw.get("past_key_values"))), with_kwargs=True
    )
    questions = [q for q in asked[0] if q.dataset == "forget"]
    scores(model, questions)
    prompts = sum(int((ids != 2).sum()) for ids, cache in seen if cache is None)
    answers = sum(int((ids != 2).sum()) for ids, cache in seen if cache is not None)
    assert prompts == sum(map(len, {q.prompt_ids for q in questions}))
    assert answers == sum(len(q.answer_ids) for q in questions)


@pytest.mark.parametrize("share_prompts", [False, True])
def test_no_question_is_lost_beside_shared_prompts(tiny_model, asked, share_prompts):
    """Without a prompt, without an answer, and whole ones: each gets a result, scored where it can be."""
    whole = [q for q in asked[0] if q.dataset == "forget"][:7]
    bare = dataclasses.replace(whole[0], prompt_ids=())
    mute = dataclasses.replace(whole[0], answer_ids=())
    model = tiny_model()
    found = scores(model, [*whole, bare, mute], share_prompts=share_prompts)
    assert set(found) == {q.pair for q in (*whole, bare, mute)}
    assert found[mute.pair]["logps"] == []
    assert len(found[bare.pair]["logps"]) == len(bare.answer_ids) - 1, "nothing predicts the first token"


def test_a_single_answer_for_each_prompt_is_scored_in_one_pass(tiny_model, asked):
    """There is nothing to share: no forward pass of its own for the prompts."""
    model, caches = tiny_model(), []
    model.register_forward_pre_hook(lambda m, a, kw: caches.append(kw["use_cache"]), with_kwargs=True)
    scores(model, [q for q in asked[0] if q.field == "answer"])
    assert set(caches) == {False}


@pytest.mark.parametrize("share_prompts", [False, True])
def test_nan_is_refused_with_the_example_and_the_token(tiny_model, asked, share_prompts):
    model, question = tiny_model(), asked[0][0]
    after = len(question.answer_ids) - 2  # rows of the last call from the third token on

    def spoil(module, args, logits):
        if logits.dim() == 2:
            logits[-after] = float("nan")

    model.get_output_embeddings().register_forward_hook(spoil)
    match = (
        rf"NaN for example {question.example_id} of 'forget', token 3 of {len(question.answer_ids)} of its "
        rf"answer \(id {question.answer_ids[2]}\)"
    )
    with pytest.raises(ModelError, match=match):
        scores(model, [question], share_prompts=share_prompts)


def test_what_does_not_fit_into_memory_is_halved(tiny_model, asked):
    """At most three rows fit: the same numbers, and a warning that says so."""
    model, base = tiny_model(), scores(tiny_model(), asked[0])

    def full(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.warns(UserWarning, match="ran out of memory with .* rows at once; going on with"):
        found = scores(model, asked[0], share_prompts=False)
    assert {k: v["hits"] for k, v in found.items()} == {k: v["hits"] for k, v in base.items()}


def test_one_row_that_does_not_fit_is_an_error(tiny_model, asked):
    model = tiny_model()

    def full(module, args, kwargs):
        raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(ModelError, match="no memory left even for one example"):
        scores(model, asked[0][:1], share_prompts=False)


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
            "text": tiny_tokenizer.decode(said, skip_special_tokens=True).strip(), "tokens": said,
            "num_new_tokens": len(ids),
        }  # fmt: skip
    assert min(lengths) < 12, "an answer that stopped by itself"


def test_an_empty_answer(tiny_model, tiny_tokenizer, asked):
    model = tiny_model()
    model.generation_config.eos_token_id = one_by_one(model, tiny_tokenizer, asked[1][0], [1])[0]
    assert texts(model, tiny_tokenizer, asked[1][:1]) == {
        asked[1][0].prompt_name: {"text": "", "tokens": [], "num_new_tokens": 1}
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


class Plain(torch.nn.Module):
    """The least that can be evaluated: forward and generate, no cache, no transformers."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.generation_config = inner.generation_config

    def forward(self, input_ids, attention_mask):
        """Logits of right-padded rows."""
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)

    def generate(self, input_ids, attention_mask, generation_config):
        """As the model inside does."""
        return self.inner.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config
        )


def test_any_model_with_forward_and_generate(tiny_model, tiny_tokenizer, asked):
    """It is scored without a shared prompt, and its texts are those of its own `generate`."""
    base, spoken = scores(tiny_model(), asked[0]), texts(tiny_model(), tiny_tokenizer, asked[1])
    found = scores(Plain(tiny_model()), asked[0])
    for name, result in base.items():
        close(found[name], result)
    assert texts(Plain(tiny_model()), tiny_tokenizer, asked[1]) == spoken


class Least(torch.nn.Module):
    """Not even a config: logits in, and a `generate` with two arguments of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask):
        """An output with logits."""
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)

    def generate(self, input_ids, max_new_tokens):
        """Greedy, without an end."""
        for _ in range(max_new_tokens):
            logits = self.inner(input_ids=input_ids, use_cache=False).logits[:, -1]
            input_ids = torch.cat([input_ids, logits.argmax(-1, keepdim=True)], dim=1)
        return input_ids


@pytest.mark.parametrize("batch_tokens", [1, 10000])
def test_the_least_of_models(tiny_model, tiny_tokenizer, asked, batch_tokens):
    found = scores(Least(tiny_model()), asked[0], batch_tokens=batch_tokens)
    for name, result in scores(tiny_model(), asked[0]).items():
        close(found[name], result)
    spoken = texts(tiny_model(), tiny_tokenizer, asked[1])
    assert texts(Least(tiny_model()), tiny_tokenizer, asked[1], batch_tokens=batch_tokens) == spoken


def test_prompt_tuning_is_scored_behind_its_virtual_tokens(tiny_model, asked):
    """The naive way, with the model's own last positions."""
    from peft import PromptTuningConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model(), config).eval()
    found = scores(model, asked[0])
    for question in asked[0][:5]:
        ids = torch.tensor([[*question.prompt_ids, *question.answer_ids]])
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        logp = torch.log_softmax(out.logits[0, -ids.shape[1] :].double(), -1)
        start = len(question.prompt_ids)
        want = [float(logp[start - 1 + i, token]) for i, token in enumerate(question.answer_ids)]
        assert found[question.pair]["logps"] == pytest.approx(want, abs=1e-4)


def test_nan_in_a_generation_is_refused(tiny_model, tiny_tokenizer, asked):
    model, steps = tiny_model(), []

    def spoil(module, args, logits):
        steps.append(1)
        return logits * float("nan") if len(steps) == 4 else logits

    model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(ModelError, match=r"NaN for example \w+ of 'forget', token 4 that it generates"):
        texts(model, tiny_tokenizer, asked[1])


def test_prompts_that_do_not_fit_together_are_scored_apart(tiny_model, asked):
    model, base = tiny_model(), scores(tiny_model(), asked[0])

    def full(module, args, kwargs):
        if kwargs.get("use_cache") and kwargs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.warns(UserWarning, match="ran out of memory with .* prompts at once"):
        found = scores(model, asked[0], share_prompts=True)
    assert {k: v["hits"] for k, v in found.items()} == {k: v["hits"] for k, v in base.items()}
