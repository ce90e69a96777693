"""RPO (arXiv 2405.16436): three forms of its SFT term, DPO inside it, TRL's numbers, and other streams."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers_preference import PAIRS, assert_equal_gradients, items, measure, moved, step_on, swapped, trl_dpo
from helpers_training import data_sets, logs, make_trainer, weights

from unlearnkit.errors import RecipeError
from unlearnkit.methods.rpo import REDUCTIONS, ChosenSFT, RPOConfig, equivalent_eta
from unlearnkit.recipe import MixSpec
from unlearnkit.training.objective import WeightedSum
from unlearnkit.training.preference import DPO

BETA = 0.125


@pytest.fixture
def policy(tiny_model):
    """A two-layer model in float64."""
    return tiny_model().double()


def rpo(eta, reduction="sum_beta", beta=BETA):
    """The objective that the trainer composes."""
    form = REDUCTIONS[reduction]
    sft = (form.weight(eta, beta=beta), ChosenSFT(PAIRS.chosen, form))
    return WeightedSum(((1.0, DPO(beta, PAIRS)), sft))


def test_rpo_minus_dpo(policy):
    """The authors' form: L_RPO - L_DPO = -beta eta mean_i log pi(w_i), the sum over each answer's tokens."""
    reference = moved(policy)
    gap = (
        measure(rpo(0.3), policy, reference, items()).loss
        - measure(rpo(0.0), policy, reference, items()).loss
    )
    chosen = step_on(policy, reference, items()).sequence_logps(PAIRS.chosen).detach()
    torch.testing.assert_close(gap, -BETA * 0.3 * chosen.mean(), rtol=1e-10, atol=1e-12)


def test_the_three_forms(policy):
    """Answers of 4, 1 and 6 tokens with summed NLLs s_i: (s_1 + s_2 + s_3) / 3 times beta eta;
    (s_1/4 + s_2 + s_3/6) / 3 times eta; (s_1 + s_2 + s_3) / 11 times eta.
    """
    step = step_on(policy, policy, items())
    s = -step.sequence_logps(PAIRS.chosen).detach()
    n = torch.tensor([4, 1, 6])
    assert step.num_target_tokens(PAIRS.chosen).tolist() == n.tolist()
    values = {"sum_beta": BETA * s.mean(), "seq_mean": (s / n).mean(), "token_mean": s.sum() / 11}
    for name, value in values.items():
        gap = measure(rpo(0.4, name), policy, policy, items()).loss - math.log(2)
        torch.testing.assert_close(gap, 0.4 * value, rtol=1e-9, atol=1e-12)
        logged = measure(rpo(0.4, name), policy, policy, items()).metrics[f"{PAIRS.chosen}/sft"]
        torch.testing.assert_close(0.4 * logged * (BETA if name == "sum_beta" else 1), 0.4 * value)


def test_the_share_of_the_sft_gradient_at_the_reference(policy):
    """On each log pi(w_t) DPO pulls with (beta/2)/B there, the authors' SFT term with beta eta/B: a ratio of
    2 eta, one per cent as published.
    """
    step = step_on(policy, policy, items())
    logps = step.token_logps(PAIRS.chosen)
    dpo, both = (
        torch.autograd.grad(rpo(eta)(step, step.batch).loss, logps, retain_graph=True)[0]
        for eta in (0.0, 0.005)
    )
    torch.testing.assert_close(dpo, torch.full_like(dpo, -BETA / 2 / 3), rtol=1e-9, atol=0)
    torch.testing.assert_close((both - dpo) / dpo, torch.full_like(dpo, 0.01), rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [0.005, 1.0])
def test_token_mean_is_trls_rpo(policy, tiny_tokenizer, texts, tmp_path, eta):
    """`loss_type=["sigmoid", "sft"]`, `loss_weights=[1, eta]` of the installed TRL on the same batch."""
    reference = moved(policy)
    theirs = trl_dpo(
        policy, reference, tiny_tokenizer, texts, tmp_path, beta=0.01, loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, eta],
    )  # fmt: skip
    ours = measure(rpo(eta, "token_mean", beta=0.01), policy, reference, items(theirs.tokens))
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert_equal_gradients(ours.gradients, theirs.gradients, rel=1e-5)
    assert float(ours.metrics["logps/chosen"]) == pytest.approx(theirs.metrics["logps/chosen"], rel=1e-6)


def test_converted_etas_are_worked_out_by_hand():
    """The published eta = 0.005 at beta = 0.01 and answers of 300 tokens: 0.01 * 0.005 * 300 = 0.015 in TRL's
    form, so that TRL's documented 0.005 is a third of the authors' strength; at 100 tokens they are equal.
    """
    to_trl = {"beta": 0.01, "source": "sum_beta", "target": "token_mean"}
    assert equivalent_eta(0.005, mean_length=300, **to_trl) == pytest.approx(0.015)
    assert equivalent_eta(0.005, mean_length=100, **to_trl) == pytest.approx(0.005)
    back = {"beta": 0.01, "source": "token_mean", "target": "sum_beta"}
    assert equivalent_eta(0.015, mean_length=300, **back) == pytest.approx(0.005)
    assert equivalent_eta(0.2, beta=0.5, mean_length=40, source="seq_mean", target="token_mean") == 0.2


def test_converted_etas_give_the_same_loss_where_lengths_are_equal(policy):
    """All chosen answers have 3 tokens: with the converted etas the three forms are one loss."""
    some = items([([5, 6], [7, 8, 9], [10]), ([11], [12, 13, 14], [15, 16, 17, 18])])
    reference = moved(policy)
    eta = {
        name: equivalent_eta(0.5, beta=BETA, mean_length=3, source="sum_beta", target=name)
        for name in REDUCTIONS
    }
    assert eta == {"sum_beta": 0.5, "seq_mean": 0.1875, "token_mean": 0.1875}
    first, *others = (measure(rpo(eta[name], name), policy, reference, some) for name in REDUCTIONS)
    for other in others:
        torch.testing.assert_close(other.loss, first.loss, rtol=1e-12, atol=0)
        assert_equal_gradients(other.gradients, first.gradients, rel=1e-6)  # norms compute in float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_eta_zero_is_dpo_to_the_bit(tiny_model, tiny_tokenizer, fictional_rows, tmp_path, reduction):
    """Loss and gradient of one batch, and the weights after training, in float32."""
    model, reference = tiny_model(), moved(tiny_model())
    one = measure(rpo(0.0, reduction), model, reference, items())
    other = measure(DPO(BETA, PAIRS), model, reference, items())
    assert torch.equal(one.loss, other.loss)
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))
    after = []
    for method, settings in (("rpo", {"eta": 0.0, "sft_reduction": reduction}), ("dpo", {})):
        trainer = make_trainer(
            method, tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, beta=0.1, **settings
        )
        trainer.train()
        after.append(weights(trainer.model))
    assert all(torch.equal(p, after[1][name]) for name, p in after[0].items())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_swapping_the_sides(policy, reduction):
    """The logit flips; the SFT term stays the NLL of the chosen part, whichever sequence stands there, and
    takes nothing from the rejected one.
    """
    reference = moved(policy)
    one, other = (
        measure(rpo(0.3, reduction), policy, reference, some) for some in (items(), swapped(items()))
    )
    torch.testing.assert_close(
        other.metrics["rewards/margins"], -one.metrics["rewards/margins"], rtol=1e-10, atol=0
    )
    changed = [{**a, PAIRS.rejected: b[PAIRS.rejected]} for a, b in zip(items(), items()[::-1], strict=True)]
    kept = measure(rpo(0.3, reduction), policy, reference, changed)
    name = f"{PAIRS.chosen}/sft"
    torch.testing.assert_close(kept.metrics[name], one.metrics[name], rtol=1e-12, atol=0)
    assert abs(float(other.metrics[name] - one.metrics[name])) > 1e-4


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_and_order_do_not_matter(policy, reduction):
    reference = moved(policy)
    first = measure(rpo(0.3, reduction), policy, reference, items())
    for some, layout in ((items(), {"side": "left"}), (items(), {"multiple_of": 16}), (items()[::-1], {})):
        again = measure(rpo(0.3, reduction), policy, reference, some, **layout)
        torch.testing.assert_close(again.loss, first.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again.gradients, first.gradients, rtol=1e-9, atol=1e-12)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.eta must be at least 0, found -0\.1; 0 is plain DPO"):
        RPOConfig(output_dir=str(tmp_path), eta=-0.1)
    with pytest.raises(RecipeError, match=r"sft_reduction is 'sum-betta'; did you mean 'sum_beta'\?"):
        RPOConfig(output_dir=str(tmp_path), sft_reduction="sum-betta")
    with pytest.raises(RecipeError, match=r"training\.beta must be above 0"):
        RPOConfig(output_dir=str(tmp_path), beta=0)


@pytest.fixture(scope="module")
def learned(tiny_model, tiny_tokenizer, fictional_rows, tmp_path_factory):
    """A model that has learned the chosen answers, and pairs whose rejected ones share a long beginning."""
    from datasets import Dataset

    rows = [
        {"prompt": r["question"], "completion": r["answer"], "rejected": f"{r['answer'][:-12]} someone else."}
        for r in fictional_rows("full")[:8]
    ]
    streams = {"train": Dataset.from_list(rows).remove_columns("rejected")}
    trainer = make_trainer(
        "sft", tiny_model(), tiny_tokenizer, streams, tmp_path_factory.mktemp("sft"), num_train_epochs=60,
        per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    return trainer.model, Dataset.from_list(rows).rename_column("completion", "chosen")


def test_the_chosen_answer_falls_less_than_under_dpo(learned, tiny_tokenizer, tmp_path):
    """Equal settings but for eta, both reach all preferences; the chosen log-prob under RPO stays higher."""
    model, pairs = learned
    last = {}
    for eta in (0.0, 1.0):
        trainer = make_trainer(
            "rpo", copy.deepcopy(model), tiny_tokenizer, {"pairs": pairs}, tmp_path, eta=eta, beta=0.1,
            learning_rate=3e-3, num_train_epochs=15,
        )  # fmt: skip
        trainer.train()
        first, last[eta] = logs(trainer)[0], logs(trainer)[-1]
        assert last[eta]["rewards/accuracies"] == 1
    assert last[0.0]["logps/chosen"] < first["logps/chosen"] - 1
    assert last[1.0]["logps/chosen"] > last[0.0]["logps/chosen"] + 1


def test_beside_retain_and_general_streams(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """Pairs as the anchor, two retain rows and one general row each: every stream has its metrics, and the
    loss is the weighted sum of what is logged.
    """
    streams = data_sets(fictional_rows)
    streams["general"] = streams["retain"].select(range(5))
    streams["retain"] = streams["retain"].select(range(5, 14))
    trainer = make_trainer(
        "rpo", tiny_model(), tiny_tokenizer, streams, tmp_path, retain="nll", retain_weight=0.5,
        retain_streams=["retain", "general"], forget_weight=2.0, eta=0.3, sft_reduction="token_mean",
        mix=MixSpec(ratios={"retain": 2.0, "general": 1.0}),
    )  # fmt: skip
    assert len(trainer.mix) == 10
    assert {name: len(rows) for name, rows in trainer.mix[0].items()} == {
        PAIRS.chosen: 1, PAIRS.rejected: 1, "retain": 2, "general": 1,
    }  # fmt: skip
    trainer.train()
    for step in logs(trainer):
        preference = step["pairs/dpo"] + 0.3 * step["pairs.chosen/sft"]
        expected = 2.0 * preference + 0.5 * (step["retain/nll"] + step["general/nll"])
        assert step["loss"] == pytest.approx(expected, rel=1e-5)
    assert logs(trainer)[0]["pairs/dpo"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("preference", "part"), [("refusals", "forget.refusal"), ("alternates", "forget.alternate")]
)
def test_unlearning(tiny_model, tiny_tokenizer, fictional_rows, tmp_path, preference, part):
    """The chosen part follows the preference; the forget answer is the rejected one of both."""
    trainer = make_trainer(
        "rpo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, preference=preference,
        retain="nll", num_train_epochs=8, per_device_train_batch_size=10, eta=0.1, beta=0.5,
    )  # fmt: skip
    assert set(trainer.tokenized) == {part, "forget", "retain"}
    trainer.train()
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["rewards/margins"] > 1
    assert last["rewards/accuracies"] > 0.9
