"""What goldfish training costs: its steps beside those of plain training, and the tokenising.

Both train the same model on the same documents with the library's own objects (collator, term, fused AdamW);
they differ in the labels, in which goldfish has holes, and in the term. Every pair of steps is made of the
same rows, one variant after the other in one process, and which goes first changes every time, so that load
on the machine hits both. The time of a step is CPU time on one thread; the ratio is the median over all
pairs, with a bootstrap interval. That k = infinity gives plain training's loss to the bit is checked first.
Tokenising is timed without a mask and with the mask of each strategy, in turns as well.

    python benchmarks/goldfish_throughput.py --tofu FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from unlearnkit.data import fictional
from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import Template, Tokenized, tokenize_stream
from unlearnkit.data.streams import load_stream
from unlearnkit.methods.goldfish import Goldfish
from unlearnkit.models.tiny import create_model, train_tokenizer
from unlearnkit.recipe import StreamSpec, TemplateSpec
from unlearnkit.training.objective import Objective, Step, as_counts, count_streams
from unlearnkit.training.packing import packs
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.selective import SelectiveNLL

STREAMS = ("train",)
#: What tokenising is timed with; None is no mask at all.
MASKS: dict[str, Goldfish | None] = {
    "no mask": None,
    "hash": Goldfish(),
    "hash, normalize": Goldfish(normalize=True),
    "compat": Goldfish(strategy="compat"),
    "static": Goldfish(strategy="static"),
    "seeded_random": Goldfish(strategy="seeded_random"),
}


@dataclass(frozen=True)
class Settings:
    """What is run; `batch` counts documents in one step."""

    tofu: Path | None = None
    documents: int = 100
    batch: int = 4
    pairs: int = 40
    warm_up: int = 3
    repeats: int = 7
    max_length: int = 512
    k: float = 4.0
    h: int = 13
    seed: int = 0
    json: Path | None = None


@dataclass(frozen=True)
class Data:
    """Documents, and the tokenizer that the model is made for."""

    tokenizer: Any
    documents: list[dict[str, Any]]
    max_length: int

    def tokenized(self, mask: Goldfish | None) -> Tokenized:
        """All documents as tokens."""
        template = Template.for_tokenizer(self.tokenizer, TemplateSpec(kind="plain"))
        return tokenize_stream(
            self.documents, self.tokenizer, template, max_length=self.max_length,
            selectors=() if mask is None else (mask,),
        )  # fmt: skip


def load_data(settings: Settings) -> Data:
    """An author's twenty answers are one document, of TOFU or of the built-in benchmark."""
    if settings.tofu is None:
        spec = fictional.FictionalSpec(authors=max(settings.documents, 20))
        answers = [row["answer"] for row in fictional.rows("full", spec)]
    else:
        data = load_stream(StreamSpec(name="full"), root=str(settings.tofu), name="train")
        answers = list(data["completion"])
    texts = [" ".join(answers[i : i + 20]) for i in range(0, len(answers), 20)][: settings.documents]
    tokenizer = train_tokenizer(texts, vocab_size=4096)
    documents = [{"example_id": f"document{i}", "text": text} for i, text in enumerate(texts)]
    return Data(tokenizer, documents, settings.max_length)


# ---- Steps -------------------------------------------------------------------------------------------------


class Variant:
    """A model in training on its own rows."""

    def __init__(self, data: Data, rows: Sequence[Any], term: Objective, seed: int) -> None:
        self.rows, self.term = rows, term
        self.model = create_model(data.tokenizer, hidden_size=256, num_layers=3, num_heads=4, seed=seed)
        self.collate = StreamCollator(STREAMS, pad_id=data.tokenizer.pad_token_id, packed=packs(self.model))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(self, numbers: Sequence[int]) -> float:
        """One optimizer step on the rows of these numbers; the loss before it."""
        batch = self.collate([{"train": [self.rows[n]]} for n in numbers])
        counts = as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS)
        loss = self.term(Step(self.model, batch, counts), batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def check_losses(data: Data, settings: Settings, *, steps: int = 2) -> None:
    """Without a k the losses of both are the same numbers.

    Raises:
        AssertionError: they are not.
    """
    plain = Variant(data, data.tokenized(None).rows, CrossEntropy(STREAMS), settings.seed)
    holes = Variant(data, data.tokenized(Goldfish(k=None)).rows, SelectiveNLL(STREAMS), settings.seed)
    for numbers in drawn(len(plain.rows), settings.batch, steps, settings.seed):
        assert plain.step(numbers) == holes.step(numbers), "k = infinity is not plain training"


def drawn(rows: int, batch: int, count: int, seed: int) -> list[list[int]]:
    """The rows of each of `count` steps."""
    generator = np.random.default_rng(seed)
    return [generator.choice(rows, size=min(batch, rows), replace=False).tolist() for _ in range(count)]


def timed(action: Callable[[], Any]) -> float:
    """CPU seconds."""
    start = time.process_time()
    action()
    return time.process_time() - start


def pairs_of_steps(data: Data, settings: Settings) -> list[tuple[float, float]]:
    """(plain, goldfish) CPU seconds of one step after the other on the same rows."""
    mask = Goldfish(k=settings.k, h=settings.h)
    plain = Variant(data, data.tokenized(None).rows, CrossEntropy(STREAMS), settings.seed)
    holes = Variant(data, data.tokenized(mask).rows, SelectiveNLL(STREAMS), settings.seed)
    found = []
    batches = drawn(len(plain.rows), settings.batch, settings.warm_up + settings.pairs, settings.seed + 1)
    for i, numbers in enumerate(batches):
        order = (plain, holes) if i % 2 == 0 else (holes, plain)
        seconds = {id(one): timed(partial(one.step, numbers)) for one in order}
        found.append((seconds[id(plain)], seconds[id(holes)]))
    return found[settings.warm_up :]


def tokenising(data: Data, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds for 1,000 tokens, by mask."""
    tokens = data.tokenized(None).num_tokens
    seconds: dict[str, list[float]] = {name: [] for name in MASKS}
    for _ in range(repeats):
        for name, mask in MASKS.items():
            seconds[name].append(timed(partial(data.tokenized, mask)))
    return {name: 1e6 * statistics.median(values) / tokens for name, values in seconds.items()}


# ---- Report ------------------------------------------------------------------------------------------------


def interval(ratios: Sequence[float], seed: int) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    found = bootstrap(
        (np.asarray(ratios),), np.median, n_resamples=5000, method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(np.median(ratios)), float(found.low), float(found.high)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything that is shown, as plain numbers."""
    data = load_data(settings)
    check_losses(data, settings)
    pairs = pairs_of_steps(data, settings)
    masked = data.tokenized(Goldfish(k=settings.k, h=settings.h))
    assert masked.chosen is not None
    return {
        "documents": len(data.documents),
        "tokens": masked.num_tokens,
        "kept": masked.chosen.learned / masked.chosen.candidates,
        "plain_seconds": statistics.median(a for a, _ in pairs),
        "goldfish_seconds": statistics.median(b for _, b in pairs),
        "ratio": interval([b / a for a, b in pairs], settings.seed),
        "tokenising": tokenising(data, settings.repeats),
    }


def show(numbers: dict[str, Any]) -> None:
    """Both tables for the eye, then the same rows for docs/performance.md."""
    ratio = "{:.3f} ({:.3f} to {:.3f})".format(*numbers["ratio"])
    steps = [
        [
            f"{numbers['plain_seconds']:.3f} s",
            f"{numbers['goldfish_seconds']:.3f} s",
            ratio,
            f"{numbers['kept']:.1%}",
        ]
    ]
    base = numbers["tokenising"]["no mask"]
    masks = [[name, f"{ms:.2f} ms", f"{ms / base:.2f}"] for name, ms in numbers["tokenising"].items()]
    for titles, rows in (
        (["plain step", "goldfish step", "goldfish / plain (95 %)", "kept"], steps),
        (["tokenising", "CPU time for 1,000 tokens", "/ no mask"], masks),
    ):
        table = Table(*titles)
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
    parser.add_argument(
        "--tofu", type=Path, help="folder with TOFU's JSON files (default: built-in benchmark)"
    )
    parser.add_argument("--documents", type=int, default=100, help="documents, an author's answers each")
    parser.add_argument("--batch", type=int, default=4, help="documents (or pieces of them) in a step")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of steps that are timed")
    parser.add_argument("--warm-up", type=int, default=3, help="pairs before them that are not")
    parser.add_argument("--repeats", type=int, default=7, help="turns of the tokenising with each mask")
    parser.add_argument("--max-length", type=int, default=512, help="tokens at most in one row")
    parser.add_argument("--k", type=float, default=4.0, help="one target in k is dropped")
    parser.add_argument("--h", type=int, default=13, help="tokens that are hashed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Check, measure, show."""
    settings = parse()
    torch.set_num_threads(1)
    numbers = measure(settings)
    show(numbers)
    if settings.json is not None:
        shown = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}
        record = {**numbers, "settings": shown, "torch": torch.__version__}
        settings.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
