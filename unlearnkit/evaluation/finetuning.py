"""A few steps of plain fine-tuning on a model in memory, which is afterwards what it was.

Each step is one of AdamW (betas 0.9 and 0.999, no weight decay, constant learning rate, no clipping) on the
mean loss of a batch's target tokens, in the mode for evaluation, so without dropout. The optimizer works on
float32 values: bfloat16 weights would round small steps away. It takes 8 bytes a trained weight (16 where the
weights are of a half dtype), and the weights' own bytes on the CPU, from which they are restored.

Several processes that call it alike train alike; the first one's weights go to all.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from unlearnkit.errors import ModelError
from unlearnkit.evaluation.serving import is_combined


@contextlib.contextmanager
def restored(model: Any, trained: Sequence[Any]) -> Iterator[None]:
    """On leaving, weights, buffers, gradients, `requires_grad` and modes are what they were, bit for bit."""
    import torch

    weights = [p.detach().to("cpu", copy=True) for p in trained]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().to("cpu", copy=True))
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    state = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter, _, _ in state:
            parameter.grad = None
        model.eval()
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if buffer is not None:
                    buffer.copy_(value)
        for parameter, gradient, flag in state:
            parameter.grad = gradient
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def separated(model: Any) -> Iterator[None]:
    """Parameters that the networks of a combined model share are copied for a while, so that each network is
    trained by itself; on leaving they are shared as before. Any other model stays as it is."""
    import torch

    known: dict[int, Any] = {}
    copies: dict[Any, Any] = {}
    own: list[tuple[Any, str, Any]] = []
    for module in model.networks.modules() if is_combined(model) else ():
        for name, parameter in module._parameters.items():
            if type(parameter) is not torch.nn.Parameter:  # none, or quantised, and so never trained
                continue
            if known.setdefault(parameter.data_ptr(), parameter) is parameter:
                continue
            own.append((module, name, parameter))
            if parameter not in copies:
                copies[parameter] = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    try:
        for module, name, parameter in own:
            module._parameters[name] = copies[parameter]
        yield
    finally:
        for module, name, parameter in own:
            module._parameters[name] = parameter


class Finetuning:
    """The optimizer and what it is fed; between two calls of `run` all but the weights is as it was.

    Args:
        model: a causal language model, in eval mode.
        trained: the parameters to change; floating ones.
        rows: token rows (`data/formats.py`), each with a target.
        batches: rows of each step, without end.
        chunk: rows of a forward pass that measures the loss.
        pad_id: any token id.
    """

    def __init__(
        self, model: Any, trained: Sequence[Any], rows: Sequence[Any], batches: Iterator[Sequence[Any]], *,
        learning_rate: float, chunk: int, pad_id: int,
    ) -> None:  # fmt: skip
        import torch

        self.model, self.trained, self.rows, self.batches = model, trained, rows, batches
        self.chunk, self.pad_id = chunk, pad_id
        exact = (torch.float32, torch.float64)
        #: What the optimizer changes: the weight itself, or its float32 values.
        self.masters = [p if p.dtype in exact else p.detach().float() for p in trained]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, weight_decay=0.0)
        self.steps = 0

    def run(self, steps: int) -> None:
        """Train for so many more steps.

        Raises:
            ModelError: the loss is no number, or does not depend on what is trained.
        """
        import torch

        from unlearnkit.models.precision import own_precision

        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        chosen = {id(p) for p in self.trained}
        self.model.eval()
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(id(parameter) in chosen)
            with own_precision(self.model), torch.enable_grad():
                for batch in itertools.islice(self.batches, steps):
                    self._step(batch)
            self._agree()
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def _step(self, rows: Sequence[Any]) -> None:
        loss = -self._logps(rows).mean()
        self._refuse(loss.item())
        if not loss.requires_grad:
            raise ModelError(
                "the fine-tuning trains weights that have no part in the output, such as those of an adapter "
                "that is merged or switched off; use weights: all"
            )
        loss.backward()
        for parameter, master in zip(self.trained, self.masters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._write()
        self.steps += 1

    def _refuse(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss of the fine-tuning is {loss} after {self.steps} steps; lower learning_rate, or "
                "load the model in float32 or bfloat16"
            )

    def _write(self) -> None:
        """From the float32 values to weights of another dtype."""
        import torch

        with torch.no_grad():
            for parameter, master in zip(self.trained, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)

    def _agree(self) -> None:
        """All processes take the first one's weights: kernels of a GPU may add up in another order."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for master in self.masters:
                dist.broadcast(master.detach(), src=0)
            self._write()

    def loss(self) -> float:
        """Mean loss over all target tokens of `rows`, in nats.

        Raises:
            ModelError: it is no number.
        """
        import torch

        from unlearnkit.models.precision import own_precision

        total, count = 0.0, 0
        with own_precision(self.model), torch.no_grad():
            for start in range(0, len(self.rows), self.chunk):
                logps = self._logps(self.rows[start : start + self.chunk])
                total, count = total - float(logps.double().sum()), count + len(logps)
        self._refuse(total)
        return total / count

    def _logps(self, rows: Sequence[Any]) -> Any:
        from unlearnkit.data.collate import pad_rows
        from unlearnkit.training import logprobs

        length = max(len(row["input_ids"]) for row in rows)
        padded: dict[str, Any] = {**pad_rows(rows, length, pad_id=self.pad_id)}
        device = next(self.model.parameters()).device
        batch = {name: values.to(device) for name, values in padded.items()}
        out = logprobs.target_logits(self.model, batch)
        return logprobs.label_logps(out.logits_NV, out.targets_N)
