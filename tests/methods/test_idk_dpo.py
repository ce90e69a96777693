"""IdkDPO (arXiv 2401.06121, 2404.05868): the factor 2/beta, NPO inside it, and refusals that change."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_preference import PAIRS, items, logp_gradients, measure, moved, step_on, trl_dpo
from helpers_training import data_sets, logs, make_trainer

from unlearnkit.methods.idk_dpo import IdkDPOConfig
from unlearnkit.methods.npo import NPO
from unlearnkit.training.objective import terms_of
from unlearnkit.training.preference import DPO, SIDES, dpo_loss


@pytest.fixture
def policy(tiny_model):
    """A two-layer model in float64."""
    return tiny_model().double()


@pytest.mark.parametrize("beta", [0.125, 1.0])
def test_value_and_gradient_at_the_reference(policy, beta):
    """(2/beta) ln 2; the gradient is DPO's, -(2/beta)(beta/2)(grad log pi(w) - grad log pi(l)): no beta."""
    out = measure(DPO(beta, PAIRS, 2 / beta), policy, policy, items())
    assert out.loss.item() == pytest.approx(2 * math.log(2) / beta, rel=1e-12)
    w, rejected = (logp_gradients(policy, policy, items(), part) for part in (PAIRS.chosen, PAIRS.rejected))
    expected = [b - a for a, b in zip(w, rejected, strict=True)]
    torch.testing.assert_close(list(out.gradients), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_without_the_winning_term_it_is_npo(policy, beta):
    """With log(pi_theta(w) / pi_ref(w)) left out, Delta = -log(pi_theta(l) / pi_ref(l)), and
    (2/beta) softplus(-beta Delta) = (2/beta) softplus(beta log(pi_theta(l) / pi_ref(l))): NPO, eq. 3, on l.
    """
    reference = moved(policy)
    step = step_on(policy, reference, items())
    ratios = step.sequence_logps(PAIRS.rejected) - step.reference.sequence_logps(PAIRS.rejected)
    loss = 2 / beta * dpo_loss(torch.zeros_like(ratios), ratios, beta=beta).mean()
    npo = measure(NPO(beta, PAIRS.rejected), policy, reference, items())
    assert loss.item() == pytest.approx(npo.loss.item(), rel=1e-7)  # counts are float32
    gradients = torch.autograd.grad(loss, list(policy.parameters()))
    torch.testing.assert_close(gradients, npo.gradients, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_it_is_two_over_beta_times_trls_sigmoid_loss(policy, tiny_tokenizer, texts, tmp_path, beta):
    """-(2/beta) E log sigma(beta Delta) is 2/beta times TRL's -E log sigma(beta Delta), on the same batch."""
    reference = moved(policy)
    theirs = trl_dpo(policy, reference, tiny_tokenizer, texts, tmp_path, beta=beta, loss_type="sigmoid")
    ours = measure(DPO(beta, PAIRS, 2 / beta), policy, reference, items(theirs.tokens))
    assert ours.loss.item() == pytest.approx(2 / beta * theirs.loss.item(), rel=1e-6)
    assert ours.metrics["rewards/margins"] == pytest.approx(theirs.metrics["rewards/margins"], abs=1e-5)


@pytest.mark.parametrize(("scaled", "start"), [(True, 2 * math.log(2) / 0.1), (False, math.log(2))])
def test_training_starts_where_it_must(tiny_model, tiny_tokenizer, fictional_rows, tmp_path, scaled, start):
    """2 ln 2 / beta = 13.86 as published, ln 2 at TRL's scale; then refusals win over the forget answers."""
    trainer = make_trainer(
        "idk_dpo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, retain="none",
        num_train_epochs=4, scale_two_over_beta=scaled,
    )  # fmt: skip
    trainer.train()
    steps = logs(trainer)
    assert steps[0]["loss"] == pytest.approx(start, rel=1e-6)
    assert steps[0]["loss"] == pytest.approx(steps[0]["forget/dpo"], rel=1e-6)
    assert steps[-1]["rewards/margins"] > 1
    assert steps[-1]["rewards/rejected"] < 0


def test_refusals_change_from_epoch_to_epoch(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """Same question, another refusal of the user's list; the forget answer stays."""
    own = tmp_path / "mine.txt"
    own.write_text("I do not know.\nI cannot say.\nThat is unknown to me.\n")
    trainer = make_trainer(
        "idk_dpo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, refusals=str(own),
        num_train_epochs=3,
    )  # fmt: skip
    assert {type(term) for term in terms_of(trainer.objective)} >= {DPO}
    sides, rows = SIDES["refusals"], len(trainer.mix)
    epochs = [trainer.mix[3 + epoch * rows] for epoch in range(3)]
    texts = [
        tiny_tokenizer.decode(
            [t for t in item[sides.chosen][0]["labels"] if t >= 0], skip_special_tokens=True
        )
        for item in epochs
    ]
    assert {text.strip() for text in texts} == set(own.read_text().splitlines())
    assert len({str(item[sides.rejected]) for item in epochs}) == 1


def test_the_scale_is_of_beta(tmp_path):
    assert IdkDPOConfig(output_dir=str(tmp_path), beta=0.2).scale == 10.0
    assert IdkDPOConfig(output_dir=str(tmp_path), beta=0.2, scale_two_over_beta=False).scale == 1.0
