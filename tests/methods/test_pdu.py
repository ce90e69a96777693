"""PDU (arXiv 2506.05314): the forget term, the dual variable's arithmetic, and its way through a training."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_training import assert_same_logs, data_sets, logs, make_trainer, weights

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.methods.pdu import (
    Constrained,
    DualVariable,
    MarginFlattening,
    PDUConfig,
    PDUTrainer,
    margin_flattening,
)
from unlearnkit.training.logprobs import chunked
from unlearnkit.training.objective import Step, WeightedSum, as_counts, count_streams
from unlearnkit.training.retain import CrossEntropy

#: alpha moves from the first step on, by amounts that show.
MOVING = {"retain_weight": 2.0, "epsilon": 5.5, "dual_step": 1.5, "dual_warmup_epochs": 0.0}
SGD = {"optim": "sgd", "learning_rate": 0.05}


def test_the_forget_term_by_hand():
    """z = (3, 1, -1): max 3, mean 1, L = 2^2 = 4. dL/dz_v = 2 (max - mean) (1[v = argmax] - 1/V), so
    4 (1 - 1/3, -1/3, -1/3) = (8/3, -4/3, -4/3). z = (0, 6, 0): mean 2, L = 4^2 = 16, and the gradient is
    8 (-1/3, 2/3, -1/3).
    """
    z = torch.tensor([[3.0, 1.0, -1.0], [0.0, 6.0, 0.0]], dtype=torch.float64, requires_grad=True)
    values = margin_flattening(z)
    torch.testing.assert_close(values, torch.tensor([4.0, 16.0], dtype=torch.float64), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(values.sum(), z)[0]
    expected = torch.tensor([[8.0, -4.0, -4.0], [-8.0, 16.0, -8.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        torch.autograd.grad(chunked(margin_flattening, z, chunk=1).sum(), z)[0], expected
    )


def test_uniform_logits_are_the_minimum_and_a_constant_changes_nothing():
    """All equal: max = mean, so value and gradient are 0. Of two equal maxima each takes half of the
    gradient: z = (1, 1, -2), mean 0, L = 1, gradient 2 (1/2 - 1/3, 1/2 - 1/3, -1/3) = (1/3, 1/3, -2/3).
    """
    flat = torch.full((1, 4), 7.0, dtype=torch.float64, requires_grad=True)
    value = margin_flattening(flat)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value.sum(), flat)[0].any()
    z = torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (margin_flattening(z) > 0).all()
    torch.testing.assert_close(margin_flattening(z + 3.7), margin_flattening(z), rtol=1e-11, atol=0)
    tied = torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(margin_flattening(tied).sum(), tied)[0]
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64) / 3)
    assert margin_flattening(z.bfloat16()).dtype == torch.float32


def _alone(values):
    """A sum over one process."""
    return values


def _take_step(dual, slack, epoch, present=1.0):
    dual.add(torch.tensor(slack), torch.tensor(present))
    dual.end_step(_alone, epoch)
    return float(dual.alpha)


def test_the_dual_variable_by_hand():
    """alpha_0 = 2, dual_step 4, two steps an epoch, one epoch of warm-up. Slacks: 9 and 9, which do not
    count; then 1/4: 2 + 1 = 3; -1/4: 2; -1/2: 0; -1/4: -1, clipped to 0; 1/8: 1/2. A step without retain
    rows moves nothing.
    """
    dual = DualVariable(2.0, step_size=4.0, warmup_epochs=1.0)
    slacks = [9.0, 9.0, 0.25, -0.25, -0.5, -0.25, 0.125]
    path = [_take_step(dual, slack, (i + 1) / 2) for i, slack in enumerate(slacks)]
    assert path == [2.0, 2.0, 3.0, 2.0, 0.0, 0.0, 0.5]
    assert _take_step(dual, 0.0, 4.0, present=0.0) == 0.5
    dual.begin(None)
    assert float(dual.alpha) == 2.0


def test_the_dual_variable_moves_once_an_epoch():
    """dual_step 4, three steps an epoch. Epoch 1: slacks 1, 1/2 and a step without retain rows: mean 3/4,
    alpha = 2 + 3 = 5. Epoch 2: 0, -1/4, -1/2: mean -1/4, alpha = 4.
    """
    dual = DualVariable(2.0, step_size=4.0, update="epoch")
    assert _take_step(dual, 1.0, 1 / 3) == 2.0
    assert _take_step(dual, 0.0, 2 / 3, present=0.0) == 2.0
    assert _take_step(dual, 0.5, 1.0) == 5.0
    path = [_take_step(dual, slack, 1 + (i + 1) / 3) for i, slack in enumerate([0.0, -0.25, -0.5])]
    assert path == [5.0, 5.0, 4.0]


def test_the_dual_variable_sees_the_whole_global_batch():
    """Two processes with two micro-batches each: shares 1/8, 1/4 and 1/8, 0 sum up to a slack of 1/2."""
    ranks = [DualVariable(1.0, step_size=2.0) for _ in range(2)]
    for dual, shares in zip(ranks, [(0.125, 0.25), (0.125, 0.0)], strict=True):
        for share in shares:
            dual.add(torch.tensor(share), torch.tensor(0.25))
    everywhere = torch.tensor([0.5, 1.0])
    for dual in ranks:
        dual.end_step(lambda _: everywhere, 1.0)
    assert [float(dual.alpha) for dual in ranks] == [2.0, 2.0]


@pytest.mark.parametrize("update", ["step", "epoch"])
def test_the_dual_variable_goes_on_where_it_was(update):
    """Stopped in the middle of an epoch."""
    straight, first = (DualVariable(2.0, step_size=0.3, update=update) for _ in range(2))
    slacks = [0.7, -0.2, 0.9, 0.4, 0.1, -0.3]
    for i, slack in enumerate(slacks):
        _take_step(straight, slack, (i + 1) / 3)
    for i, slack in enumerate(slacks[:4]):
        _take_step(first, slack, (i + 1) / 3)
    resumed = DualVariable(2.0, step_size=0.3, update=update)
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for i, slack in enumerate(slacks[4:], start=4):
        _take_step(resumed, slack, (i + 1) / 3)
    assert torch.equal(resumed.alpha, straight.alpha)
    assert float(straight.alpha) != 2.0


ROWS = {
    "forget": [{"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORE, IGNORE, 7, 8, 9]}],
    "retain": [
        {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]},
        {"input_ids": [20, 21, 22, 23], "labels": [IGNORE] * 3 + [23]},
    ],
}


def _step(model, **rows):
    """A step over one micro-batch that is the whole global batch."""
    streams = ("forget", "retain")
    batch = StreamCollator(streams, pad_id=3)([{**ROWS, **rows}])
    return Step(model, batch, as_counts(count_streams([batch], streams, "cpu"), streams)), batch


def test_without_dual_steps_it_is_fixed_weighting(tiny_model):
    """dual_step = 0 and alpha_0 = w: L = L_f + w (L_r - epsilon), fixed weighting but for the constant."""
    model = tiny_model().double()
    dual = DualVariable(3.0, step_size=0.0)
    ours = WeightedSum(
        ((0.5, MarginFlattening()), (1.0, Constrained(CrossEntropy(), epsilon=0.25, state=dual)))
    )
    fixed = WeightedSum(((0.5, MarginFlattening()), (3.0, CrossEntropy())))
    results = []
    for objective in (ours, fixed):
        step, batch = _step(model)
        out = objective(step, batch)
        results.append((out, torch.autograd.grad(out.loss, list(model.parameters()))))
    (one, one_gradient), (other, other_gradient) = results
    assert one.loss.item() == pytest.approx(other.loss.item() - 3.0 * 0.25, rel=1e-12)
    torch.testing.assert_close(one_gradient, other_gradient, rtol=1e-12, atol=1e-14)
    assert one.metrics["retain/slack"].item() == pytest.approx(other.metrics["retain/nll"].item() - 0.25)
    dual.end_step(_alone, 1.0)
    assert float(dual.alpha) == 3.0


def test_the_metrics_of_the_forget_term(tiny_model):
    """On the logits of the three answer tokens: mean square and mean margin."""
    step, batch = _step(tiny_model().double())
    out = MarginFlattening()(step, batch)
    logits = step.logits("forget").detach()
    margins = logits.max(-1).values - logits.mean(-1)
    assert len(margins) == 3
    assert out.metrics["forget/pdu"].item() == pytest.approx(margins.square().mean().item(), rel=1e-12)
    assert out.metrics["forget/margin"].item() == pytest.approx(margins.mean().item(), rel=1e-12)


def test_a_step_without_retain_rows_and_a_look_without_gradients_move_nothing(tiny_model):
    dual = DualVariable(2.0, step_size=1.0)
    term = Constrained(CrossEntropy(), epsilon=0.25, state=dual)
    step, batch = _step(tiny_model(), retain=[])
    assert term(step, batch).loss.item() == 0.0
    dual.end_step(_alone, 1.0)
    with torch.no_grad():
        step, batch = _step(tiny_model())
        assert term(step, batch).loss.item() > 1.0
    dual.end_step(_alone, 2.0)
    assert float(dual.alpha) == 2.0


@pytest.fixture
def trained(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`trained(**settings)`: a PDU trainer that has been run; `resume` is a checkpoint's step."""

    def run(resume=None, **settings):
        trainer = make_trainer(
            "pdu", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, **{**MOVING, **settings}
        )
        trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-{resume}" if resume else None)
        return trainer

    return run


def test_alpha_follows_the_logged_slack(trained):
    """alpha_(t+1) = max(0, alpha_t + 4 slack_t), and the loss is L_f + alpha (L_r - epsilon)."""
    steps = logs(trained(num_train_epochs=4, epsilon=6.1, dual_step=4.0))
    alpha = 2.0
    for step in steps:
        assert step["retain/alpha"] == pytest.approx(alpha, rel=1e-5, abs=1e-6)
        assert step["retain/slack"] == pytest.approx(step["retain/nll"] - 6.1, rel=1e-4, abs=1e-5)
        lagrangian = step["forget/pdu"] + step["retain/alpha"] * step["retain/slack"]
        assert step["loss"] == pytest.approx(lagrangian, rel=1e-5, abs=1e-5)
        alpha = max(0.0, step["retain/alpha"] + 4 * step["retain/slack"])
    alphas = [step["retain/alpha"] for step in steps]
    assert max(alphas) > 2.1, "at first the bound is broken"
    assert min(alphas) == 0.0, "later it holds"


@pytest.mark.parametrize(("rows", "accumulated"), [(4, 2), (1, 8)])
@pytest.mark.parametrize("update", ["step", "epoch"])
def test_accumulation_does_not_move_alpha(trained, rows, accumulated, update):
    whole, split = (
        logs(trained(dual_update=update, num_train_epochs=3, per_device_train_batch_size=size,
                     gradient_accumulation_steps=steps, **SGD))
        for size, steps in ((8, 1), (rows, accumulated))
    )  # fmt: skip
    assert_same_logs(split, whole, rel=2e-5)
    assert len({step["retain/alpha"] for step in whole}) > 2


@pytest.mark.parametrize("update", ["step", "epoch"])
def test_a_resumed_run_has_the_same_alpha(trained, update):
    """From the middle of an epoch: equal to the bit, with an alpha that moves."""
    settings = {"dual_update": update, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1,
                "save_total_limit": None}  # fmt: skip
    straight = trained(**settings)
    resumed = trained(resume=5, **settings)
    assert_same_logs(logs(resumed), logs(straight), rel=0.0)
    after = weights(straight.model)
    assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())
    alphas = [step["retain/alpha"] for step in logs(straight)]
    assert alphas[0] == 2.0
    assert alphas[-1] != alphas[4]


def test_a_second_training_begins_anew(trained):
    trainer = trained()
    first = logs(trainer)[0]["retain/alpha"]
    trainer.train()
    assert [step["retain/alpha"] for step in logs(trainer) if step["step"] == 1] == [first]
    assert first == 2.0


def test_every_retain_stream_has_a_bound_of_its_own(trained):
    """The forget set as a stream to keep besides: its loss rises otherwise than the retain set's."""
    steps = logs(trained(retain_streams=["retain", "train"], allow_overlap=True))
    assert steps[0]["retain/alpha"] == steps[0]["train/alpha"] == 2.0
    assert steps[-1]["retain/alpha"] != steps[-1]["train/alpha"]


def test_a_kl_bound_holds_at_the_start(trained):
    """At the target model the KL is 0, so its slack is -epsilon."""
    first = logs(trained(retain="kl", epsilon=0.1))[0]
    assert first["retain/slack"] == pytest.approx(-0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.1}, r"training\.epsilon must not be negative, found -0\.1"),
        ({"epsilon": math.nan}, r"training\.epsilon must not be negative, found nan"),
        ({"dual_step": -5.0}, r"training\.dual_step must not be negative, found -5\.0"),
        ({"dual_warmup_epochs": -1.0}, r"training\.dual_warmup_epochs must not be negative"),
        ({"retain_weight": -1.0}, r"training\.retain_weight must not be negative"),
        ({"dual_update": "batch"}, r"training\.dual_update is 'batch'; use step or epoch"),
        ({"retain": "none"}, r"training\.retain 'none' and .* nothing to bound; use retain: nll"),
        ({"retain_streams": []}, r"retain_streams \[\] there is nothing to bound; use retain: nll"),
    ],
)
def test_wrong_settings(settings, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        PDUConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("settings", "epochs"), [({"num_train_epochs": 2}, "2"), ({"max_steps": 5}, "1.66667")]
)
def test_a_warm_up_that_never_ends_is_told(trained, caplog, settings, epochs):
    """10 rows, 4 a step: 3 steps are an epoch."""
    steps = logs(trained(dual_warmup_epochs=2.0, **settings))
    assert {step["retain/alpha"] for step in steps} == {2.0}
    told = f"dual_warmup_epochs (2) is not below the {epochs} epochs that are trained, so alpha stays"
    assert caplog.text.count(told) == 1
    trained(dual_warmup_epochs=2.0, max_steps=7)
    trained(dual_warmup_epochs=2.0, dual_step=0.0, **settings)
    assert caplog.text.count("dual_warmup_epochs") == 2, "the sentence names it twice"


def test_the_composition_alone_says_nothing(caplog, tmp_path):
    """It is made before the run too, to see what is read."""
    trainer = object.__new__(PDUTrainer)
    trainer.args = PDUConfig(output_dir=str(tmp_path), dual_warmup_epochs=2.0, num_train_epochs=2)
    assert trainer.build_objective().streams == ("forget", "retain")
    assert caplog.text == ""


def test_the_published_settings(tmp_path):
    args = PDUConfig(output_dir=str(tmp_path))
    assert (args.retain_weight, args.epsilon, args.dual_step) == (100.0, 0.3, 5.0)
    assert (args.dual_warmup_epochs, args.dual_update) == (5.0, "step")
