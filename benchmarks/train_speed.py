"""How fast, and in how much memory, one NPO step runs: as shipped, and as one would write it first.

shipped: the library's own step. Reference log-probs from the cache, forget and retain rows packed into one
forward pass, logits at target positions only.
plain: a frozen copy of the model as live reference, one padded forward pass for each of forget (policy),
forget (reference) and retain (policy), log-softmax over all [B, T, V] logits in float32.

Both minimise the same loss (NPO with beta 0.1 plus retain NLL) with the same AdamW; that the losses agree to
1e-5 on the same rows is checked before anything is timed. The two take turns within one run, each in a
process of its own, so that load on the machine hits both and peak memory is measured apart.

    python benchmarks/train_speed.py --tofu FOLDER --threads 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import process_memory
import torch
from npo_steps import (
    VARIANTS,
    Data,
    Plain,
    Settings,
    Shipped,
    autocast,
    batches,
    load_data,
    optimizer_of,
    rows_of,
    train_step,
)  # fmt: skip
from rich.console import Console
from rich.table import Table

from unlearnkit.data.mixing import StreamMix
from unlearnkit.models.tiny import create_model

MIB = 2**20

# ---- One process per variant -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """One turn of one variant; `tokens` are the policy's without padding, `positions` with."""

    seconds: float
    cpu_seconds: float
    tokens: int
    positions: int


def touch_libraries(data: Data, settings: Settings) -> None:
    """One step of a much smaller model, so that code loaded at first use is not counted as the step's."""
    model = create_model(data.tokenizer, hidden_size=32, num_layers=1, num_heads=2, seed=0)
    items = [{s: [rows[0]] for s, rows in data.rows.items()}]
    train_step(Plain(model, data, settings), optimizer_of(model), items, autocast(settings))


def serve(connection: Any, name: str, data: Data, settings: Settings) -> None:
    """A child process: load, say so, then run as many steps as asked, until asked for none."""
    torch.set_num_threads(settings.threads)
    touch_libraries(data, settings)
    model = data.model(settings.seed)
    process_memory.forget_peak()
    before = process_memory.resident_bytes()
    variant = VARIANTS[name](model, data, settings)
    optimizer = optimizer_of(model)
    source = batches(StreamMix(data.rows, seed=settings.seed), settings, variant.strategy)
    connection.send(variant.seconds_before)
    while steps := connection.recv():
        turn = [next(source) for _ in range(steps)]
        start, cpu_start = time.perf_counter(), time.process_time()
        for items in turn:
            train_step(variant, optimizer, items, autocast(settings))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokens = sum(len(row["input_ids"]) for items in turn for rows in rows_of(items) for row in rows)
        connection.send(Timing(seconds, cpu_seconds, tokens, sum(map(variant.padded, turn))))
    connection.send(process_memory.peak_bytes() - before)


@dataclass(frozen=True)
class Result:
    """One variant's turns, its peak memory above the weights and the seconds it took to get ready."""

    turns: list[Timing]
    peak: int
    seconds_before: float

    @property
    def speeds(self) -> list[float]:
        """Tokens per second, by turn."""
        return [t.tokens / t.seconds for t in self.turns]

    @property
    def cpu_speed(self) -> float:
        """Tokens per second of CPU time, which other load on the machine hardly changes."""
        return sum(t.tokens for t in self.turns) / sum(t.cpu_seconds for t in self.turns)

    @property
    def padding(self) -> float:
        """The share of padding in what the policy processes."""
        return 1 - sum(t.tokens for t in self.turns) / sum(t.positions for t in self.turns)


def measure(data: Data, settings: Settings) -> dict[str, Result]:
    """Both variants, turn by turn; the one that begins changes every time."""
    context = multiprocessing.get_context("spawn")
    pipes, children, ready = {}, [], {}
    for name in VARIANTS:
        pipes[name], other_end = context.Pipe()
        children.append(context.Process(target=serve, args=(other_end, name, data, settings), daemon=True))
        children[-1].start()
        other_end.close()
        ready[name] = pipes[name].recv()

    def run(name: str, steps: int) -> Any:
        pipes[name].send(steps)
        return pipes[name].recv()

    for name in VARIANTS:
        run(name, settings.warm_up)
    turns: dict[str, list[Timing]] = {name: [] for name in VARIANTS}
    for i in range(settings.repeats):
        for name in list(VARIANTS)[:: 1 if i % 2 == 0 else -1]:
            turns[name].append(run(name, settings.steps))
    results = {name: Result(turns[name], run(name, 0), ready[name]) for name in VARIANTS}
    for child in children:
        child.join()
    return results


# ---- Same loss ---------------------------------------------------------------------------------------------


def check_losses(data: Data, settings: Settings, *, steps: int = 4, compared: int = 3) -> float:
    """The largest relative difference of the two losses on the same rows, in float32, away from the start.

    Raises:
        AssertionError: it is above 1e-5, or the weights did not move.
    """
    exact = replace(settings, bf16=False)
    model = data.model(settings.seed)
    shipped, plain = Shipped(model, data, exact), Plain(model, data, exact)
    source = batches(StreamMix(data.rows, seed=settings.seed), exact, "random")
    optimizer = optimizer_of(model)
    for items in islice(source, steps):
        train_step(plain, optimizer, items, autocast(exact))
    worst = 0.0
    with torch.no_grad():
        for items in islice(source, compared):
            forget = plain.pad(rows_of(items)[0])
            log_ratio = plain.logps(model, forget).sum(1) - plain.logps(plain.reference, forget).sum(1)
            assert log_ratio.abs().mean() > 0.1, "the policy still equals the reference"
            a, b = float(shipped.loss(items)), float(plain.loss(items))
            worst = max(worst, abs(a - b) / abs(b))
    assert worst <= 1e-5, f"the two losses differ by {worst:.2e}"
    return worst


# ---- Report ------------------------------------------------------------------------------------------------


def summary(results: dict[str, Result]) -> dict[str, Any]:
    """Everything that is shown, as plain numbers; ratios compare the two turns of a pair."""
    shipped, plain = (results[name] for name in ("shipped", "plain"))
    ratios = [a / b for a, b in zip(shipped.speeds, plain.speeds, strict=True)]
    rows = {
        name: {
            "tokens_per_second": spread(r.speeds),
            "tokens_per_cpu_second": r.cpu_speed,
            "padding": r.padding,
            "peak_mib": r.peak / MIB,
            "seconds_before": r.seconds_before,
        }
        for name, r in results.items()
    }
    return {
        **rows,
        "speed_ratio": spread(ratios),
        "cpu_speed_ratio": shipped.cpu_speed / plain.cpu_speed,
        "memory_ratio": shipped.peak / plain.peak,
    }


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least, most."""
    return statistics.median(values), min(values), max(values)


def cells(numbers: dict[str, Any]) -> list[list[str]]:
    """The table's rows."""
    out = []
    for name in VARIANTS:
        row = numbers[name]
        out.append(
            [
                name,
                "{:,.0f} ({:,.0f} to {:,.0f})".format(*row["tokens_per_second"]),
                f"{row['tokens_per_cpu_second']:,.0f}",
                f"{row['padding']:.0%}",
                f"{row['peak_mib']:.0f} MiB",
                f"{row['seconds_before']:.1f} s",
            ]
        )
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*numbers["speed_ratio"])
    cpu_ratio, memory_ratio = (f"{numbers[key]:.2f}" for key in ("cpu_speed_ratio", "memory_ratio"))
    return [*out, ["shipped / plain", ratio, cpu_ratio, "", memory_ratio, ""]]


def show(numbers: dict[str, Any], head: str) -> None:
    """The table for the eye, then the same rows for docs/performance.md."""
    titles = [
        "step",
        "tokens/s, median (range)",
        "tokens per CPU second",
        "padding",
        "peak above the weights",
        "once, before",
    ]
    table = Table(*titles, title=head)
    for row in cells(numbers):
        table.add_row(*row)
    Console().print(table)
    for row in [titles, ["---"] * len(titles), *cells(numbers)]:
        print("| " + " | ".join(row) + " |")


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tofu", type=Path, help="folder with TOFU's JSON files (default: built-in benchmark)"
    )
    parser.add_argument("--authors", type=int, default=199, help="authors of the built-in benchmark")
    parser.add_argument(
        "--batch", type=int, default=16, help="forget rows in a step, and as many retain rows"
    )
    parser.add_argument("--steps", type=int, default=25, help="steps in one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each variant")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each variant that are not timed")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast for both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Check, measure, show."""
    settings = parse()
    torch.set_num_threads(settings.threads)
    data = load_data(settings)
    difference = check_losses(data, settings)
    numbers = summary(measure(data, settings))
    precision = "bf16 autocast" if settings.bf16 else "float32"
    show(
        numbers,
        f"NPO step on {data.name}: {settings.batch} + {settings.batch} rows, {precision}, "
        f"{settings.threads} threads",
    )
    print(f"\nThe two losses agree to {difference:.1e} (relative, float32, same rows).")
    if settings.json is not None:
        shown = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}
        record = {**numbers, "loss_difference": difference, "settings": shown, "torch": torch.__version__}
        settings.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
