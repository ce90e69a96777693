"""Packing: rows of all streams laid one behind the other, so that no padding is computed.

A micro-batch holds rows of very different lengths (answers to forget, answers to keep), and a padded forward
pass costs as much as its longest row times the number of rows. Packed, the rows are placed first-fit, longest
first, into lines. Of several line lengths from the longest row to twice that, the one that needs the fewest
tokens is taken. `position_ids` start again at 0 with every row, and no attention mask is given: transformers
then lets a token see only its own run of positions. The unused end of a line has position 0 throughout, so
each of its tokens is a sequence of its own that nobody looks at.

Log-probs and gradients are those of the padded pass, up to rounding, and come in the same order, so
objectives, counts and reference log-probs do not know of it. What packing needs is computed by the collator,
on the CPU: lengths on an accelerator would cost a synchronisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unlearnkit.data.collate import TokenBatch

#: What `training.packing` may be.
SETTINGS = ("auto", "never")
#: Model types whose packed and padded log-probs are tested to be equal (tests/training/test_packing.py).
MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "olmo3",
    "gpt_neox", "granite", "smollm3", "stablelm", "starcoder2", "cohere", "cohere2", "phi", "gpt2", "helium",
    "glm", "glm4",
)  # fmt: skip
#: Attention that uses the mask which transformers builds from `position_ids`.
ATTENTION = ("sdpa", "eager")
#: Line lengths that are tried for a batch.
_TRIES = 16


def packs(model: Any, setting: str = "auto") -> bool:
    """Whether rows may be packed: the setting allows it, and the model is known to keep rows apart.

    Prompt tuning and its kin are padded: PEFT drops `position_ids` for them.
    """
    if (networks := getattr(model, "networks", None)) is not None:
        return all(packs(network, setting) for network in networks.values())
    config = getattr(model, "config", None)
    adapters = getattr(model, "peft_config", {}).values()
    return (
        setting == "auto"
        and getattr(config, "model_type", None) in MODEL_TYPES
        and getattr(config, "_attn_implementation", None) in ATTENTION
        and not any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters)
    )


def first_fit(lengths: Sequence[int], line: int) -> tuple[list[int], int]:
    """Where each row starts, counted over all lines of `line` tokens, and the number of lines."""
    free: list[int] = []
    starts = [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = next((n for n, left in enumerate(free) if left >= lengths[i]), len(free))
        if found == len(free):
            free.append(line)
        starts[i] = (found + 1) * line - free[found]
        free[found] -= lengths[i]
    return starts, len(free)


def best_lines(lengths: Sequence[int], shortest: int, multiple_of: int = 1) -> tuple[list[int], int, int]:
    """Starts and number of lines as in `first_fit`, and the length of a line that computes the fewest tokens.

    Args:
        lengths: tokens of each row.
        shortest: the shortest line to try, a multiple of `multiple_of`; the longest is twice as long, because
            the attention mask and scores of a line grow with the square of its length.
        multiple_of: line lengths are multiples of it.
    """
    step = -(-max(shortest // _TRIES, 1) // multiple_of) * multiple_of
    tried = [(*first_fit(lengths, line), line) for line in range(shortest, 2 * shortest + 1, step)]
    return min(tried, key=lambda found: found[1] * found[2])


def add_packing(batches: Mapping[str, TokenBatch], *, multiple_of: int = 1) -> None:
    """Put the packed layout of all streams' rows beside the rows, which are padded on the right.

    Without rows there is none. The first stream gets `packed_lines`, every stream `packed_positions` (see
    TokenBatch).
    """
    mask_BT = torch.cat([b["attention_mask"] for b in batches.values()])
    if len(mask_BT) == 0:
        return
    length = mask_BT.shape[1]
    starts, lines, line = best_lines(mask_BT.sum(1).tolist(), length, multiple_of)
    padded = mask_BT.flatten().nonzero()[:, 0]
    places = (mask_BT.cumsum(1) - 1).flatten()[padded]
    packed = torch.tensor(starts)[padded // length] + places
    layout = torch.zeros(2, lines * line, dtype=torch.long)
    layout[:, packed] = torch.stack([padded, places])
    to_packed = torch.zeros(mask_BT.numel(), dtype=torch.long)
    to_packed[padded] = packed
    before = 0
    for batch in batches.values():
        batch["packed_positions"] = to_packed[batch["target_positions"] + before]
        before += batch["labels"].numel()
    next(iter(batches.values()))["packed_lines"] = layout.reshape(2, lines, line)


def packed_batch(batch: Mapping[str, TokenBatch]) -> dict[str, Tensor] | None:
    """The inputs of one packed forward pass, or None if the collator did not pack.

    Targets come in the order of the padded batch: stream by stream, row by row.

    Args:
        batch: all streams that were collated together.
    """
    parts = list(batch.values())
    if "packed_lines" not in parts[0]:
        return None
    source_RL, positions_RL = parts[0]["packed_lines"]
    return {
        "input_ids": torch.cat([b["input_ids"] for b in parts]).flatten()[source_RL],
        "labels": torch.cat([b["labels"] for b in parts]).flatten()[source_RL],
        "position_ids": positions_RL,
        "target_positions": torch.cat([b["packed_positions"] for b in parts]),
    }
