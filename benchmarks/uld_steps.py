"""What a ULD training step costs beside NPO's: forward and backward pass on the same examples.

ULD             the assistant (K first layers, frozen, with LoRA of rank 32): cross-entropy on forget rows, cross-entropy
                to uniform on retain rows.
NPO, live       all weights; a frozen copy of the model as reference, run at every step.
NPO, cached     all weights; the reference's log-probs computed beforehand. What the library does by itself.
NPO, LoRA       an adapter of rank 32 on the whole model, switched off for the reference.

All four go through the library's own objectives, in one process, one after the other on the same rows; which comes first
changes every time, so that load on the machine hits all. A ratio is the median over these rounds, with a bootstrap
interval. There is no optimizer, unless --adamw asks for it (it makes ULD's advantage larger, and takes 8 bytes of memory
for each trained float32 weight). Peak memory is measured apart, in a process for each.
That the three references of NPO agree is checked first.

    python benchmarks/uld_steps.py                                   # at the shape of Llama-3.2-1B
    python benchmarks/uld_steps.py --shape tofu_tiny --tofu FOLDER
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import process_memory
import torch
from rich.console import Console
from rich.table import Table
from uld_shapes import (
    STREAMS,
    Cost,
    Stopwatch,
    common_options,
    interval,
    random_model,
    random_rows,
    tofu_rows,
    told,
    versions,
)

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.methods.npo import NPO
from unlearnkit.methods.uld import Uninformative
from unlearnkit.models.assistant import build_assistant, default_lora
from unlearnkit.models.combined.layers import shared_copy
from unlearnkit.models.load import quiet_peft
from unlearnkit.training import reference
from unlearnkit.training.objective import Objective, Step, WeightedSum, as_counts, count_streams
from unlearnkit.training.packing import packs
from unlearnkit.training.retain import CrossEntropy

GIB = 2**30
PAD = 2
NPO_LOSS = WeightedSum(((1.0, NPO(beta=0.1)), (1.0, CrossEntropy(("retain",)))))
ULD_LOSS = WeightedSum(((1.0, CrossEntropy(("forget",))), (6.5, Uninformative(("retain",)))))
#: How far two references may lead the loss apart, relative: they run through batches of other shapes.
AGREEMENT = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Settings:
    """What is run; `rows` are those of each stream in one step."""

    shape: str = "llama-3.2-1b"
    layers: int | None = None
    dtype: str | None = None
    device: str = "cpu"
    rows: int | None = None
    question: int = 24
    answer: int = 24
    tofu: Path | None = None
    authors: int = 199
    rounds: int = 7
    warm_up: int = 1
    adamw: bool = False
    threads: int = 1
    seed: int = 0
    json: Path | None = None

    @property
    def precision(self) -> str:
        """Of all weights."""
        return self.dtype or ("float32" if self.shape == "tofu_tiny" else "bfloat16")

    @property
    def batch(self) -> int:
        """Rows of each stream in one step."""
        return self.rows or (16 if self.shape == "tofu_tiny" else 4)

    def model(self) -> Any:
        """The model that must forget."""
        return random_model(self.shape, dtype=self.precision, device=self.device, seed=self.seed)


# ---- The steps ---------------------------------------------------------------------------------------------


class Method:
    """A model in training on a loss."""

    def __init__(
        self, policy: Any, loss: Objective, provider: reference.Reference | None, settings: Settings
    ) -> None:
        self.policy, self.objective, self.provider = policy, loss, provider
        self.device = settings.device
        self.collate = StreamCollator(STREAMS, pad_id=PAD, packed=packs(policy))
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True) if settings.adamw else None

    def loss(self, items: list[Any]) -> torch.Tensor:
        """Of the rows of one step."""
        batch = {
            stream: {name: values.to(self.device) for name, values in part.items()}
            for stream, part in self.collate(items).items()
        }
        counts = as_counts(count_streams([batch], STREAMS, self.device), STREAMS)
        return self.objective(Step(self.policy, batch, counts, self.provider), batch).loss

    def step(self, items: list[Any]) -> None:
        """Forward and backward pass, and the optimizer's step where there is one."""
        self.loss(items).backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.trained:
            parameter.grad = None


def uld(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The assistant, on the memory of the target model."""
    return Method(build_assistant(target, settings.layers, seed=settings.seed), ULD_LOSS, None, settings)


def npo_live(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The target model is the reference of its copy."""
    policy = copy.deepcopy(target) if policy is None else policy
    return Method(policy.requires_grad_(), NPO_LOSS, reference.FrozenModel(target), settings)


def npo_cached(target: Any, settings: Settings, policy: Any = None) -> Method:
    """The rows bring what the reference said of them."""
    policy = target if policy is None else policy
    return Method(policy.requires_grad_(), NPO_LOSS, reference.CachedLogps(), settings)


def npo_lora(target: Any, settings: Settings, policy: Any = None) -> Method:
    """An adapter, which may be switched off."""
    from peft import get_peft_model

    with quiet_peft():
        adapted = get_peft_model(shared_copy(target), default_lora())
    return Method(adapted, NPO_LOSS, reference.AdapterOff(adapted, adapted), settings)


#: (target, settings, a copy of the target that may be trained) -> the method.
METHODS: dict[str, Callable[..., Method]] = {
    "ULD": uld, "NPO, live": npo_live, "NPO, cached": npo_cached, "NPO, LoRA": npo_lora,
}  # fmt: skip


def load_rows(settings: Settings) -> dict[str, list[Any]]:
    """Token rows by stream: TOFU's at tofu_tiny, else random ones of one length."""
    if settings.shape == "tofu_tiny":
        return tofu_rows(settings.tofu, settings.authors)
    return random_rows(settings.shape, 4 * settings.batch, settings.question, settings.answer, settings.seed)


def add_reference(target: Any, rows: dict[str, list[Any]], device: str) -> None:
    """Put the reference's log-probs beside the forget rows, as training does before it begins."""
    scores = reference.score_rows(target, rows["forget"], device=device, pad_id=PAD)
    for row, values in zip(rows["forget"], scores, strict=True):
        row["reference_logps"] = values


def batches(rows: dict[str, list[Any]], settings: Settings, count: int) -> list[list[Any]]:
    """The items of `count` steps, an epoch's order after the other."""
    mix = StreamMix(rows, seed=settings.seed)
    order = EpochOrder(mix, micro_batch_size=settings.batch, num_micro_batches=1, seed=settings.seed)

    def endless() -> Any:
        epoch = 0
        while True:
            order.set_epoch(epoch)
            chosen = list(order)
            whole = len(chosen) - len(chosen) % settings.batch or len(chosen)
            for start in range(0, whole, settings.batch):
                yield [mix[n] for n in chosen[start : start + settings.batch]]
            epoch += 1

    return list(islice(endless(), count))


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
    """By method the cost of each round's step and the number of trained weights; the difference of the losses."""
    target, rows = settings.model(), load_rows(settings)
    add_reference(target, rows, settings.device)
    policy = copy.deepcopy(target)
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
    trained = {name: sum(p.numel() for p in one.trained) for name, one in methods.items()}
    return {name: values[settings.warm_up :] for name, values in costs.items()}, trained, difference


# ---- Memory ------------------------------------------------------------------------------------------------


def peak_memory(name: str, settings: Settings, connection: Any) -> None:
    """A child process: a step of one method; sends the most memory that it held, the models included."""
    torch.set_num_threads(settings.threads)
    touch_libraries(settings)
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
    from uld_shapes import SHAPES

    SHAPES["touch"] = {**SHAPES["tofu_tiny"], "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    small = Settings(shape="touch", dtype=settings.precision, device=settings.device, rows=1)
    rows = random_rows("touch", 1, 2, 2, 0)
    target = small.model()
    add_reference(target, rows, settings.device)
    for make in METHODS.values():
        make(target, small, copy.deepcopy(target)).step([{s: rows[s] for s in STREAMS}])


def memories(settings: Settings) -> dict[str, int]:
    """Peak bytes by method, one process after the other."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in METHODS:
        ours, theirs = context.Pipe()
        child = context.Process(target=peak_memory, args=(name, settings, theirs), daemon=True)
        child.start()
        theirs.close()
        found[name] = ours.recv()
        child.join()
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
            "wall_ratio": interval([a.wall / b.wall for a, b in zip(values, costs["ULD"], strict=True)], seed),
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
            name, f"{n['trained']:,}", f"{n['cpu_seconds']:.3f}", f"{n['wall_seconds']:.3f}", told(n["cpu_ratio"]),
            told(n["wall_ratio"]), f"{n['peak_gib']:.2f}", f"{n['memory_ratio']:.2f}",
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
    parser.add_argument("--authors", type=int, default=199, help="tofu_tiny: authors of the built-in benchmark")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are timed, a step of each method")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them that are not")
    parser.add_argument("--adamw", action="store_true", help="with a step of fused AdamW")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Check, measure, show."""
    settings = parse()
    torch.set_num_threads(settings.threads)
    memory = memories(settings)
    costs, trained, difference = timed(settings)
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
