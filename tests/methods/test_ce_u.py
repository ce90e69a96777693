"""CE-U (arXiv 2503.01224): value, gradient, the token that is skipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.ce_u import CEU, CEUConfig, after_first, ce_u_loss, entropy_without_label
from unlearnkit.methods.undial import undial_loss
from unlearnkit.training.logprobs import chunked
from unlearnkit.training.objective import Step, as_counts, count_streams

N, V = 6, 9


def _logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, V, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
    return logits, torch.randint(0, V, (N,), generator=generator)


def test_closed_form_with_three_tokens():
    """p = (1/2, 1/4, 1/4) and the label is token 0: q = (0, 1/2, 1/2), so CE = ln 4, which is H(q) - ln(1 -
    p_y) = ln 2 + ln 2. The gradient p - q is (1/2, -1/4, -1/4).
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log().requires_grad_()
    label = torch.tensor([0])
    loss = ce_u_loss(logits, label)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-12)
    assert entropy_without_label(logits, label).item() == pytest.approx(math.log(2), rel=1e-12)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert gradient[0].tolist() == pytest.approx([0.5, -0.25, -0.25], rel=1e-12)


def test_value_is_entropy_minus_the_log_of_the_rest():
    """q = p / (1 - p_y) away from the label: - sum q log p = - sum q (log q + log(1 - p_y)) = H(q) - log(1 -
    p_y).
    """
    logits, labels = _logits()
    rest = 1 - logits.detach().softmax(-1)[torch.arange(N), labels]
    expected = entropy_without_label(logits, labels) - rest.log()
    torch.testing.assert_close(ce_u_loss(logits, labels).detach(), expected, rtol=1e-12, atol=0)


def test_gradient_is_policy_minus_target():
    """dL/dz_v = p_v - q_v, and each row sums to 0; only -log(1 - p_y) has a gradient, for q is held still."""
    logits, labels = _logits()
    ours = torch.autograd.grad(ce_u_loss(logits, labels).sum(), logits, retain_graph=True)[0]
    p = logits.detach().softmax(-1)
    q = p.clone()
    q[torch.arange(N), labels] = 0
    q /= q.sum(-1, keepdim=True)
    torch.testing.assert_close(ours, p - q, rtol=1e-10, atol=1e-14)
    rest = torch.log(1 - logits.softmax(-1)[torch.arange(N), labels])
    torch.testing.assert_close(ours, torch.autograd.grad(-rest.sum(), logits)[0], rtol=1e-9, atol=1e-12)


def test_it_is_undial_with_the_policy_as_teacher_and_an_endless_beta():
    logits, labels = _logits()
    undial = undial_loss(logits, logits.detach(), labels, beta=math.inf)
    torch.testing.assert_close(ce_u_loss(logits, labels), undial, rtol=0, atol=0)
    near = undial_loss(logits, logits.detach(), labels, beta=60.0)
    torch.testing.assert_close(ce_u_loss(logits, labels), near, rtol=1e-12, atol=0)


def test_a_certain_model_and_an_impossible_token_give_finite_numbers():
    """A margin of 200 nats: 1 - p_y is e^-200 times 2, below what float32 knows, but - log of it is 200 - ln
    2, and the gradient at the label is p_y = 1. A vocabulary entry of -inf has probability 0 and counts for
    nothing.
    """
    logits = torch.tensor([[200.0, 0.0, 0.0, -math.inf]], requires_grad=True)
    loss = ce_u_loss(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2) + 200 - math.log(2), rel=1e-6)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert gradient[0].tolist() == pytest.approx([1.0, -0.5, -0.5, 0.0], abs=1e-6)


def _batch(*rows, side="right"):
    return StreamCollator(("forget",), pad_id=0, side=side)([{"forget": [row]} for row in rows])


LONG = {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORE, IGNORE, 7, 8, 9]}
TWO = {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]}
ONE = {"input_ids": [20, 21], "labels": [IGNORE, 21]}
NONE = {"input_ids": [20, 21], "labels": [IGNORE, IGNORE]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_target_of_each_sequence_is_known(side):
    batch = _batch(LONG, ONE, NONE, TWO, side=side)["forget"]
    assert after_first(batch).tolist() == [False, True, True, False, False, True]


def _loss(model, batches, skip_first=1):
    """Over the parts of one global batch, and its gradient."""
    counts = as_counts(count_streams(batches, ("forget",), "cpu"), ("forget",))
    outs = [CEU(skip_first)(Step(model, batch, counts), batch) for batch in batches]
    loss = torch.stack([out.loss for out in outs]).sum()
    return loss, torch.autograd.grad(loss, list(model.parameters())), outs


def test_the_mean_is_over_the_kept_tokens_of_the_global_batch(tiny_model):
    """Answers of 3, 2 and 1 tokens keep 2 + 1 + 0 = 3: the sum of their losses over 3, as one batch or as
    three.
    """
    model = tiny_model().double()
    whole, gradient, _ = _loss(model, [_batch(LONG, TWO, ONE)])
    parts = []
    for row, kept in ((LONG, [2, 3]), (TWO, [1])):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        targets = torch.tensor([row["input_ids"][t + 1] for t in kept])
        parts.append(ce_u_loss(logits[kept], targets).sum())
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 3, rel=1e-10)
    split, same, _ = _loss(model, [_batch(LONG), _batch(TWO), _batch(ONE)])
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=0)
    torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-14)


def test_answers_of_one_token_contribute_nothing(tiny_model):
    model = tiny_model().double()
    for rows in ([ONE, ONE], [NONE], [ONE, NONE]):
        loss, gradient, outs = _loss(model, [_batch(*rows)])
        assert loss.item() == 0.0
        assert all((g == 0).all() for g in gradient)
        assert all(torch.isfinite(value) for value in outs[0].metrics.values())
    assert _loss(model, [_batch(ONE)], skip_first=0)[0].item() > 0


def test_the_metrics_are_the_parts_of_the_loss(tiny_model):
    _, _, (out,) = _loss(tiny_model().double(), [_batch(LONG, TWO)])
    parts = out.metrics["forget/entropy"] + out.metrics["forget/unlikelihood"]
    torch.testing.assert_close(parts, out.metrics["forget/ce_u"], rtol=1e-12, atol=0)


class LargestFloat32(TorchDispatchMode):
    """The most elements of a float32 tensor that any operation gave."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                self.largest = max(self.largest, value.numel())
        return result


def test_no_float32_copy_of_all_logits_exists():
    """64 rows in chunks of 8, forward and backward, from bfloat16 logits: no float32 tensor above 8 x V."""
    logits = torch.randn(64, 50).bfloat16().requires_grad_()
    with LargestFloat32() as seen:
        loss = chunked(ce_u_loss, logits, torch.arange(64) % 50, chunk=8)
        gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert 0 < seen.largest <= 8 * 50


@pytest.mark.parametrize("skip_first", [-1, 2])
def test_only_one_token_may_be_skipped(skip_first, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.skip_first must be 0 or 1, found .*use 1"):
        CEUConfig(output_dir=str(tmp_path), skip_first=skip_first)
