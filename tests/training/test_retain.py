"""Retain terms: cross-entropy and KL in both directions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.training import reference
from unlearnkit.training.objective import Needs, Step, as_counts, count_streams
from unlearnkit.training.retain import KL, RETAIN_TERMS, CrossEntropy, forward_kl, retain_term, reverse_kl

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [IGNORE, IGNORE, 7, 8, 9, 10]},
    {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]},
]


def _evaluate(term, model, provider=None, side="right", multiple_of=1):
    collate = StreamCollator(("retain",), pad_id=2, side=side, multiple_of=multiple_of)
    batch = collate([{"retain": [row]} for row in ROWS])
    counts = as_counts(count_streams([batch], ("retain",), "cpu"), ("retain",))
    out = term(Step(model, batch, counts, provider), batch)
    return out, torch.autograd.grad(out.loss, list(model.parameters()))


def _disturbed(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def test_closed_form_on_two_and_three_tokens():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = 1/2 ln 2 + 1/2 ln (2/3) = 1/2 ln (4/3), and
    KL(q || p) = 1/4 ln (1/2) + 3/4 ln (3/2) = 3/4 ln 3 - ln 2.
    p = (1/2, 1/4, 1/4) against the uniform q: KL(p || q) = ln 3 - H(p) = ln 3 - 3/2 ln 2.
    """
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log() + 2.0  # logits are free up to a constant
    assert forward_kl(q, p).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)
    assert reverse_kl(q, p).item() == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-12)
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    assert forward_kl(uniform, p).item() == pytest.approx(math.log(3) - 1.5 * math.log(2), rel=1e-12)


def test_parity_with_pytorch():
    """F.kl_div(input=log q, target=log p, log_target=True) is KL(p || q)."""
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(2, 5, 17, generator=generator, dtype=torch.float64)
    log_policy, log_ref = policy.log_softmax(-1), ref.log_softmax(-1)
    options = {"log_target": True, "reduction": "none"}
    torch.testing.assert_close(
        forward_kl(policy, ref), functional.kl_div(log_policy, log_ref, **options).sum(-1)
    )
    torch.testing.assert_close(
        reverse_kl(policy, ref), functional.kl_div(log_ref, log_policy, **options).sum(-1)
    )


@pytest.mark.parametrize("kl", [forward_kl, reverse_kl])
def test_impossible_tokens_give_no_nan(kl):
    """A token that neither model can say changes nothing, in value and gradient."""
    some = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    other = torch.tensor([[0.5, -1.0, -torch.inf]])
    value = kl(some, other)
    torch.testing.assert_close(value, kl(some[:, :2], other[:, :2]))
    value.sum().backward()
    assert torch.isfinite(some.grad).all()


def test_sixteen_bits_are_widened_first():
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(2, 5, 17, generator=generator).bfloat16()
    assert forward_kl(policy, ref).dtype == torch.float32
    torch.testing.assert_close(
        forward_kl(policy, ref), forward_kl(policy.float(), ref.float()), rtol=0, atol=0
    )


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_zero_with_zero_gradient_at_the_reference(tiny_model, direction):
    model = tiny_model().double()
    out, gradients = _evaluate(KL(direction=direction), model, reference.FrozenModel(tiny_model().double()))
    assert out.loss.item() == pytest.approx(0.0, abs=1e-14)
    assert max(float(g.abs().max()) for g in gradients) < 1e-12


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_of_a_model_is_the_mean_over_its_answer_positions(tiny_model, direction):
    """By hand from full logits: the 6 rows that predict an answer token, and no prompt or padding row."""
    model, frozen = _disturbed(tiny_model().double()), tiny_model().double()
    term = KL(direction=direction)
    out, gradients = _evaluate(term, model, reference.FrozenModel(frozen))
    rows = []
    for row in ROWS:
        tokens = torch.tensor([row["input_ids"]])
        answer = [t - 1 for t, label in enumerate(row["labels"]) if label != IGNORE]
        p, q = frozen(tokens).logits[0, answer].softmax(-1), model(tokens).logits[0, answer].softmax(-1)
        if direction == "reverse":
            p, q = q, p
        rows.append((p * (p / q).log()).sum(-1))
    expected = torch.cat(rows).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=1e-12)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-10)
    assert list(out.metrics) == ["retain/kl" if direction == "forward" else "retain/reverse_kl"]


@pytest.mark.parametrize("term", [KL(), KL(direction="reverse"), CrossEntropy()])
def test_padding_does_not_matter(tiny_model, term):
    model, provider = _disturbed(tiny_model().double()), reference.FrozenModel(tiny_model().double())
    first, gradients = _evaluate(term, model, provider)
    for layout in ({"side": "left"}, {"multiple_of": 32}, {"side": "left", "multiple_of": 32}):
        again, others = _evaluate(term, model, provider, **layout)
        torch.testing.assert_close(again.loss, first.loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-10)


def test_names():
    assert retain_term("none") is None
    assert retain_term("nll", "general") == CrossEntropy(("general",))
    assert [retain_term(name).needs for name in ("nll", "kl", "reverse_kl")] == [
        Needs.NOTHING, Needs.REFERENCE_LOGITS, Needs.REFERENCE_LOGITS
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"training\.retain is 'kld'; use one of nll, kl, reverse_kl, none"):
        retain_term("kld")
    assert all(name == "none" or retain_term(name) is not None for name in RETAIN_TERMS)
