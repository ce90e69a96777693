"""What a pair's text costs beside its target's own: seconds per token, greedy, with a KV cache.

The target alone and the pair (target and an assistant of K layers, filter included) continue the same prompts
by a fixed number of tokens, with `generate` of transformers and with the decoding loop of the library's
evaluation, in one process, one after the other; which comes first changes every time. A ratio is the median
over these rounds, with a bootstrap interval. The goal is at most (1 + K/L) x 1.25.

    python benchmarks/uld_generation.py                              # at the shape of Llama-3.2-1B, float32
    python benchmarks/uld_generation.py --shape tofu_tiny
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from goldfish_throughput import interval
from rich.console import Console
from rich.table import Table
from uld_shapes import (
    Cost,
    Stopwatch,
    common_options,
    random_model,
    random_tokens,
    told,
    versions,
)

from unlearnkit.evaluation.decode import decode
from unlearnkit.models.assistant import build_assistant
from unlearnkit.models.combined.layers import text_config
from unlearnkit.models.combined.modeling_combined import ULDForCausalLM

#: What the goal allows beyond the assistant's share of the layers.
ALLOWANCE = 1.25
PAD = 2


@dataclass(frozen=True)
class Settings:
    """What is run."""

    shape: str = "llama-3.2-1b"
    layers: int | None = None
    dtype: str | None = None
    device: str = "cpu"
    rows: int = 8
    prompt: int = 16
    new: int = 32
    top_logit_filter: float = 0.01
    rounds: int = 7
    warm_up: int = 1
    threads: int = 1
    seed: int = 0
    json: Path | None = None


def by_generate(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The continuations that transformers gives."""
    ids_BT = torch.tensor(prompts, device=next(model.parameters()).device)
    with torch.no_grad():
        out_BT = model.generate(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, min_new_tokens=new,
            max_new_tokens=new, pad_token_id=PAD,
        )  # fmt: skip
    return out_BT[:, ids_BT.shape[1] :].tolist()


def by_decode(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Those of the library's evaluation."""
    texts = decode(model, prompts, max_new_tokens=new, stop=(), pad_id=PAD)
    assert texts is not None, "the cache cannot drop rows"
    return texts


LOOPS: dict[str, Callable[..., list[list[int]]]] = {"generate": by_generate, "decode": by_decode}


def prepared(settings: Settings) -> tuple[Any, Any]:
    """The target and the pair, whose assistant has something to say: its adapter is not zero."""
    dtype = settings.dtype or "float32"
    target = random_model(settings.shape, dtype=dtype, device=settings.device, seed=settings.seed)
    assistant = build_assistant(target, settings.layers, seed=settings.seed)
    torch.manual_seed(settings.seed)
    for name, parameter in assistant.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return target, ULDForCausalLM.pair(target, assistant, top_logit_filter=settings.top_logit_filter)


def depths(pair: Any) -> tuple[int, int]:
    """K and L."""
    target, assistant = (
        text_config(pair.networks[role]).num_hidden_layers for role in ("target", "assistant")
    )
    return assistant, target


def measure(settings: Settings) -> dict[str, Any]:
    """Everything that is shown, as plain numbers."""
    target, pair = prepared(settings)
    models = {"target": target, "pair": pair}
    prompts = random_tokens(settings.shape, settings.rows, settings.prompt, settings.seed)
    costs: dict[tuple[str, str], list[Cost]] = {(loop, name): [] for loop in LOOPS for name in models}
    for i in range(settings.warm_up + settings.rounds):
        for loop, run in LOOPS.items():
            for name in list(models)[:: 1 if i % 2 == 0 else -1]:
                watch = Stopwatch(settings.device)
                texts = run(models[name], prompts, settings.new)
                costs[loop, name].append(watch.read())
                assert {len(text) for text in texts} == {settings.new}, "a row has ended early"
    layers, of = depths(pair)
    loops = {
        loop: compared(*(costs[loop, name][settings.warm_up :] for name in models), settings)
        for loop in LOOPS
    }
    return {"layers": layers, "of": of, "allowed": (1 + layers / of) * ALLOWANCE, "loops": loops}


def compared(target: list[Cost], pair: list[Cost], settings: Settings) -> dict[str, Any]:
    """Milliseconds for a token of all rows, and the ratios of each round."""
    per_token = partial(
        lambda kind, costs: 1e3 * statistics.median(getattr(c, kind) for c in costs) / settings.new
    )
    numbers: dict[str, Any] = {}
    for kind in ("cpu", "wall"):
        ratios = [getattr(b, kind) / getattr(a, kind) for a, b in zip(target, pair, strict=True)]
        numbers[kind] = {
            "target_ms": per_token(kind, target), "pair_ms": per_token(kind, pair),
            "ratio": interval(ratios, settings.seed),
        }  # fmt: skip
    return numbers


# ---- Report ------------------------------------------------------------------------------------------------


def show(numbers: dict[str, Any], head: str) -> None:
    """The table for the eye, then the same rows for docs/performance.md."""
    titles = [
        "loop",
        "target, CPU ms",
        "pair, CPU ms",
        "CPU time, pair / target (95 %)",
        "time, pair / target (95 %)",
        "allowed",
    ]
    rows = [
        [
            loop, f"{n['cpu']['target_ms']:.2f}", f"{n['cpu']['pair_ms']:.2f}", told(n["cpu"]["ratio"]),
            told(n["wall"]["ratio"]), f"{numbers['allowed']:.2f}",
        ]
        for loop, n in numbers["loops"].items()
    ]  # fmt: skip
    table = Table(*titles, title=head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for row in [titles, ["---"] * len(titles), *rows]:
        print("| " + " | ".join(row) + " |")


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_options(parser)
    parser.add_argument("--rows", type=int, default=8, help="prompts that are continued together")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens that are generated for each")
    parser.add_argument("--top-logit-filter", type=float, default=0.01, help="0 compares all tokens")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are timed, a text of each way")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them that are not")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Measure, show."""
    settings = parse()
    torch.set_num_threads(settings.threads)
    numbers = measure(settings)
    show(
        numbers, f"{settings.shape}: {settings.rows} rows, K = {numbers['layers']} of {numbers['of']} layers"
    )
    if settings.json is not None:
        shown = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}
        settings.json.write_text(json.dumps({**numbers, "settings": shown, **versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
