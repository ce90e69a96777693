"""The precision that a model computes in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from inspect import ismethod
from types import MethodType
from typing import Any


@contextlib.contextmanager
def own_precision(model: Any) -> Iterator[None]:
    """Compute in the dtype of the weights, as the model does once it is saved and loaded.

    After `trainer.train()` with `bf16` or `fp16`, accelerate leaves `model.forward` wrapped in autocast; the
    wrapper is put back at the end.
    """
    import torch
    from accelerate.utils.operations import ConvertOutputsToFp32

    wrapped = forward = vars(model).get("forward")
    original = getattr(vars(model).get("_original_forward"), "__func__", None)  # kept by accelerate
    # Each time that the model is prepared adds two wrappers, to float32 around autocast; while it is trained,
    # autocast may stand alone, made by torch, which marks its wrapper for the JIT compiler, or by accelerate.
    while (inner := getattr(forward, "__wrapped__", None)) is not None:
        if isinstance(inner, ConvertOutputsToFp32):
            forward = inner.model_forward
        elif hasattr(forward, "__script_unsupported") or inner is original:
            forward = inner
        else:
            break
    if forward is not wrapped:
        model.forward = forward if ismethod(forward) else MethodType(forward, model)
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        if forward is not wrapped:
            model.forward = wrapped
