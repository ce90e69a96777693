"""Running a model in the middle of its training without a trace."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Eval mode without gradients; modes, gradients and random states are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = random.getstate(), np.random.get_state()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    forked: dict[str, Any] = {"devices": []}
    if device is not None and device.type != "mps":
        index = torch.get_device_module(device).current_device()
        forked = {"devices": [index], "device_type": device.type}
    try:
        with torch.random.fork_rng(**forked), torch.no_grad():
            model.eval()
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
