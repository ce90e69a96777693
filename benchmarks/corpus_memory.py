"""How much memory documents take while they are prepared and read: tokens in memory, and tokens on the disk.

For each size a file of made-up documents is written and then, in a process of its own, loaded, tokenised, put
into blocks and read through once in the order of an epoch, by the library's own functions. What it holds is
sampled all along: memory of its own ("anonymous"; what a machine must have), and all resident memory, which
also counts pages of files that were read and that the system takes back when it needs the room. What the
libraries hold before the first document is taken off. Seconds are CPU time.

    python benchmarks/corpus_memory.py --megabytes 20 200          # on the disk
    python benchmarks/corpus_memory.py --megabytes 20 --in-memory
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_WORDS, _WORDS_A_DOCUMENT = 20_000, 350
_EVERY = 0.02  # seconds


def write_corpus(path: Path, megabytes: float) -> None:
    """JSON lines of random words, half of which are the hundred most frequent."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuv", k=draw.randint(2, 9))) for _ in range(_WORDS)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            count = draw.randint(20, 2 * _WORDS_A_DOCUMENT)
            text = " ".join(draw.choices(words[:100], k=count // 2) + draw.choices(words, k=count // 2))
            written += len(text)
            file.write(json.dumps({"text": text}) + "\n")


class Watch:
    """The most memory that this process held, in bytes: (anonymous, all resident)."""

    def __init__(self) -> None:
        self.before = self.most = self._held()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        """What was held at most above what was held at the beginning."""
        self._ended.set()
        self._thread.join()
        return self.most[0] - self.before[0], self.most[1] - self.before[1]

    def _run(self) -> None:
        while not self._ended.wait(_EVERY):
            held = self._held()
            self.most = max(self.most[0], held[0]), max(self.most[1], held[1])

    def _held(self) -> tuple[int, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
        return int(found["RssAnon"]) * 1024, int(found["VmRSS"]) * 1024


def measured(path: Path, cache: Path, on_disk: bool) -> dict[str, Any]:
    """Prepare a corpus and read it once."""
    os.environ |= {"HF_HOME": str(cache / "hf"), "UNLEARNKIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    import datasets

    from unlearnkit.data.corpus import stored
    from unlearnkit.data.formats import Template, Tokenizer, tokenize_stream
    from unlearnkit.data.mixing import EpochOrder, StreamMix
    from unlearnkit.data.parts import tokenize_parts
    from unlearnkit.data.streams import load_stream
    from unlearnkit.models.tiny import train_tokenizer
    from unlearnkit.recipe import StreamSpec

    datasets.disable_progress_bars()
    with path.open(encoding="utf-8") as file:
        learned = [json.loads(line)["text"] for line in islice(file, 200)]
    tokenizer = train_tokenizer(learned, vocab_size=2048)
    template = Template.for_tokenizer(tokenizer, None)
    settings = {"max_length": 512, "name": "train"}

    def tokens(data: Any, part: str) -> Any:
        if not on_disk:
            return tokenize_stream(data, tokenizer, template, **settings)
        return stored(data, Tokenizer(tokenizer, template, **settings), cache / "corpora")

    watch, clock, seconds = Watch(), time.process_time(), {}
    stream = load_stream(StreamSpec(path=str(path)), name="train", on_disk=on_disk)
    seconds["load"] = time.process_time() - clock
    for step in ("tokenise", "again"):
        clock = time.process_time()
        found, rows = tokenize_parts(
            ("train",), {"train": stream}, tokens, {}, epochs=1, seed=0, max_length=512, pack=True
        )
        seconds[step] = time.process_time() - clock
        if not on_disk:
            break
    mix, clock, read = StreamMix(rows), time.process_time(), 0
    for n in EpochOrder(mix, micro_batch_size=8, num_micro_batches=4):
        read += sum(len(row["input_ids"]) for row in mix[n].get("train", ()))
    seconds["read"] = time.process_time() - clock
    own, resident = watch.stop()
    assert read == found["train"].num_tokens
    return {
        "megabytes": path.stat().st_size / 1e6, "on_disk": on_disk, "documents": len(stream), "tokens": read,
        "blocks": len(mix), "fill": rows["train"].blocks.fill, "own_mb": own / 1e6,
        "resident_mb": resident / 1e6, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[20.0, 200.0])
    parser.add_argument("--in-memory", action="store_true", help="tokens in memory instead of on the disk")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    found = []
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "corpus.jsonl")
            write_corpus(path, megabytes)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found.append(
                    process.submit(measured, path, Path(folder, "cache"), not args.in_memory).result()
                )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    table = Table(
        "text MB", "documents", "tokens", "fill", "own MB", "resident MB", "load", "tokenise", "again", "read"
    )
    for one in found:
        times = [
            f"{one['seconds'][k]:.1f} s" if k in one["seconds"] else ""
            for k in ("load", "tokenise", "again", "read")
        ]
        table.add_row(
            f"{one['megabytes']:.0f}", f"{one['documents']:,}", f"{one['tokens']:,}", f"{one['fill']:.3f}",
            f"{one['own_mb']:.0f}", f"{one['resident_mb']:.0f}", *times,
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
