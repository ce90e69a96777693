"""UNDIAL (arXiv 2402.10052): target, value, gradient, masked labels."""

from __future__ import annotations

import math

import pytest
import torch
from test_ce_u import LargestFloat32

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.undial import UNDIAL, UNDIALConfig, target_entropy, undial_loss
from unlearnkit.training.distillation import lowered
from unlearnkit.training.logprobs import chunked, target_logits
from unlearnkit.training.objective import Step, as_counts, count_streams

N, V = 6, 9


def _logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randint(0, V, (N,), generator=generator)


def test_closed_form_with_three_tokens():
    """Teacher (1/2, 1/4, 1/4), label 0, beta = ln 2: e^z of the label is halved, (1/4, 1/4, 1/4), so the
    target is uniform. The policy is (1/2, 1/4, 1/4): CE = (ln 2 + ln 4 + ln 4) / 3 = (5/3) ln 2, its floor is
    ln 3, and the gradient p - q is (1/6, -1/12, -1/12).
    """
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    logits = teacher.clone().requires_grad_()
    label = torch.tensor([0])
    loss = undial_loss(logits, teacher, label, beta=math.log(2))
    assert loss.item() == pytest.approx(5 / 3 * math.log(2), rel=1e-12)
    assert target_entropy(teacher, label, beta=math.log(2)).item() == pytest.approx(math.log(3), rel=1e-12)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert gradient[0].tolist() == pytest.approx([1 / 6, -1 / 12, -1 / 12], rel=1e-12)


def test_beta_zero_at_the_teacher_is_its_entropy_without_gradient():
    """The target is the policy itself: p - q = 0, and CE(p, p) = H(p)."""
    logits, labels = _logits()
    loss = undial_loss(logits, logits.detach(), labels, beta=0.0)
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(loss.detach(), -(p * p.log()).sum(-1), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@pytest.mark.parametrize("beta", [0.0, 3.0, 10.0, 1e4])
def test_the_target_is_a_distribution_with_less_of_the_label(beta):
    """Teacher probability t of the label becomes t e^-beta / (1 - t + t e^-beta), the others keep their
    ratios.
    """
    logits, labels = _logits()
    rows = torch.arange(N)
    target = lowered(logits.detach(), labels, beta).softmax(-1)
    torch.testing.assert_close(target.sum(-1), torch.ones(N, dtype=torch.float64), rtol=1e-12, atol=0)
    t = logits.detach().softmax(-1)[rows, labels]
    expected = t * math.exp(-beta) / (1 - t + t * math.exp(-beta))
    torch.testing.assert_close(target[rows, labels], expected, rtol=1e-10, atol=1e-300)


def test_gradient_is_policy_minus_target():
    logits, labels = _logits()
    teacher, _ = _logits(seed=1)
    gradient = torch.autograd.grad(undial_loss(logits, teacher, labels, beta=10.0).sum(), logits)[0]
    target = lowered(teacher.detach(), labels, 10.0).softmax(-1)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - target, rtol=1e-10, atol=1e-14)


def test_nothing_but_the_policy_gets_a_gradient():
    logits, labels = _logits()
    teacher, _ = _logits(seed=1)
    before = teacher.detach().clone()
    undial_loss(logits, teacher, labels, beta=10.0).sum().backward()
    assert teacher.grad is None
    assert torch.equal(teacher, before)  # the label is lowered in a copy


def _batch(*rows, side="right"):
    return StreamCollator(("forget",), pad_id=0, side=side)([{"forget": [row]} for row in rows])


class _Teacher:
    """Another tiny model."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def logits(self, batch):
        return target_logits(self.model, batch).logits_NV


def _loss(model, teacher, batch):
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))
    return UNDIAL(10.0)(Step(model, batch, counts, _Teacher(teacher)), batch)


@pytest.fixture
def models(tiny_model):
    """A policy and a teacher, in float64; the teacher is certain of much, one weight is not the policy's."""
    policy, teacher = tiny_model().double(), tiny_model().double()
    with torch.no_grad():
        teacher.model.embed_tokens.weight.mul_(3.0)
    return policy, teacher


ROW = {"input_ids": [5, 6, 7, 8, 0], "labels": [IGNORE, IGNORE, 7, 8, 0]}


def test_only_answer_positions_count_and_token_zero_is_a_token(models):
    """The answer is 7, 8 and the token with id 0. By hand from whole logits: rows 1, 2 and 3 alone, over 3;
    prompt, padding and the token that -100 would name, V - 100, play no part.
    """
    policy, teacher = models
    ids = torch.tensor([ROW["input_ids"]])
    logits, soft = policy(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0].detach()
    expected = undial_loss(logits[1:4], soft[1:4], torch.tensor([7, 8, 0]), beta=10.0).mean().item()
    other = {"input_ids": [11, 12, 13, 14, 15, 16, 17], "labels": [IGNORE] * 7}
    for batch in (_batch(ROW), _batch(ROW, other), _batch(ROW, other, side="left")):
        assert _loss(policy, teacher, batch).loss.item() == pytest.approx(expected, rel=1e-10)


def test_rows_outside_the_answer_get_no_gradient(models):
    """The gradient with regard to whole logits, through a model that is a table of them."""
    policy, teacher = models
    table = policy(input_ids=torch.tensor([ROW["input_ids"]])).logits.detach().requires_grad_()

    class Table(torch.nn.Module):
        def forward(self, input_ids, **_):
            return type("Output", (), {"logits": table})

    batch = _batch(ROW)
    gradient = torch.autograd.grad(_loss(Table(), teacher, batch).loss, table)[0][0]
    assert (gradient[[0, 4]] == 0).all()
    assert (gradient[1:4].abs().sum(-1) > 0).all()
    vocabulary = table.shape[-1]
    target = lowered(
        teacher(input_ids=batch["forget"]["input_ids"]).logits[0, 1:4].detach(), torch.tensor([7, 8, 0]), 10.0
    )
    plain = (table.detach()[0, 1:4].softmax(-1) - target.softmax(-1)) / 3
    torch.testing.assert_close(gradient[1:4], plain, rtol=1e-9, atol=1e-14)
    assert gradient[0, vocabulary - 100] == 0


def test_the_logged_divergence_is_what_is_left_to_learn(models):
    """At theta = teacher KL(target || pi) = log(1 - t + t e^-beta) shifted: - log Z with Z = 1 - t + t
    e^-beta, less beta times the target's share of the label; at the target it is 0.
    """
    _, teacher = models
    out = _loss(teacher, teacher, _batch(ROW))
    soft = teacher(input_ids=torch.tensor([ROW["input_ids"]])).logits[0, 1:4].detach().softmax(-1)
    t = soft[torch.arange(3), torch.tensor([7, 8, 0])]
    z = 1 - t + t * math.exp(-10)
    expected = (-z.log() - 10 * t * math.exp(-10) / z).mean()
    assert out.metrics["forget/target_kl"].item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-12)


def test_a_batch_without_targets_gives_zero(models):
    policy, teacher = models
    out = _loss(policy, teacher, _batch({"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}))
    assert out.loss.item() == 0.0
    assert all((g == 0).all() for g in torch.autograd.grad(out.loss, list(policy.parameters())))


def test_no_float32_copy_of_all_logits_exists():
    """64 rows in chunks of 8, forward and backward, from bfloat16 logits: no float32 tensor above 8 x V."""
    logits = torch.randn(64, 50).bfloat16().requires_grad_()
    teacher = torch.randn(64, 50).bfloat16()
    with LargestFloat32() as seen:
        loss = chunked(
            lambda z, soft, y: undial_loss(z, soft, y, beta=10.0),
            logits,
            teacher,
            torch.arange(64) % 50,
            chunk=8,
        )
        torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.float32
    assert 0 < seen.largest <= 8 * 50


@pytest.mark.parametrize("beta", [0.0, -3.0, float("nan"), float("inf")])
def test_beta_must_be_positive(beta, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.beta must be .*above 0, found .*use 10"):
        UNDIALConfig(output_dir=str(tmp_path), beta=beta)


def test_the_free_function_refuses_a_negative_beta():
    logits, labels = _logits()
    with pytest.raises(ValueError, match=r"at least 0, found -1\.0"):
        undial_loss(logits, logits, labels, beta=-1.0)
