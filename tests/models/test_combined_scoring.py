"""What the evaluation does with networks served as one: decoding, shared prompts, logits of targets alone."""

from __future__ import annotations

import pytest
import torch
from helpers_families import (
    EOS,
    FAMILIES,
    PAD,
    TOLERANCE,
    VOCABULARY,
    WINDOWED,
    left,
    pair,
    prompts,
    shared_pair,
)

from unlearnkit.evaluation.decode import Sampling, can_decode, decode, sampler
from unlearnkit.evaluation.probes import score_answers
from unlearnkit.evaluation.questions import Question
from unlearnkit.models.combined.combination import kept_tokens
from unlearnkit.training.logprobs import target_logits

every_family = pytest.mark.parametrize("family", FAMILIES)
ROWS = prompts((4, 9, 7, 5))
NEW = 9
#: Tokens that end a row: enough of them that rows end at different steps.
STOP = [EOS, *range(10, 30)]


# ---- Decoding ----------------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_decoding_is_generate(family):
    model = shared_pair(family)
    assert can_decode(model, ())
    found = decode(model, ROWS, max_new_tokens=NEW, stop=STOP, pad_id=PAD)
    if family in WINDOWED:  # such a cache cannot drop rows; the model's own generate takes over
        assert found is None
        return
    batch = left(ROWS)
    whole = model.generate(
        **batch, max_new_tokens=NEW, do_sample=False, eos_token_id=STOP, pad_token_id=PAD
    )[:, batch["input_ids"].shape[1] :].tolist()  # fmt: skip
    ends = [next((i + 1 for i, token in enumerate(row) if token in STOP), NEW) for row in whole]
    assert found == [row[:end] for row, end in zip(whole, ends, strict=True)]


def test_rows_end_at_different_steps():
    """Or the test above would not show that a cache of several networks drops rows."""
    lengths = {
        family: sorted(map(len, decode(shared_pair(family), ROWS, max_new_tokens=NEW, stop=STOP, pad_id=PAD)))
        for family in FAMILIES if family not in WINDOWED
    }  # fmt: skip
    assert sum(len(set(some)) > 2 for some in lengths.values()) > 2


@torch.no_grad()
def test_what_is_drawn_does_not_depend_on_the_rows_beside_it_and_is_never_filtered():
    model, names = shared_pair("Llama"), [f"row {i}" for i in range(len(ROWS))]
    sampling = Sampling(temperature=50.0, seed=5)
    options = {"max_new_tokens": NEW, "stop": STOP, "pad_id": PAD}
    together = decode(model, ROWS, pick=sampler(sampling, names, NEW), **options)
    for name, row, new in zip(names, ROWS, together, strict=True):
        assert decode(model, [row], pick=sampler(sampling, [name], NEW), **options) == [new]
        logits = model.networks["target"](torch.tensor([row + new])).logits[0, len(row) - 1 : -1]
        assert kept_tokens(logits.log_softmax(-1), 0.1)[torch.arange(len(new)), new].all()


# ---- Likelihoods -------------------------------------------------------------------------------------------


def questions():
    """Five prompts with three answers each, of one to six tokens; an answer may hold filtered tokens."""
    answers = prompts((1, 6, 3, 2, 5, 4, 1, 2, 3, 6, 5, 1, 4, 4, 2), seed=2)
    return [
        Question(
            "likelihood", "forget", str(i), "answer", 0, "", "", tuple(prompt), tuple(answers[3 * i + k])
        )
        for i, prompt in enumerate(prompts((8, 3, 12, 7, 8), seed=3))
        for k in range(3)
    ]


def score(model, *, share_prompts=None, batch_tokens=4096):
    found, done = {}, []
    for results in score_answers(
        model,
        questions(),
        pad_id=PAD,
        batch_tokens=batch_tokens,
        done=done.append,
        share_prompts=share_prompts,
    ):
        found.update(results)
    assert sum(done) == len(questions())
    return found


@torch.no_grad()
def by_hand(model, question):
    ids = torch.tensor([[*question.prompt_ids, *question.answer_ids]])
    logps = model(ids).logits[0].log_softmax(-1)[len(question.prompt_ids) - 1 : -1]
    return logps[torch.arange(len(question.answer_ids)), list(question.answer_ids)]


@every_family
@pytest.mark.parametrize("share_prompts", [True, False, None])
def test_scores_with_shared_prompts_and_with_whole_rows_are_those_of_each_row_alone(family, share_prompts):
    model = shared_pair(family)
    found = score(model, share_prompts=share_prompts, batch_tokens=40)
    for question in questions():
        result = torch.tensor(found[question.pair]["logps"])
        assert torch.isfinite(result).all()
        torch.testing.assert_close(result, by_hand(model, question), atol=1e-4, rtol=1e-5)


def test_prompts_are_really_shared(monkeypatch):
    model, seen = pair(), []
    forward = model.networks["target"].forward
    monkeypatch.setattr(
        model.networks["target"],
        "forward",
        lambda **some: seen.append(some["input_ids"].numel()) or forward(**some),
    )
    score(model, share_prompts=True)
    shared, seen[:] = sum(seen), []
    score(model, share_prompts=False)
    assert shared < 0.7 * sum(seen)


# ---- Logits of targets alone -------------------------------------------------------------------------------


def batch_of(rows):
    """Labels are the second half of each row; padding on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        labels[i, len(row) // 2 : len(row)] = torch.tensor(row[len(row) // 2 :])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@every_family
@torch.no_grad()
def test_logits_of_targets_alone_are_those_of_all(family, monkeypatch):
    model, batch = shared_pair(family), batch_of(ROWS)
    rows = {}
    heads = model.output_heads()
    assert len({id(head) for head in heads}) == 2
    hooks = [
        head.register_forward_hook(lambda _, args, out, i=i: rows.update({i: tuple(out.shape)}))
        for i, head in enumerate(heads)
    ]
    found = target_logits(model, batch)
    for hook in hooks:
        hook.remove()
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    b, t = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
    torch.testing.assert_close(found.logits_NV, whole[b, t], **TOLERANCE)
    assert torch.equal(found.targets_N, batch["input_ids"][b, t + 1])
    assert rows == {0: (len(b), VOCABULARY), 1: (len(b), VOCABULARY)}
    assert not any(head._forward_pre_hooks for head in heads)


def test_hooks_are_gone_after_a_failure(monkeypatch):
    model = pair()
    monkeypatch.setattr(model.networks["assistant"], "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        target_logits(model, batch_of(ROWS))
    assert not any(head._forward_pre_hooks for head in model.output_heads())


@torch.no_grad()
def test_each_networks_logits_of_targets_alone():
    model, batch = shared_pair("Llama"), batch_of(ROWS)
    found = target_logits(model, batch, return_networks=True)
    plain = target_logits(model, batch)
    torch.testing.assert_close(model.combine(found.networks), plain.logits_NV, **TOLERANCE)
    assert torch.equal(found.targets_N, plain.targets_N)


def test_labels_give_the_mean_nll_as_from_any_model():
    """Row by row from the logits; what has no label does not count."""
    model, batch = shared_pair("Llama"), left(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, -2] = -100
    with torch.no_grad():
        out = model(**batch, labels=labels)
    logp = out.logits.double().log_softmax(-1)
    places = [(b, t) for b, t in (labels != -100).nonzero().tolist() if t > 0]
    expected = sum(-float(logp[b, t - 1, labels[b, t]]) for b, t in places) / len(places)
    assert float(out.loss) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="give input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 8))
