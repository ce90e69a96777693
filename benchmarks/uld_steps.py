"""What a ULD training step costs beside NPO's: forward and backward pass on the same examples.

ULD             the assistant (K first layers, frozen, with LoRA of rank 32): cross-entropy on forget rows,
                KL to uniform on retain rows.
NPO, live       all weights; a frozen copy of the model as reference, run at every step.
NPO, cached     all weights; the reference's log-probs computed beforehand, as the library does by itself.
NPO, LoRA       an adapter of rank 32 on the whole model, switched off for the reference.

All four go through the library's own objectives, in one process, one after the other on the same rows; which
comes first changes every time, so that load on the machine hits all. A ratio is the median over these rounds,
with a bootstrap interval. There is no optimizer, unless --adamw asks for it: its states take twice the memory
of the trained weights. Peak memory is measured apart, in a process for each. That NPO's loss is the same with
its three references is checked first.

    python benchmarks/uld_steps.py                                   # at the shape of Llama-3.2-1B
    python benchmarks/uld_steps.py --shape tofu_tiny --tofu FOLDER
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import process_memory
import torch
from goldfish_throughput import interval
from rich.console import Console
from rich.table import Table
from uld_methods import METHODS, Method, Settings, add_reference, batches, load_rows
from uld_shapes import SHAPES, STREAMS, Cost, Stopwatch, common_options, random_rows, told, versions

from unlearnkit.models.combined.layers import shared_copy

GIB = 2**30
#: How far two references may lead the loss apart, relative: they run through batches of other shapes.
AGREEMENT = {"float32": 1e-4, "bfloat16": 2e-2}


# ---- Time --------------------------------------------------------------------------------------------------


def check_references(methods: dict[str, Method], items: list[Any], precision: str) -> float:
    """The largest relative difference of NPO's losses with its three references, before any step.

    Raises:
        AssertionError: they are not the same loss.
    """
    with torch.no_grad():
        live, *others = (float(one.loss(items)) for name, one in methods.items() if name != "ULD")
    worst = max(abs(other - live) / abs(live) for other in others)
    assert worst <= AGREEMENT[precision], f"the losses of NPO differ by {worst:.2e}"
    return worst


def timed(settings: Settings) -> tuple[dict[str, list[Cost]], dict[str, int], float]:
    """The cost of each round's step and the trained weights, by method; how far NPO's losses differ."""
    target, rows = settings.model(), load_rows(settings)
    add_reference(target, rows, settings.device)
    # Weights that no optimizer moves may lie in one place; passes take as long, and memory is measured apart.
    policy = copy.deepcopy(target) if settings.adamw else shared_copy(target)
    methods = {name: make(target, settings, policy) for name, make in METHODS.items()}
    rounds = batches(rows, settings, settings.warm_up + settings.rounds)
    difference = check_references(methods, rounds[0], settings.precision)
    costs: dict[str, list[Cost]] = {name: [] for name in methods}
    names = list(methods)
    for i, items in enumerate(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            watch = Stopwatch(settings.device)
            methods[name].step(items)
            costs[name].append(watch.read())
            print(f"round {i}, {name}: {costs[name][-1].cpu:.3f} CPU s", file=sys.stderr, flush=True)
    trained = {name: sum(p.numel() for p in one.trained) for name, one in methods.items()}
    return {name: values[settings.warm_up :] for name, values in costs.items()}, trained, difference


# ---- Memory ------------------------------------------------------------------------------------------------


def peak_memory(name: str, settings: Settings, connection: Any) -> None:
    """A child process: a step of one method; sends the most memory that it held, the models included."""
    torch.set_num_threads(settings.threads)
    touch_libraries(settings)
    process_memory.forget_peak()
    before = process_memory.resident_bytes()
    target, rows = settings.model(), load_rows(settings)
    if name == "NPO, cached":
        add_reference(target, rows, settings.device)
    method = METHODS[name](target, settings)
    del target
    process_memory.forget_peak()
    if settings.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for items in batches(rows, settings, 2 if settings.adamw else 1):
        method.step(items)
    on_device = torch.cuda.max_memory_allocated() if settings.device != "cpu" else 0
    connection.send(on_device or process_memory.peak_bytes() - before)


def touch_libraries(settings: Settings) -> None:
    """A step of every method at a tiny shape, so that code loaded at first use is not counted."""
    SHAPES["touch"] = {**SHAPES["tofu_tiny"], "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    small = Settings(shape="touch", dtype=settings.precision, device=settings.device, rows=1)
    rows = random_rows("touch", 1, 2, 2, 0)
    target = small.model()
    add_reference(target, rows, settings.device)
    for make in METHODS.values():
        make(target, small, copy.deepcopy(target)).step([{s: rows[s] for s in STREAMS}])


def memories(settings: Settings) -> dict[str, int]:
    """Peak bytes by method, one process after the other."""
    process_memory.forget_peak()  # what the timing left
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in METHODS:
        ours, theirs = context.Pipe()
        child = context.Process(target=peak_memory, args=(name, settings, theirs), daemon=True)
        child.start()
        theirs.close()
        found[name] = ours.recv()
        child.join()
        print(f"{name}: {found[name] / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return found


# ---- Report ------------------------------------------------------------------------------------------------


def summary(
    costs: dict[str, list[Cost]], trained: dict[str, int], memory: dict[str, int], seed: int
) -> dict[str, dict[str, Any]]:
    """Everything that is shown, by method; ratios are to ULD's step in the same round."""
    return {
        name: {
            "cpu_seconds": statistics.median(cost.cpu for cost in values),
            "wall_seconds": statistics.median(cost.wall for cost in values),
            "cpu_ratio": interval([a.cpu / b.cpu for a, b in zip(values, costs["ULD"], strict=True)], seed),
            "wall_ratio": interval(
                [a.wall / b.wall for a, b in zip(values, costs["ULD"], strict=True)], seed
            ),
            "trained": trained[name],
            "peak_gib": memory[name] / GIB,
            "memory_ratio": memory[name] / memory["ULD"],
        }
        for name, values in costs.items()
    }


def show(numbers: dict[str, dict[str, Any]], head: str) -> None:
    """The table for the eye, then the same rows for docs/performance.md."""
    titles = [
        "step", "trained weights", "CPU s", "s", "CPU time / ULD (95 %)", "time / ULD (95 %)", "peak, GiB",
        "memory / ULD",
    ]  # fmt: skip
    rows = [
        [
            name, f"{n['trained']:,}", f"{n['cpu_seconds']:.3f}", f"{n['wall_seconds']:.3f}",
            told(n["cpu_ratio"]), told(n["wall_ratio"]), f"{n['peak_gib']:.2f}", f"{n['memory_ratio']:.2f}",
        ]
        for name, n in numbers.items()
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
    parser.add_argument(
        "--rows", type=int, help="forget rows in a step, and as many retain rows (4; tofu_tiny 16)"
    )
    parser.add_argument("--question", type=int, default=24, help="tokens of a random question")
    parser.add_argument("--answer", type=int, default=24, help="tokens of its answer")
    parser.add_argument("--tofu", type=Path, help="tofu_tiny: folder with TOFU's JSON files")
    parser.add_argument(
        "--authors", type=int, default=199, help="tofu_tiny: authors of the built-in benchmark"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are timed, a step of each method")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them that are not")
    parser.add_argument("--adamw", action="store_true", help="with a step of fused AdamW")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Check, measure, show."""
    settings = parse()
    torch.set_num_threads(settings.threads)
    costs, trained, difference = timed(settings)
    memory = memories(settings)
    numbers = summary(costs, trained, memory, settings.seed)
    what = "forward, backward and AdamW" if settings.adamw else "forward and backward"
    show(numbers, f"{settings.shape}, {settings.precision}, {settings.batch} + {settings.batch} rows: {what}")
    print(f"\nNPO's losses with its three references agree to {difference:.1e} (relative).")
    if settings.json is not None:
        shown = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}
        record = {"steps": numbers, "loss_difference": difference, "settings": shown, **versions()}
        settings.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
