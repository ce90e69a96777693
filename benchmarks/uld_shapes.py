"""The models and the rows that `uld_steps.py` and `uld_generation.py` measure on."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import npo_steps
import numpy as np
import torch
import transformers
from transformers.initialization import no_init_weights

from unlearnkit.data.formats import IGNORE

STREAMS = ("forget", "retain")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: A prime number of random weights, so that no two rows of a matrix are the same.
BLOCK = 1_000_003
#: Models by their shape; all have random weights and tied embeddings.
SHAPES: dict[str, dict[str, int]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    },
    "tofu_tiny": {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one action took, in seconds."""

    cpu: float
    wall: float


class Stopwatch:
    """Seconds since it was made, all work of the accelerator done."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._wait()
        self._start = time.process_time(), time.perf_counter()

    def read(self) -> Cost:
        """Up to now."""
        self._wait()
        cpu, wall = self._start
        return Cost(time.process_time() - cpu, time.perf_counter() - wall)

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)


def random_model(shape: str, *, dtype: str, device: str, seed: int) -> Any:
    """A frozen Llama of that shape; its matrices repeat one block of random numbers, which is soon made."""
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, attn_implementation="sdpa",
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).to(device).eval()
    model.tie_weights()  # which is otherwise part of drawing them
    block = 0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    block = block.to(device, DTYPES[dtype])
    for parameter in model.requires_grad_(False).parameters():
        if parameter.dim() == 2:
            parameter.copy_(
                block.repeat(-(-parameter.numel() // BLOCK))[: parameter.numel()].view_as(parameter)
            )
    return model


def random_tokens(shape: str, rows: int, length: int, seed: int) -> list[list[int]]:
    """Rows of ordinary tokens."""
    draw = np.random.default_rng(seed)
    return draw.integers(3, SHAPES[shape]["vocab_size"], size=(rows, length)).tolist()


def random_rows(shape: str, rows: int, question: int, answer: int, seed: int) -> dict[str, list[Any]]:
    """Rows by stream: a question without targets, an answer of targets alone."""
    tokens = random_tokens(shape, len(STREAMS) * rows, question + answer, seed)
    made = [{"input_ids": ids, "labels": [IGNORE] * question + ids[question:]} for ids in tokens]
    return {stream: made[i * rows : (i + 1) * rows] for i, stream in enumerate(STREAMS)}


def tofu_rows(folder: Path | None, authors: int) -> dict[str, list[Any]]:
    """forget10 and retain90 as recipes/tofu_tiny reads them."""
    settings = npo_steps.Settings(
        tofu=folder, authors=authors, batch=1, steps=1, repeats=1, warm_up=0, threads=1, bf16=False, seed=0,
        json=None,
    )  # fmt: skip
    return npo_steps.load_data(settings).rows


def told(numbers: Sequence[float]) -> str:
    """A ratio and its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*numbers)


def common_options(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks take."""
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--layers", type=int, help="K, of the assistant (default: a quarter of the target's)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of all weights (default: bfloat16, tofu_tiny float32)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here")


def versions() -> dict[str, str]:
    """What was measured with."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
