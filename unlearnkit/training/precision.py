"""Logits stay in the precision in which the model computes them."""

from __future__ import annotations

from types import MethodType
from typing import Any

from transformers import TrainerCallback


class KeepLogitsNarrow(TrainerCallback):  # type: ignore[misc]
    """Drops accelerate's copy of all outputs to float32 while training with `bf16` or `fp16`; keeps autocast.

    The copy and its gradient are two more [N, V] in float32, and nobody needs them: log-probs are taken in
    float32, chunk by chunk. Losses and gradients stay the same to the bit. After training the model is as
    accelerate left it.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._before: tuple[Any, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every process has prepared its model by now."""
        model = self.accelerator.unwrap_model(kwargs["model"])
        original = vars(model).get("_original_forward")
        if not hasattr(original, "__func__") or args.torch_compile:
            return  # no mixed precision, or another's wrapper, as DeepSpeed's
        self._before = model, model.forward
        model.forward = MethodType(self.accelerator.autocast()(original.__func__), model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put accelerate's wrapper back, for those who look for it."""
        if self._before is not None:
            model, wrapped = self._before
            model.forward, self._before = wrapped, None
