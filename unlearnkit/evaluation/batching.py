"""Batches by token budget, longest first, made smaller where the memory of a GPU does not suffice."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from unlearnkit.errors import ModelError

T = TypeVar("T")


def batches(sizes: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens (at least one row), longest first."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(sizes[order[start]], 1))
        yield order[start : start + count]
        start += count


def in_parts(run: Callable[[list[Any]], list[T]], rows: list[Any]) -> list[T]:
    """`run(rows)`; where the accelerator runs out of memory, of each half of the rows, and so on.

    Args:
        run: gives one result per row, whatever rows stand beside it.

    Raises:
        ModelError: a single row does not fit.
    """
    import torch

    try:
        return run(rows)
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            raise ModelError(
                "the accelerator has no memory left even for one example; load the model in bfloat16 or "
                "quantised, or free some memory"
            ) from error
    # Outside of the `except`, where nothing holds the failed attempt's tensors any more.
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    half = (len(rows) + 1) // 2
    warnings.warn(
        f"the accelerator ran out of memory with {len(rows)} rows at once; going on with {half} "
        "(a smaller --batch-tokens avoids the attempt)",
        stacklevel=2,
    )
    return in_parts(run, rows[:half]) + in_parts(run, rows[half:])
