"""Two gloo processes do what one process does."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from helpers_training import (
    assert_same_logs,
    assert_same_training,
    data_sets,
    logs,
    lora,
    make_trainer,
    weights,
)
from packaging.version import Version

from unlearnkit import lookup
from unlearnkit.training.callbacks import COMPLETE, last_complete_checkpoint

RESUMES = Version(version("accelerate")) >= Version("1.14")
#: One process takes 4 rows twice, two take 2 rows twice: steps of 8 and of 2 examples. One row a process
#: leaves the second process with nothing in the last micro-batch.
GLOBAL = {"gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 2}
CASES = {
    **{name: (name, {}) for name in lookup.methods()},
    "three rows": ("npo", {"gradient_accumulation_steps": 1, "rows": 6}),
    "adapter off": ("grad_diff", {"retain": "kl", "adapter": True}),
    "frozen": ("grad_diff", {"retain": "reverse_kl"}),
    "checkpointing": ("npo", {"adapter": True, "activation_checkpointing": True}),
    "pairs beside retain": ("rpo", {"retain": "nll", "eta": 0.3, "sft_reduction": "token_mean"}),
    "dual variable": ("pdu", {"retain_weight": 2.0, "epsilon": 5.5, "dual_warmup_epochs": 0.0}),
}


def _run(case: str, processes: int, model, tokenizer, streams, folder: Path) -> dict:
    """Train with the case's global batch split over `processes`; what rank 0 ends with."""
    method, settings = CASES[case]
    settings = {"rows": 4, **GLOBAL, **settings}
    rows, adapter = settings.pop("rows"), settings.pop("adapter", False)
    trainer = make_trainer(
        method, model, tokenizer, streams, folder, per_device_train_batch_size=rows // processes,
        peft_config=lora() if adapter else None, eval_dataset=streams["retain"].select(range(5)),
        per_device_eval_batch_size=2, **settings,
    )  # fmt: skip
    assert trainer.accelerator.num_processes == processes
    start = weights(trainer.model)
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    return {"start": start, "weights": weights(trainer.model), "logs": logs(trainer), "eval_loss": evaluated}


def _child(folder: str, model, tokenizer, streams) -> None:
    for case in CASES:
        result = _run(case, 2, copy.deepcopy(model), tokenizer, streams, Path(folder))
        world = torch.distributed.get_world_size()
        torch.save({"world": world, **result}, Path(folder) / f"{case}-{torch.distributed.get_rank()}.pt")
    if RESUMES:
        _resume(model, tokenizer, streams, Path(folder))
    torch.distributed.barrier()


def _resume(model, tokenizer, streams, folder: Path) -> None:
    """Straight, and from the middle of the second epoch (step 4 of 3 an epoch)."""
    settings = {
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
    }
    rank = torch.distributed.get_rank()
    for name, checkpoint in (("straight", None), ("resumed", str(folder / "resume" / "checkpoint-4"))):
        trainer = make_trainer("npo", copy.deepcopy(model), tokenizer, streams, folder / "resume", **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        torch.save(weights(trainer.model), folder / f"{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tiny_model, tiny_tokenizer, fictional_rows, tmp_path_factory):
    """The folder with the results of every case, from one pair of forked processes."""
    import transformers  # noqa: F401  # imported once, before the fork
    from accelerate import debug_launcher

    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNKIT_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        debug_launcher(
            _child, (str(folder), tiny_model(), tiny_tokenizer, data_sets(fictional_rows)), num_processes=2
        )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(two_processes, tiny_model, tiny_tokenizer, fictional_rows, tmp_path, case):
    """Logs, final weights and the evaluation's loss; both processes end with the same weights."""
    first, second = (torch.load(two_processes / f"{case}-{rank}.pt") for rank in (0, 1))
    assert first["world"] == second["world"] == 2
    assert all(torch.equal(first["weights"][n], p) for n, p in second["weights"].items())
    single = _run(case, 1, tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path)
    assert_same_logs(first["logs"], single["logs"], rel=1e-5)
    assert_same_training(first["weights"], single["weights"], single["start"])
    assert first["eval_loss"] == pytest.approx(single["eval_loss"], rel=1e-6)
    assert second["eval_loss"] == first["eval_loss"]


@pytest.mark.skipif(
    not RESUMES, reason="accelerate 1.13 calls the device cpu:0, which torch.load does not know"
)
def test_two_processes_resume_to_the_bit(two_processes):
    """Every process left its part in the checkpoint before that was marked as complete."""
    for rank in (0, 1):
        straight, resumed = (
            torch.load(two_processes / f"{name}-{rank}.pt") for name in ("straight", "resumed")
        )
        assert all(torch.equal(resumed[n], p) for n, p in straight.items())
    checkpoint = last_complete_checkpoint(two_processes / "resume")
    assert checkpoint.name == "checkpoint-6"
    files = json.loads((checkpoint / COMPLETE).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files)
