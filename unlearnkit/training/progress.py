"""A progress bar that says where training is, instead of a line of numbers for every step."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

_SHOWN = ("loss", "forget/log_ratio", "forget/nll", "retain/nll", "retain/kl", "train/nll")


class QuietProgress(TrainerCallback):  # type: ignore[misc]
    """One bar; the latest values stand at its end."""

    def __init__(self, title: str, *, enabled: bool = True) -> None:
        self.title = title
        self.enabled = enabled
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin at the step that a checkpoint left off."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            disable=not self.enabled,
            unit="step",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the terms that matter."""
        if self._bar is not None and logs:
            self._bar.set_postfix({k: f"{logs[k]:.3g}" for k in _SHOWN if k in logs}, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the full bar on the screen."""
        self._bar.close()


def keep_quiet(trainer: Any) -> None:
    """Take away the callbacks that print every log entry."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
