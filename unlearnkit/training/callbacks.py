"""Beside the training loop: the order's epoch, a log on disk, complete checkpoints, a check on gradients."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from unlearnkit.data.mixing import EpochOrder
from unlearnkit.errors import ModelError, UserError
from unlearnkit.files import read_json, write_atomic, write_json

#: Written last into a checkpoint: a folder without it was interrupted.
COMPLETE = "complete.json"
NO_GRADIENT = (
    "all gradients are zero after the first step, so nothing would be learned; check the weights of the loss "
    "terms, that model.lora names modules that this model uses, and that activation checkpointing lets "
    "gradients reach them"
)


class FollowEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the order which epoch begins, also after a resume."""

    def __init__(self) -> None:
        self.order: EpochOrder | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.epoch` is a whole number here, or a fraction right after a resume."""
        if self.order is not None:
            self.order.set_epoch(int((state.epoch or 0.0) + 1e-6))


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once every process has written its part, and lists what is in it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checkpoints of later steps are about to be overwritten, so they lose their mark."""
        if state.is_world_process_zero:
            for folder in _checkpoints(args.output_dir):
                if _step_of(folder) > state.global_step:
                    (folder / COMPLETE).unlink(missing_ok=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer calls this in every process after its last file."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(folder / COMPLETE, {"step": state.global_step, "files": _sizes(folder)})


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file under `folder`, without the mark."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / COMPLETE]
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def _is_complete(folder: Path) -> bool:
    """Whether everything that was once written is there: also a half-deleted checkpoint is not complete."""
    try:
        files: dict[str, int] = read_json(folder / COMPLETE)["files"]
    except (UserError, KeyError, TypeError):
        return False
    return files.items() <= _sizes(folder).items()


def _checkpoints(folder: str | Path) -> list[Path]:
    """The folders named like a checkpoint, oldest first."""
    found = (p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.is_dir())
    return sorted((p for p in found if p.name.rsplit("-", 1)[1].isdecimal()), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that was written to the end."""
    return next((p for p in reversed(_checkpoints(folder)) if _is_complete(p)), None)


def remove_incomplete_checkpoints(folder: str | Path) -> list[Path]:
    """Delete checkpoints that a killed process left half-written or half-deleted; returns them."""
    broken = [p for p in _checkpoints(folder) if not _is_complete(p)]
    for path in broken:
        shutil.rmtree(path, ignore_errors=True)
    return broken


class LogFile(TrainerCallback):  # type: ignore[misc]
    """Keeps the trainer's log as JSON lines; after a resume it holds each step once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the history that the checkpoint brought along."""
        if state.is_world_process_zero:
            write_atomic(self.path, "".join(_line(entry) for entry in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append the newest entry."""
        if state.is_world_process_zero and state.log_history:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: dict[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    return json.dumps(clean) + "\n"


class RefuseZeroGradients(TrainerCallback):  # type: ignore[misc]
    """Stops after the first whole step if nothing would be learned.

    The usual cause is LoRA with checkpointing on inputs that require no gradient: the loss looks normal and
    the adapter stays as it was.

    Args:
        whole: whether every stream has had a target by now. In a weighted mixture a step may lack the forget
            set, and a retain term that compares with the reference model has no gradient as long as the model
            is still that.
    """

    def __init__(self, accelerator: Any, whole: Callable[[], bool]) -> None:
        self.accelerator = accelerator
        self.whole = whole
        self.checked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look until a gradient was seen; DeepSpeed keeps its gradients to itself."""
        if self.checked or self.accelerator.distributed_type == "DEEPSPEED":
            return
        largest = torch.zeros((), device=self.accelerator.device)
        for parameter in kwargs["model"].parameters():
            if parameter.requires_grad and parameter.grad is not None:
                grad = getattr(parameter.grad, "to_local", lambda g=parameter.grad: g)()
                if grad.numel():
                    # NaN counts as a gradient here: it is shown by the loss, not hidden by this check.
                    largest = torch.maximum(largest, torch.nan_to_num(grad.abs().max().float(), nan=1.0))
        if float(self.accelerator.reduce(largest, reduction="sum")) > 0.0:
            self.checked = True
        elif self.whole():
            raise ModelError(NO_GRADIENT)
