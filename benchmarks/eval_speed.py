"""What an evaluation costs: suite `tofu_full` as shipped, and as one would write it first.

shipped: `evaluate(..., suite="tofu_full", cache=False)`. One pass feeds all metrics, logits at target
positions only, decoding that drops rows as they end.
plain: each metric makes its own pass over its own data (`plain_evaluation.py`): batches of 32 in the order of
the data, full-vocabulary logits, `generate` with its defaults.

Both evaluate the same model on the same rows in one run, each in a process of its own, one after the other;
the retain model's records are made beforehand and given to both. CPU time is counted, not the clock, so that
load on the machine matters little. That the metrics agree to 1e-5 is checked; those of sampled answers are
left out of that check, since the two draw with other random numbers.

    python benchmarks/eval_speed.py --tofu FOLDER --model MODEL --retain MODEL --target MODEL
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from eval_paths import SUITE, Task, serve
from rich.console import Console
from rich.table import Table

from unlearnkit.data import fictional
from unlearnkit.evaluation import results, runner
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.models.tiny import create_model, train_tokenizer

SETS = {
    "forget": "forget10_perturbed", "retain": "retain_perturbed", "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed", "holdout": "holdout10",
}  # fmt: skip
PATHS = ("plain", "shipped")
PARTS = ("scoring", "generating", "sampling", "judging", "gradients", "tokenising", "metrics", "the rest")
AGREEMENT = 1e-5
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What is run. Without `tofu` the built-in benchmark stands in, without `model` tiny random models."""

    tofu: Path | None = None
    split: str = "forget10"
    model: Path | None = None
    retain: Path | None = None
    target: Path | None = None
    holdout: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 200
    threads: int = 1
    authors: int = 20
    json: Path | None = None


# ---- Before the clock runs ---------------------------------------------------------------------------------


def prepare(settings: Settings, folder: Path) -> Task:
    """Models, data and the retain model's records."""
    torch.set_num_threads(settings.threads)
    models = {name: getattr(settings, name) for name in ("model", "retain", "target")}
    if settings.model is None:
        models = tiny_models(settings, folder)
    elif None in models.values():
        raise SystemExit("--model needs --retain and --target beside it")
    data = data_files(settings, folder)
    retain = models["retain"]
    if not results.is_evaluation(retain):
        retain = folder / "retain_evaluation"
        runner.evaluate(
            models["retain"], suite=SUITE, data=data, output=retain, role="retain", cache=False,
            max_new_tokens=settings.max_new_tokens, progress=False,
        )  # fmt: skip
    return Task(
        str(models["model"]), str(models["target"]), str(retain), data, settings.max_new_tokens,
        settings.threads,
    )  # fmt: skip


def tiny_models(settings: Settings, folder: Path) -> dict[str, Path]:
    """Random models of the size of the recipe tofu_tiny, with one tokenizer."""
    rows = fictional.rows("full", fictional.FictionalSpec(authors=settings.authors))
    tokenizer = train_tokenizer(f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows)
    for seed, name in enumerate(("model", "retain", "target")):
        model = create_model(tokenizer, hidden_size=256, num_layers=3, num_heads=4, seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("model", "retain", "target")}


def data_files(settings: Settings, folder: Path) -> dict[str, Any]:
    """The suite's data: TOFU's folder as it is, or files with the first rows of each set."""
    data: dict[str, Any] = {}
    if settings.tofu is not None:
        data = {"root": str(settings.tofu), "split": settings.split}
        if settings.holdout is not None:
            data["holdout"] = str(settings.holdout)
        if settings.limit is None:
            return data
        rows = runner.load_datasets(load_suite(SUITE, data))
    else:
        spec = fictional.FictionalSpec(authors=settings.authors)
        rows = {name: fictional.rows(split, spec) for name, split in SETS.items()}
    (folder / "data").mkdir()
    for name, some in rows.items():
        path = folder / "data" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some[: settings.limit]))
        data[name] = str(path)
    return data


# ---- Report ------------------------------------------------------------------------------------------------


def differences(numbers: Mapping[str, Any], suite: Suite) -> dict[str, float]:
    """|shipped - plain| of every metric that is not sampled; infinite where only one path has a value."""
    one, two = (numbers[name]["values"] for name in PATHS)
    drawn = {name for name, spec in suite.metrics.items() if spec.kind == "sampled_leakage"}
    names = sorted((one.keys() | two.keys()) - drawn)
    return {name: abs(one[name] - two[name]) if name in one and name in two else math.inf for name in names}


def cells(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows."""
    one, two = (numbers[name] for name in PATHS)
    out = []

    def row(title: str, a: float, b: float, form: str) -> None:
        out.append([title, form.format(a), form.format(b), f"{a / b:.2f}" if b else ""])

    for part in PARTS:
        a, b = (numbers[name]["seconds"].get(part, 0.0) for name in PATHS)
        if a or b:
            row(f"{part}, CPU s", a, b, "{:.1f}")
    row("all, CPU s", one["total"], two["total"], "{:.1f}")
    row("all, each pass of plain once, CPU s", one["total"] - one["repeated"], two["total"], "{:.1f}")
    for title in ("forward passes", "positions"):
        row(title, one[title], two[title], "{:,}")
    row("peak memory, MiB", one["peak"] / MIB, two["peak"] / MIB, "{:.0f}")
    return out


def show(numbers: Mapping[str, Any], head: str) -> None:
    """The table for the eye, then the same rows for docs/performance.md."""
    titles = ["", "plain", "shipped", "plain / shipped"]
    table = Table(*titles, title=head)
    for row in cells(numbers):
        table.add_row(*row)
    Console().print(table)
    for row in [titles, ["---"] * len(titles), *cells(numbers)]:
        print("| " + " | ".join(row) + " |")


def compare(settings: Settings) -> dict[str, Any]:
    """Both paths, a process each."""
    context = multiprocessing.get_context("spawn")
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        task = prepare(settings, Path(name))
        for path in PATHS:
            mine, theirs = context.Pipe()
            child = context.Process(target=serve, args=(theirs, path, task), daemon=True)
            child.start()
            theirs.close()
            numbers[path] = mine.recv()
            child.join()
        numbers["differences"] = differences(numbers, load_suite(SUITE, task.data))
    return numbers


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = functools.partial(parser.add_argument, type=Path)
    add("--tofu", help="folder with TOFU's JSON files (default: built-in benchmark)")
    add("--split", type=str, default="forget10", help="TOFU's forget set")
    add("--holdout", help="file with a holdout set for TOFU, so that membership is measured")
    add("--model", help="the evaluated model (default: a tiny random one)")
    add("--retain", help="the retain model, or the folder of its evaluation")
    add("--target", help="the model before unlearning")
    add("--limit", type=int, help="examples of each set, for a quick try")
    add("--max-new-tokens", type=int, default=200, help="bound of a generation")
    add("--threads", type=int, default=1, help="threads of each process")
    add("--authors", type=int, default=20, help="authors of the built-in benchmark")
    add("--json", help="write the numbers here")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Measure, show, check."""
    settings = parse()
    numbers = compare(settings)
    where = "the built-in benchmark" if settings.tofu is None else f"TOFU, {settings.split}"
    show(numbers, f"{SUITE} on {where}, {settings.threads} thread(s)")
    worst = max(numbers["differences"], key=numbers["differences"].__getitem__)
    print(
        f"\n{len(numbers['differences'])} metrics agree to {numbers['differences'][worst]:.1e} ({worst}); "
        "those of sampled answers, whose draws differ:"
    )
    for name in sorted(set(numbers["plain"]["values"]) - set(numbers["differences"])):
        print(f"  {name}: " + ", ".join(f"{path} {numbers[path]['values'][name]:.3f}" for path in PATHS))
    if settings.json is not None:
        shown = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}
        record = {**numbers, "settings": shown, "torch": torch.__version__}
        settings.json.write_text(json.dumps(record, indent=1) + "\n")
    if numbers["differences"][worst] > AGREEMENT:
        raise SystemExit(f"{worst} differs by more than {AGREEMENT:g}")


if __name__ == "__main__":
    main()
