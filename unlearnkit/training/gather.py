"""Values of all processes where each may have another number of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_values(accelerator: Any, values: Tensor) -> tuple[Tensor, slice]:
    """The values [n, ...] of all processes, one behind the other, and where the own ones lie.

    Every process must call it; n may differ, and may be 0.
    """
    if accelerator.num_processes == 1:
        return values, slice(0, len(values))
    own = torch.tensor([len(values)], device=values.device)
    sizes = accelerator.gather(own).tolist()
    # At least one row: accelerate cannot gather tensors without any on GPUs.
    padding = values.new_zeros((max(1, *sizes) - len(values), *values.shape[1:]))
    rows = accelerator.gather(torch.cat([values, padding])[None])
    start = sum(sizes[: accelerator.process_index])
    joined = torch.cat([row[:size] for row, size in zip(rows, sizes, strict=True)])
    return joined, slice(start, start + len(values))
