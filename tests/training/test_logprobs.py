"""The shift, the gather and -100: against plain log-softmax, and with logits at targets only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers_training import lora
from torch import nn

from unlearnkit.data.collate import pad_rows
from unlearnkit.models.load import quiet_peft
from unlearnkit.training import logprobs
from unlearnkit.training.logprobs import IGNORE

B, T, V = 3, 7, 11


def _logits_and_labels(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[0, :3] = IGNORE
    labels[1, [0, 1, 4, 6]] = IGNORE
    labels[2] = IGNORE  # a row without any target
    return logits, labels


def _plain(logits, labels):
    """log softmax of row t at label t + 1, written with a loop."""
    out = torch.zeros(labels.shape, dtype=logits.dtype)
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != IGNORE:
                out[b, t] = torch.log_softmax(logits[b, t - 1], -1)[labels[b, t]]
    return out


def test_token_logps_are_the_plain_ones_with_their_gradient():
    logits, labels = _logits_and_labels()
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    values, expected = logprobs.token_logps(ours, labels), _plain(plain, labels)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        logprobs.sequence_logps(logits, labels), expected.sum(1), rtol=1e-12, atol=1e-12
    )
    weight = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (values * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)


def test_a_label_at_position_zero_has_no_logits_and_is_no_target():
    logits, labels = _logits_and_labels()
    labels[0, 0] = 5
    assert logprobs.token_logps(logits, labels)[0, 0] == 0
    assert logprobs.count_targets(labels).tolist() == [4, 3, 0]
    assert len(logprobs.targets(labels)) == len(logprobs.target_positions(labels)) == 7


def test_gradcheck():
    logits, labels = _logits_and_labels()
    positions, targets = logprobs.target_positions(labels), logprobs.targets(labels)
    rows = logits.flatten(0, 1)[positions].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logprobs.label_logps(x, targets, chunk=2), (rows,))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 512])
def test_the_chunk_size_does_not_matter(chunk):
    logits, labels = _logits_and_labels()
    targets = logprobs.targets(labels)
    results = []
    for size in (chunk, 1000):
        rows = logits.flatten(0, 1)[logprobs.target_positions(labels)].requires_grad_()
        values = logprobs.label_logps(rows, targets, chunk=size)
        values.square().sum().backward()
        results.append((values.detach(), rows.grad, *logprobs.token_statistics(rows, targets, chunk=size)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_gives_float32(dtype):
    """The values are those of the rounded logits in float32: no sum is ever taken in 16 bits."""
    logits, labels = _logits_and_labels(dtype)
    values = logprobs.token_logps(logits, labels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, _plain(logits.float(), labels), rtol=1e-6, atol=1e-6)
    assert logprobs.sequence_logps(logits, labels).dtype == torch.float32
    rows = logits.flatten(0, 1)[logprobs.target_positions(labels)].requires_grad_()
    logprobs.label_logps(rows, logprobs.targets(labels)).sum().backward()
    assert rows.grad.dtype == dtype


def test_impossible_tokens_give_no_nan():
    logits = torch.zeros(2, 4).masked_fill(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]).bool(), -torch.inf)
    logits.requires_grad_()
    values = logprobs.label_logps(logits, torch.tensor([0, 3]))
    torch.testing.assert_close(values, -torch.log(torch.tensor([2.0, 4.0])))
    values.sum().backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([0.5, -0.5, 0.0, 0.0]))
    stats = logprobs.token_statistics(logits, torch.tensor([0, 3]))
    torch.testing.assert_close(stats.means, values.detach())
    torch.testing.assert_close(stats.variances, torch.zeros(2))
    impossible = logprobs.label_logps(logits.detach(), torch.tensor([2, 0]))
    assert impossible[0] == -torch.inf


def test_token_statistics_in_closed_form():
    """p = (1/2, 1/4, 1/4): mu = sum p ln p = -(3/2) ln 2, E[(ln p)^2] = (1/2 + 1/2 * 4) ln^2 2 = (5/2) ln^2
    2, so var = (5/2 - 9/4) ln^2 2 = ln^2 2 / 4. The arg max is token 0.
    """
    ln2 = torch.log(torch.tensor(2.0, dtype=torch.float64))
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64)) + 3.0
    stats = logprobs.token_statistics(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(stats.logps, torch.stack([-ln2, -2 * ln2]))
    assert stats.hits.tolist() == [True, False]
    torch.testing.assert_close(stats.means, (-1.5 * ln2).expand(2))
    torch.testing.assert_close(stats.variances, (ln2**2 / 4).expand(2))


def test_no_targets_at_all():
    logits = torch.randn(2, 3, V, requires_grad=True)
    values = logprobs.token_logps(logits, torch.full((2, 3), IGNORE))
    values.sum().backward()
    assert float(values.detach().abs().sum()) == 0.0
    assert float(logits.grad.abs().sum()) == 0.0
    empty = logprobs.token_statistics(torch.zeros(0, V), torch.zeros(0, dtype=torch.long))
    assert [len(column) for column in empty] == [0, 0, 0, 0]


def test_chunked_has_the_gradient_of_the_whole():
    def entropy(logits, bias):
        logp = torch.log_softmax(logits + bias, -1)
        return -(logp.exp() * logp).sum(-1)

    generator = torch.Generator().manual_seed(2)
    logits, bias = torch.randn(2, 5, V, generator=generator, dtype=torch.float64)
    results = []
    for fn in (lambda x: logprobs.chunked(entropy, x, bias, chunk=2), lambda x: entropy(x, bias)):
        rows = logits.clone().requires_grad_()
        values = fn(rows)
        (values * torch.arange(5)).sum().backward()
        results.append((values.detach(), rows.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda x: logprobs.chunked(entropy, x, bias, chunk=2), (logits.clone().requires_grad_(),)
    )
    assert logprobs.chunked(entropy, logits[:0], bias[:0]).shape == (0,)


# ---- Logits at targets only --------------------------------------------------------------------------------


def _batch(side="right", length=9):
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORE, IGNORE, 7, 8, 9]},
        {"input_ids": [10, 11, 12, 13, 14, 15, 16], "labels": [IGNORE] * 5 + [15, 16]},
        {"input_ids": [20, 21], "labels": [IGNORE, 21]},
    ]
    return pad_rows(rows, length, pad_id=0, side=side)


class _Headless(nn.Module):
    """A model whose head cannot be found."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.inner(**inputs).logits)


def _untied(model):
    model.config.tie_word_embeddings = False
    model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    return model


def _wrapped(model, **settings):
    from peft import get_peft_model

    with quiet_peft():
        return get_peft_model(model, lora(init_lora_weights=False, **settings)).eval()


KINDS = {
    "tied": lambda model: model,
    "untied": _untied,
    "lora": _wrapped,
    "lora on the head": lambda model: _wrapped(_untied(model), target_modules=["q_proj", "lm_head"]),
    "head not reachable": _Headless,
    "head is None": lambda model: setattr(model, "get_output_embeddings", lambda: None) or model,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_at_targets_are_the_full_logits_there(tiny_model, kind, side):
    torch.manual_seed(0)
    model = KINDS[kind](tiny_model())
    batch = _batch(side)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    full = model(**inputs, use_cache=False).logits
    out = logprobs.target_logits(model, batch)
    assert out.logits_NV.shape == (6, full.shape[-1])
    torch.testing.assert_close(
        out.logits_NV, full[logprobs.target_mask(batch["labels"])], rtol=1e-5, atol=1e-5
    )
    assert out.targets_N.tolist() == [7, 8, 9, 15, 16, 21]
    torch.testing.assert_close(
        logprobs.sum_by_sequence(logprobs.label_logps(out.logits_NV, out.targets_N), batch),
        logprobs.sequence_logps(full, batch["labels"]),
        rtol=1e-5,
        atol=1e-5,
    )
    del batch["target_positions"]
    again = logprobs.target_logits(model, batch)
    torch.testing.assert_close(again.logits_NV, out.logits_NV, rtol=0, atol=0)


def test_the_gradient_through_the_selected_rows_is_that_of_the_full_logits(tiny_model):
    batch, grads = _batch(), []
    for full in (True, False):
        model = tiny_model()
        if full:
            values = logprobs.token_logps(
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
                batch["labels"],
            )
        else:
            out = logprobs.target_logits(model, batch)
            values = logprobs.label_logps(out.logits_NV, out.targets_N)
        values.sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tied", "lora"])
def test_the_head_sees_target_rows_only_and_the_hook_goes_away(tiny_model, kind):
    model = KINDS[kind](tiny_model())
    shapes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    batch = _batch()
    logprobs.target_logits(model, batch)
    model(input_ids=batch["input_ids"])
    vocabulary = model.config.vocab_size
    assert shapes == [(6, vocabulary), (3, 9, vocabulary)]


def test_the_hook_goes_away_after_an_error(tiny_model):
    model = tiny_model()
    batch = _batch()
    bad = {**batch, "input_ids": batch["input_ids"] + 10**6}
    with pytest.raises(IndexError):
        logprobs.target_logits(model, bad)
    assert not model.get_output_embeddings()._forward_pre_hooks
