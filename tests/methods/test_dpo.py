"""DPO (arXiv 2305.18290): value, gradient, invariances, TRL's numbers, and the trainer on pairs alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers_preference import (
    PAIRS,
    TOKENS,
    assert_equal_gradients,
    items,
    logp_gradients,
    measure,
    moved,
    step_on,
    swapped,
    trl_dpo,
)
from helpers_training import data_sets, logs, lora, make_trainer

from unlearnkit.errors import RecipeError
from unlearnkit.methods.dpo import DPOConfig, DPOTrainer
from unlearnkit.recipe import MixSpec, TemplateSpec
from unlearnkit.training.preference import DPO, dpo_loss, implicit_rewards

TRL_NAMES = {
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected",
}  # fmt: skip


@pytest.fixture
def policy(tiny_model):
    """A two-layer model in float64."""
    return tiny_model().double()


def test_closed_form():
    """beta = 1, log-ratios ln 6 and ln 2: Delta = ln 3, and softplus(-ln 3) = ln(1 + 1/3) = ln 4 - ln 3.
    beta = 2, log-ratios -ln 2 and 0: softplus(2 ln 2) = ln(1 + 4) = ln 5.
    """
    ln = torch.log(torch.tensor([6.0, 2.0, 0.5, 1.0], dtype=torch.float64))
    assert dpo_loss(ln[:1], ln[1:2], beta=1.0).item() == pytest.approx(math.log(4 / 3), rel=1e-12)
    assert dpo_loss(ln[2:3], ln[3:], beta=2.0).item() == pytest.approx(math.log(5), rel=1e-12)
    assert implicit_rewards(ln[:1], ln[1:2], beta=0.5).item() == pytest.approx(0.5 * math.log(3), rel=1e-12)


def test_only_the_difference_counts_and_nothing_overflows():
    """Both log-ratios moved by the same: Delta stays. softplus(1e5) = 1e5, softplus(-1e5) = 0."""
    w, rejected = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        dpo_loss(w - 40, rejected - 40, beta=0.3), dpo_loss(w, rejected, beta=0.3), rtol=1e-12, atol=0
    )
    assert dpo_loss(torch.tensor([-1e5, 1e5]), torch.zeros(2), beta=1.0).tolist() == [1e5, 0.0]


@pytest.mark.parametrize("beta", [2**-7, 0.125, 2.0])
def test_value_and_gradient_at_the_reference(policy, beta):
    """Delta = 0, so L = softplus(0) = ln 2. dL/dDelta = -beta sigma(-beta Delta) = -beta/2 there, and
    dDelta = d log pi(w) - d log pi(l): the gradient is -(beta/2)(grad log pi(w) - grad log pi(l)). Llama's
    norms compute in float32; a power of two as beta keeps their rounding the same on both sides.
    """
    out = measure(DPO(beta, PAIRS), policy, policy, items())
    assert out.loss.item() == pytest.approx(math.log(2), rel=1e-12)
    w, rejected = (logp_gradients(policy, policy, items(), part) for part in (PAIRS.chosen, PAIRS.rejected))
    expected = [-beta / 2 * (a - b) for a, b in zip(w, rejected, strict=True)]
    torch.testing.assert_close(list(out.gradients), expected, rtol=1e-9, atol=1e-13)


def test_swapping_the_sides_flips_the_logit(policy):
    """softplus(-u) - softplus(u) = -u with u = beta Delta: the two losses differ by beta mean Delta, the
    margin, which changes its sign with the sides.
    """
    reference = moved(policy)
    term = DPO(0.7, PAIRS)
    one = measure(term, policy, reference, items())
    other = measure(term, policy, reference, swapped(items()))
    margin = one.metrics["rewards/margins"]
    assert margin.abs() > 0.01
    torch.testing.assert_close(other.metrics["rewards/margins"], -margin, rtol=1e-10, atol=0)
    torch.testing.assert_close(one.loss - other.loss, -margin, rtol=1e-10, atol=1e-12)
    for name in ("rewards", "logps"):
        assert other.metrics[f"{name}/chosen"] == pytest.approx(
            float(one.metrics[f"{name}/rejected"]), rel=1e-10
        )


def test_padding_and_order_do_not_matter(policy):
    """In float64: right or left padding, more of it, the order of the pairs."""
    reference = moved(policy)
    first = measure(DPO(0.5, PAIRS), policy, reference, items())
    for some, layout in (
        (items(), {"side": "left"}),
        (items(), {"multiple_of": 16}),
        (items(), {"side": "left", "multiple_of": 16}),
        (items()[::-1], {}),
    ):
        again = measure(DPO(0.5, PAIRS), policy, reference, some, **layout)
        torch.testing.assert_close(again.loss, first.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again.gradients, first.gradients, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dict(again.metrics), dict(first.metrics), rtol=1e-10, atol=1e-12)


def test_both_sides_share_one_forward(policy):
    """Six rows, once."""
    seen = []
    handle = policy.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    measure(DPO(0.1, PAIRS), policy, copy.deepcopy(policy), items())
    handle.remove()
    assert seen[0] == 2 * len(TOKENS)
    assert len(seen) == 2  # the policy's, and as its copies kept the hook, the reference's, also for both


def test_what_is_logged(policy):
    """By hand from the log-probs of both models; owners make a step without a pair count for nothing."""
    reference = moved(policy)
    step = step_on(policy, reference, items())
    out = DPO(0.3, PAIRS, scale=5.0)(step, step.batch)
    w, rejected = (step.sequence_logps(part).detach() for part in (PAIRS.chosen, PAIRS.rejected))
    ref_w, ref_l = (step.reference.sequence_logps(part) for part in (PAIRS.chosen, PAIRS.rejected))
    expected = {
        "rewards/chosen": 0.3 * (w - ref_w).mean(),
        "rewards/rejected": 0.3 * (rejected - ref_l).mean(),
        "rewards/margins": 0.3 * (w - ref_w - rejected + ref_l).mean(),
        "rewards/accuracies": (w - ref_w > rejected - ref_l).double().mean(),
        "logps/chosen": w.mean(),
        "logps/rejected": rejected.mean(),
        "pairs/dpo": out.loss.detach(),
    }
    torch.testing.assert_close(out.metrics, expected, rtol=1e-6, atol=1e-9)
    assert out.owners == dict.fromkeys(expected, PAIRS.chosen)
    assert not any(value.requires_grad for value in out.metrics.values())


@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_it_is_trls_sigmoid_loss(policy, tiny_tokenizer, texts, tmp_path, beta):
    """`loss_type="sigmoid"` of the installed TRL on the same tokens: loss, gradient and the numbers that it
    logs. TRL rounds log-probs to float32.
    """
    reference = moved(policy)
    theirs = trl_dpo(policy, reference, tiny_tokenizer, texts, tmp_path, beta=beta, loss_type="sigmoid")
    ours = measure(DPO(beta, PAIRS), policy, reference, items(theirs.tokens))
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert_equal_gradients(ours.gradients, theirs.gradients, rel=1e-5)
    for name in TRL_NAMES:
        assert float(ours.metrics[name]) == pytest.approx(theirs.metrics[name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_beta_must_be_positive(beta, tmp_path):
    with pytest.raises(ValueError, match=r"beta must be above 0, found"):
        dpo_loss(torch.zeros(1), torch.zeros(1), beta=beta)
    with pytest.raises(RecipeError, match=r"training\.beta must be above 0, found .*; 0\.1 is a usual value"):
        DPOConfig(output_dir=str(tmp_path), beta=beta)


def test_where_preferences_come_from_is_checked(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.preference is 'pair'; did you mean 'pairs'\?"):
        DPOConfig(output_dir=str(tmp_path), preference="pair")
    with pytest.raises(
        RecipeError, match=r"training\.refusals is 'mine\.txt', but .* set preference: refusals, or"
    ):
        DPOConfig(output_dir=str(tmp_path), refusals="mine.txt")


def test_pairs_alone_train_out_of_the_box(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """No forget and no retain set: the first step is ln 2, then the chosen answers win."""
    streams = {"pairs": data_sets(fictional_rows)["pairs"]}
    trainer = make_trainer("dpo", tiny_model(), tiny_tokenizer, streams, tmp_path, num_train_epochs=4)
    trainer.train()
    steps = logs(trainer)
    assert steps[0].keys() >= TRL_NAMES
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert steps[0]["rewards/accuracies"] == 0
    assert steps[-1]["rewards/accuracies"] > 0.9
    assert steps[-1]["rewards/margins"] > 0


@pytest.mark.parametrize("conversational", [False, True], ids=["plain", "chat"])
def test_the_trainer_gives_trls_loss(
    tiny_model, tiny_tokenizer, chat_tokenizer, texts, tmp_path, conversational
):
    """The same rows through both trainers, text to loss, with a reference that is not the policy."""
    from datasets import Dataset

    policy, tokenizer = tiny_model(), chat_tokenizer() if conversational else tiny_tokenizer
    if conversational:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        texts = [{k: [{"role": roles[k], "content": v}] for k, v in row.items()} for row in texts]
    plain = TemplateSpec(question_start="", question_end="", answer_start="")
    reference = moved(policy)
    theirs = trl_dpo(policy, reference, tokenizer, texts, tmp_path, beta=0.1, loss_type="sigmoid")
    trainer = DPOTrainer(
        reference, DPOConfig(output_dir=str(tmp_path), beta=0.1, reference="frozen"),
        streams={"pairs": Dataset.from_list(texts)}, processing_class=tokenizer,
        template=None if conversational else plain,
    )  # fmt: skip
    for (prompt, chosen, rejected), item in zip(
        theirs.tokens, (trainer.mix[i] for i in range(5)), strict=True
    ):
        assert item[PAIRS.chosen][0]["input_ids"] == prompt + chosen
        assert item[PAIRS.rejected][0]["input_ids"] == prompt + rejected
    batch = trainer.data_collator([trainer.mix[i] for i in range(5)])
    loss, out = trainer.compute_loss(policy, batch, return_outputs=True)
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    for name in TRL_NAMES:
        assert float(out.metrics[name]) == pytest.approx(theirs.metrics[name], rel=1e-4, abs=1e-4)


def test_reference_off_and_cached_agree(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """LoRA, after steps that moved the adapter: the base with the adapter off is what was cached."""
    runs = {}
    for reference in ("adapter_off", "cached", "frozen"):
        trainer = make_trainer(
            "dpo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, peft_config=lora(),
            reference=reference, seed=1,
        )  # fmt: skip
        trainer.train()
        runs[reference] = logs(trainer)
    assert abs(runs["cached"][-1]["rewards/margins"]) > 0.01
    for other in ("adapter_off", "frozen"):
        for a, b in zip(runs[other], runs["cached"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_steps_without_a_pair_do_not_dilute_rewards(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """A weighted mixture, one row a step, a pair in every fourth: means are over the steps that held one. A
    random model gives each token 1/512; were the other steps counted, log-probs would be a fourth of it.
    """
    trainer = make_trainer(
        "dpo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, retain="nll",
        mix=MixSpec(anchor=None, weights={"pairs": 1.0, "retain": 3.0}, epoch_size=16),
        per_device_train_batch_size=1, num_train_epochs=1, logging_steps=4,
    )  # fmt: skip
    streams = [set(trainer.mix[i]) for i in range(16)]
    assert sum(PAIRS.chosen in one for one in streams) == 4
    trainer.train()
    values = [step["logps/chosen"] for step in logs(trainer) if "logps/chosen" in step]
    lengths = trainer.tokenized[PAIRS.chosen].num_target_tokens / 10
    assert values
    assert all(value < -0.5 * lengths * math.log(512) for value in values)
