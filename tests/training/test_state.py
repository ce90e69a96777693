"""States of terms: begun once, told of every step, kept in checkpoints, taken up after a resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers_training import SETTINGS, data_sets, logs, weights
from safetensors.torch import load_file

from unlearnkit.errors import UserError
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import LossOutput, Needs, WeightedSum
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.state import FILE, states_of
from unlearnkit.training.trainer import UnlearnTrainer


class Weight:
    """A weight that grows by the loss of every step: it decides the gradients that follow."""

    def __init__(self):
        self.value, self.sum = torch.ones(()), torch.zeros(())
        self.begun = 0
        self.epochs = []

    def begin(self, trainer):
        self.begun += 1
        assert trainer.state.global_step == 0

    def end_step(self, total, epoch):
        self.value = self.value + total(self.sum)
        self.sum = torch.zeros(())
        self.epochs.append(epoch)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, values):
        self.value = values["value"]


@dataclass(frozen=True)
class Growing:
    """state.value * NLL of the retain set."""

    state: Weight = field(default_factory=Weight, compare=False)
    streams: tuple[str, ...] = ("retain",)
    needs = Needs.NOTHING

    def __call__(self, step, batch):
        out = CrossEntropy(self.streams)(step, batch)
        self.state.sum = self.state.sum + out.loss.detach()
        return LossOutput(self.state.value * out.loss, out.metrics)


class _Trainer(UnlearnTrainer):
    def build_objective(self):
        term = Growing()
        return WeightedSum(((1.0, CrossEntropy(("forget",))), (0.5, term), (0.5, term)))


@pytest.fixture
def trainer(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`trainer(**settings)`: checkpoints at every step of 2 epochs of 3 steps."""

    def build(**settings):
        args = UnlearnConfig(
            output_dir=str(tmp_path / "run"),
            **{
                **SETTINGS,
                "save_strategy": "steps",
                "save_steps": 1,
                "save_total_limit": None,
                **settings,
            },
        )
        return _Trainer(
            tiny_model(), args, streams=data_sets(fictional_rows), processing_class=tiny_tokenizer
        )

    return build


def _state(trainer):
    (state,) = states_of(trainer.objective).values()
    return state


def test_a_shared_state_is_told_once(trainer):
    run = trainer()
    run.train()
    state = _state(run)
    assert state.begun == 1
    assert len(state.epochs) == run.state.global_step == 6
    assert state.epochs[-1] == pytest.approx(2.0)
    # value = 1 + the sum of the steps' losses; both uses of the term add theirs to the sum
    total = sum(step["retain/nll"] for step in logs(run))
    assert state.value.item() == pytest.approx(1 + 2 * total, rel=1e-5)


def test_a_resumed_run_has_the_state_of_the_checkpoint(trainer):
    straight = trainer()
    straight.train()
    folder = Path(straight.args.output_dir)
    for resume in (str(folder / "checkpoint-2"), str(folder / "checkpoint-3")):
        resumed = trainer()
        resumed.train(resume_from_checkpoint=resume)
        assert _state(resumed).begun == 0
        assert _state(resumed).value.item() == _state(straight).value.item()
        after = weights(straight.model)
        assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())
    stored = load_file(folder / "checkpoint-6" / FILE)
    assert list(stored) == ["1.value"]
    assert stored["1.value"].item() == _state(straight).value.item()


def test_a_checkpoint_without_the_state_is_refused(trainer):
    run = trainer(num_train_epochs=1)
    run.train()
    folder = Path(run.args.output_dir) / "checkpoint-2"
    (folder / FILE).unlink()
    with pytest.raises(UserError, match=r"objective\.safetensors.*remove the checkpoint"):
        trainer(num_train_epochs=1).train(resume_from_checkpoint=str(folder))


def test_a_term_without_a_state_needs_none(trainer):
    assert states_of(CrossEntropy()) == {}
