"""ESLM and error norm truncation in the training loop: one quantile of the global batch, and a resume."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import (
    assert_same_logs,
    assert_same_training,
    data_sets,
    logs,
    make_trainer,
    weights,
)

SGD = {"optim": "sgd", "learning_rate": 0.05}
#: alpha moves from the first step on, by amounts that show.
ADAPTIVE = {"alpha": 0.2, "adaptive": True, "gamma": 3.0, "smoothing": 0.0}
CUT = {"threshold": 1.015, "start_step": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("eslm", {"alpha": 0.3}),
    "entropy": ("eslm", {**ADAPTIVE, "score": "entropy"}),
    "error norm": ("error_norm", CUT),
    "between": ("eslm", {**ADAPTIVE, "also": {"error_norm": CUT}}),
    "with holes": ("eslm", {"alpha": 0.3, "also": {"goldfish": {"k": 3, "h": 2}}}),
}


def _trained(
    case: str, model: Any, tokenizer: Any, rows: Any, folder: Path, *,
    batch: tuple[int, int] = (8, 1), resume: str | None = None, **settings: Any,
) -> Any:  # fmt: skip
    method, own = CASES[case]
    trainer = make_trainer(
        method, model, tokenizer, data_sets(rows), folder, per_device_train_batch_size=batch[0],
        gradient_accumulation_steps=batch[1], **{**SGD, **own, **settings},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _result(trainer: Any) -> dict[str, Any]:
    return {"logs": logs(trainer), "weights": weights(trainer.model), "alphas": _alphas(trainer)}


def _alphas(trainer: Any) -> list[float]:
    states = [getattr(one, "state", None) for one in trainer.objective.selectors]
    return [state.alpha for state in states if state is not None]


@pytest.fixture(scope="session")
def sharp_model(tiny_model):
    """`sharp_model()`: a fresh copy of a random model that is sure of something; `tiny_model` knows nothing,
    so that all of its entropies and error norms are equal to three digits."""
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10.0)
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="module")
def whole(sharp_model, tiny_tokenizer, fictional_rows, tmp_path_factory):
    """`whole(case)`: two epochs over 10 rows in batches of 8 and 2, one micro-batch a step."""
    found: dict[str, Any] = {}

    def run(case: str) -> dict[str, Any]:
        if case not in found:
            folder = tmp_path_factory.mktemp("whole")
            found[case] = _result(_trained(case, sharp_model(), tiny_tokenizer, fictional_rows, folder))
        return found[case]

    return run


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_chosen(whole, case):
    """Each step keeps some and leaves out some; alpha moves where it may."""
    result = whole(case)
    assert len(result["logs"]) == 4
    shares = [step["train/kept"] for step in result["logs"]]
    assert all(0 < share < 1 for share in shares[1:])
    assert (shares[0] > 1 - 1e-6) == (case == "error norm")
    assert len(result["alphas"]) == ("adaptive" in CASES[case][1])
    assert all(abs(alpha - 0.2) > 1e-3 for alpha in result["alphas"])


@pytest.mark.parametrize("batch", [(4, 2), (1, 8)])
@pytest.mark.parametrize("case", CASES)
def test_accumulation_keeps_the_same_tokens(
    whole, sharp_model, tiny_tokenizer, fictional_rows, tmp_path, case, batch
):
    """A quantile of each micro-batch would be another one: their answers are of unequal difficulty.

    One token more or less among fewer than 300 would move `train/kept` by 0.3 % at least.
    """
    split = _result(_trained(case, sharp_model(), tiny_tokenizer, fictional_rows, tmp_path, batch=batch))
    expected = whole(case)
    assert_same_logs(split["logs"], expected["logs"], rel=1e-5)
    assert_same_training(split["weights"], expected["weights"], weights(sharp_model()))
    assert split["alphas"] == pytest.approx(expected["alphas"], rel=1e-5)


def _child(folder: str, model: Any, tokenizer: Any, rows: Any) -> None:
    for case in CASES:
        trainer = _trained(case, copy.deepcopy(model), tokenizer, rows, Path(folder), batch=(2, 2))
        torch.save(_result(trainer), Path(folder) / f"{case}-{torch.distributed.get_rank()}.pt")
    torch.distributed.barrier()


@pytest.fixture(scope="module")
def two_processes(sharp_model, tiny_tokenizer, fictional_rows, tmp_path_factory):
    """The folder with what each of two forked processes ends with, in every case."""
    import transformers  # noqa: F401  # imported once, before the fork
    from accelerate import debug_launcher

    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNKIT_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        debug_launcher(_child, (str(folder), sharp_model(), tiny_tokenizer, fictional_rows), num_processes=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_keep_the_same_tokens(two_processes, whole, sharp_model, case):
    """Two rows on two processes, twice: the batch of 8 of one process. alpha is equal to the bit."""
    first, second = (torch.load(two_processes / f"{case}-{rank}.pt") for rank in (0, 1))
    assert first["alphas"] == second["alphas"]
    assert all(torch.equal(first["weights"][n], p) for n, p in second["weights"].items())
    expected = whole(case)
    assert_same_logs(first["logs"], expected["logs"], rel=1e-5)
    assert_same_training(first["weights"], expected["weights"], weights(sharp_model()))
    assert first["alphas"] == pytest.approx(expected["alphas"], rel=1e-5)


def test_adaptive_alpha_is_resumed(sharp_model, tiny_tokenizer, fictional_rows, tmp_path):
    """After step 2 of 4, and with the default smoothing: equal to the bit."""
    settings = {
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "smoothing": 0.9,
    }  # fmt: skip
    parts = tiny_tokenizer, fictional_rows, tmp_path
    straight = _trained("between", sharp_model(), *parts, **settings)
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed = _trained("between", sharp_model(), *parts, resume=checkpoint, **settings)
    assert resumed.state.global_step == 4
    assert _alphas(resumed) == _alphas(straight) != [0.2]
    assert_same_logs(logs(resumed), logs(straight), rel=0.0)
    after = weights(straight.model)
    assert all(torch.equal(p, after[n]) for n, p in weights(resumed.model).items())


def test_a_wait_that_does_not_end_is_said(sharp_model, tiny_tokenizer, fictional_rows, tmp_path, caplog):
    """10 rows, 4 a step, 1 epoch: 3 steps, and start_step 3 is too late."""
    train = {"batch": (4, 1), "num_train_epochs": 1}
    parts = tiny_tokenizer, fictional_rows, tmp_path
    with caplog.at_level(logging.WARNING):
        _trained("error norm", sharp_model(), *parts, start_step=2, **train)
        assert "start_step" not in caplog.text
        _trained("error norm", sharp_model(), *parts, start_step=3, **train)
    assert "training.start_step (3) is not below the 3 steps that are trained" in caplog.text
