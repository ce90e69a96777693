"""NPO (arXiv 2404.05868): value, gradient, limits."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_training import data_sets, logs, make_trainer

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.npo import NPO, NPOConfig, npo_loss
from unlearnkit.training import logprobs
from unlearnkit.training.objective import Step, as_counts, count_streams

B, T, V = 4, 6, 13


class _Toy:
    """Logits as free parameters: theta is the table itself, in float64."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, V, (B, T), generator=generator)
        self.labels[:, :2] = IGNORE
        self.labels[1, 3:] = IGNORE
        self.theta = torch.randn(B, T, V, generator=generator, dtype=torch.float64).requires_grad_()
        other = torch.randn(B, T, V, generator=generator, dtype=torch.float64)
        self.reference = logprobs.sequence_logps(other, self.labels)

    def logps(self):
        return logprobs.sequence_logps(self.theta, self.labels)

    def grad(self, loss):
        return torch.autograd.grad(loss, self.theta)[0]

    def ascent(self):
        """Gradient ascent on the mean of the summed answers: the gradient of + mean log pi."""
        return self.grad(self.logps().mean())


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_value_and_gradient_at_the_reference(beta):
    """N1, N2. At theta = ref the log-ratio is 0 and softplus(0) = ln 2, so L = (2/beta) ln 2. Its slope there
    is sigma(0) = 1/2, times (2/beta) * beta = 2: the gradient is that of + mean log pi.
    """
    toy = _Toy()
    loss = npo_loss(toy.logps(), toy.logps().detach(), beta=beta)
    torch.testing.assert_close(loss, torch.full_like(loss, 2 * math.log(2) / beta), rtol=1e-12, atol=0)
    torch.testing.assert_close(toy.grad(loss.mean()), toy.ascent(), rtol=1e-12, atol=1e-15)


def test_the_published_number():
    assert npo_loss(torch.zeros(1), torch.zeros(1), beta=0.1).item() == pytest.approx(13.862943611, rel=1e-7)


def test_closed_form():
    """beta = 1 and pi_theta / pi_ref = 3: L = 2 ln(1 + 3) = 4 ln 2. beta = 2 and a ratio of 1/2:
    L = ln(1 + 1/4) = ln 5 - 2 ln 2.
    """
    ln = torch.log(torch.tensor([3.0, 0.5], dtype=torch.float64))
    ref = torch.tensor([-7.0, -2.0], dtype=torch.float64)
    assert npo_loss(ref[:1] + ln[:1], ref[:1], beta=1.0).item() == pytest.approx(4 * math.log(2), rel=1e-12)
    assert npo_loss(ref[1:] + ln[1:], ref[1:], beta=2.0).item() == pytest.approx(math.log(1.25), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_gradient_away_from_the_reference(beta):
    """N3, eq. 5: the gradient is that of E[sg(W) log pi] with W = 2 pi^beta / (pi^beta + ref^beta)."""
    toy = _Toy()
    gradient = toy.grad(npo_loss(toy.logps(), toy.reference, beta=beta).mean())
    policy, reference = (beta * toy.logps()).exp(), (beta * toy.reference).exp()
    weight = (2 * policy / (policy + reference)).detach()
    torch.testing.assert_close(gradient, toy.grad((weight * toy.logps()).mean()), rtol=1e-11, atol=1e-14)
    less_likely = toy.logps().detach() < toy.reference
    assert less_likely.any()
    assert not less_likely.all()
    assert torch.equal(weight < 1, less_likely)


def test_small_beta_tends_to_gradient_ascent_linearly():
    """N4: |grad NPO - grad GA| goes to zero like beta."""
    toy = _Toy()
    ascent = toy.ascent()
    gaps = [
        (toy.grad(npo_loss(toy.logps(), toy.reference, beta=beta).mean()) - ascent).norm().log10().item()
        for beta in (1e-2, 1e-3, 1e-4)
    ]
    assert gaps[0] - gaps[1] == pytest.approx(1.0, abs=0.05)
    assert gaps[1] - gaps[2] == pytest.approx(1.0, abs=0.05)


def test_large_beta_is_not_gradient_ascent():
    toy = _Toy()
    gradient = toy.grad(npo_loss(toy.logps(), toy.reference, beta=50.0).mean())
    assert (gradient - toy.ascent()).norm() > 0.5 * toy.ascent().norm()


def test_rises_with_the_likelihood_and_is_bounded_below():
    logps = torch.linspace(-400, 400, 81, dtype=torch.float64)
    loss = npo_loss(logps, torch.zeros_like(logps), beta=0.1)
    assert (loss.diff() > 0).all()
    assert (loss > 0).all()
    huge = npo_loss(torch.tensor([-1e5, 1e5]), torch.zeros(2), beta=1.0)
    assert huge.tolist() == [0.0, 2e5]


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_positive(beta, tmp_path):
    with pytest.raises(ValueError, match=r"beta must be above 0, found .*grad_ascent"):
        npo_loss(torch.zeros(1), torch.zeros(1), beta=beta)
    with pytest.raises(RecipeError, match=r"training\.beta must be above 0, found .*grad_ascent"):
        NPOConfig(output_dir=str(tmp_path), beta=beta)


class _Fixed:
    """Reference log-probs that depend on the tokens alone."""

    live = False

    def token_logps(self, batch):
        return -0.1 * logprobs.batch_targets(batch).double()


def _loss_and_gradient(model, rows, side="right", multiple_of=1):
    batch = StreamCollator(("forget",), pad_id=3, side=side, multiple_of=multiple_of)(
        [{"forget": [row]} for row in rows]
    )
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))
    out = NPO(0.1)(Step(model, batch, counts, _Fixed()), batch)
    gradients = torch.autograd.grad(out.loss, list(model.parameters()))
    return out.loss.detach(), gradients, out.metrics


def test_padding_order_and_prompt_do_not_matter(tiny_model):
    """N7, in float64: right or left padding, more of it, the order of the rows, what stands at prompt
    labels."""
    model = tiny_model().double()
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [IGNORE, IGNORE, 7, 8, 9, 10]},
        {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]},
        {"input_ids": [20, 21, 22, 23], "labels": [IGNORE] * 3 + [23]},
    ]
    first = _loss_and_gradient(model, rows)
    for change in ({"side": "left"}, {"multiple_of": 16}, {"side": "left", "multiple_of": 16}):
        torch.testing.assert_close(_loss_and_gradient(model, rows, **change), first, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(_loss_and_gradient(model, rows[::-1]), first, rtol=1e-10, atol=1e-10)
    labelled = [{**rows[0], "labels": [5, *rows[0]["labels"][1:]]}, *rows[1:]]  # position 0 never is a target
    torch.testing.assert_close(_loss_and_gradient(model, labelled), first, rtol=1e-10, atol=1e-10)


def test_the_gradient_at_the_reference_is_gradient_ascents_through_a_model(tiny_model):
    model = tiny_model().double()
    batch = StreamCollator(("forget",), pad_id=0)(
        [{"forget": [{"input_ids": [5, 6, 7, 8], "labels": [IGNORE, 6, 7, 8]}]}, {"forget": [
            {"input_ids": [9, 8, 7], "labels": [IGNORE, IGNORE, 7]}]}]
    )  # fmt: skip
    counts = as_counts(count_streams([batch], ("forget",), "cpu"), ("forget",))

    class Same:
        live = True

        def token_logps(self, batch):
            out = logprobs.target_logits(model, batch)
            return logprobs.label_logps(out.logits_NV, out.targets_N).detach()

    out = NPO(0.1)(Step(model, batch, counts, Same()), batch)
    assert out.loss.item() == pytest.approx(2 * math.log(2) / 0.1, rel=1e-12)
    ours = torch.autograd.grad(out.loss, list(model.parameters()))
    logits = model(input_ids=batch["forget"]["input_ids"]).logits
    ascent = torch.autograd.grad(
        logprobs.sequence_logps(logits, batch["forget"]["labels"]).mean(), list(model.parameters())
    )
    torch.testing.assert_close(ours, ascent, rtol=1e-9, atol=1e-12)


def test_training_starts_at_two_ln_two_over_beta(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """The real loop with the cached reference, uneven last batch included."""
    trainer = make_trainer(
        "npo",
        tiny_model(),
        tiny_tokenizer,
        data_sets(fictional_rows),
        tmp_path,
        retain="none",
        num_train_epochs=3,
    )
    trainer.train()
    steps = logs(trainer)
    assert steps[0]["loss"] == pytest.approx(13.862943611, rel=1e-6)
    assert steps[0]["forget/weight"] == pytest.approx(1.0, abs=1e-6)
    assert steps[0]["forget/log_ratio"] == pytest.approx(0.0, abs=1e-4)
    assert steps[-1]["forget/log_ratio"] < -1
    assert 0 < steps[-1]["forget/weight"] < 1
