"""How much of its documents a model recites, against goldfish's k: a table and a figure from finished runs.

Each argument is LABEL=RUN: `plain`, `control` (a model that never saw the documents) or a k, and the folder
of a run such as those of `unlearnkit run tofu_tiny/goldfish training.k=8`. A document is cut at every 50th
token: the model is shown all before the cut, and has recited what follows if its greedy next 50 tokens are
the true ones. One pass over the document tells this for all its cuts, since a greedy continuation is right as
long as every arg-max after the true tokens is. Intervals are bootstrapped over documents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from unlearnkit.data.streams import load_stream
from unlearnkit.models.load import load_model, load_tokenizer
from unlearnkit.recipe import StreamSpec

TOKENS = 50
SEEN, UNSEEN = "0:2000", "2000:4000"
LINES = {"plain": ("#b4451f", "--"), "control": ("#666666", ":")}
COLOUR = "#1f5fb4"


@dataclass
class Measured:
    """What one model does: shares and means with a 95 % interval."""

    recited: list[float]  # of all cuts
    recited_end: list[float]  # the last 50 tokens of each document
    loss_seen: list[float]  # nats a token, the documents that the models are asked for
    loss_unseen: list[float]  # the other ones, which only the control model saw
    cuts: int
    documents: int


def interval(sums: Sequence[float], counts: Sequence[int]) -> list[float]:
    """(sum of sums / sum of counts, its 95 % bootstrap interval over documents)."""
    pairs = np.array([sums, counts], dtype=float)
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(2000, pairs.shape[1]))
    ratios = pairs[0][drawn].sum(1) / pairs[1][drawn].sum(1)
    return [float(pairs[0].sum() / pairs[1].sum()), *map(float, np.quantile(ratios, (0.025, 0.975)))]


@torch.no_grad()
def look(model: Any, ids: list[int]) -> tuple[list[bool], bool, float, int]:
    """(whether each cut's continuation is recited, and the document's end; summed loss, tokens)."""
    tokens_T = torch.tensor(ids)
    logits_TV = model(input_ids=tokens_T[None]).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits_TV, tokens_T[1:], reduction="sum")
    right = (logits_TV.argmax(-1) == tokens_T[1:]).numpy()[:-1]  # place i: token i + 1; without the EOS
    cuts = [bool(right[at - 1 : at - 1 + TOKENS].all()) for at in range(TOKENS, len(ids) - TOKENS, TOKENS)]
    return cuts, bool(right[-TOKENS:].all()), float(losses), len(ids) - 1


def measure(run: Path, documents: dict[str, list[str]]) -> Measured:
    """Both sets of documents, read by one model."""
    tokenizer, model = load_tokenizer(str(run / "model")), load_model(str(run / "model"), dtype="float32")
    model.eval()
    found = {
        name: [look(model, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in texts]
        for name, texts in documents.items()
    }
    cuts, ends, _, _ = zip(*found[SEEN], strict=True)
    losses = {
        name: interval([one[2] for one in rows], [one[3] for one in rows]) for name, rows in found.items()
    }
    return Measured(
        recited=interval([sum(c) for c in cuts], [len(c) for c in cuts]),
        recited_end=interval([float(end) for end in ends], [1] * len(ends)),
        loss_seen=losses[SEEN], loss_unseen=losses[UNSEEN],
        cuts=sum(map(len, cuts)), documents=len(cuts),
    )  # fmt: skip


def draw(models: dict[str, Measured], path: Path) -> None:
    """Extraction and loss against k, with the plain and the control model as lines."""
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="tight")
    ks = sorted((label for label in models if label not in LINES), key=float)
    for ax, field in zip(figure.subplots(1, 2), ("recited", "loss_unseen"), strict=True):
        means, low, high = np.array([getattr(models[k], field) for k in ks]).T
        ax.errorbar(
            [float(k) for k in ks], means, yerr=np.maximum([means - low, high - means], 0), color=COLOUR,
            marker="o", markersize=4, linewidth=1.2, capsize=3, label="goldfish",
        )  # fmt: skip
        for label, (colour, style) in LINES.items():
            if label in models and not (label == "control" and field == "loss_unseen"):
                ax.axhline(getattr(models[label], field)[0], color=colour, linestyle=style, label=label)
        ax.set_xscale("log", base=2)
        ax.set_xticks([float(k) for k in ks], ks)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("k (one token in k is not learned)")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    recited, loss = figure.axes
    recited.set_title(f"{TOKENS} tokens of a document recited", fontsize=10)
    recited.yaxis.set_major_formatter(PercentFormatter(1.0))
    recited.legend(frameon=False)
    loss.set_title("loss on unseen authors (nats a token)", fontsize=10)
    loss.set_ylim(0, 1.1 * loss.get_ylim()[1])
    figure.savefig(path)


def main() -> None:
    """Print the table; write the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="LABEL=RUN", help="plain, control or a k, and its run")
    parser.add_argument("--root", default="locuslab/TOFU", help="a folder or hub id with TOFU's files")
    parser.add_argument("--out", type=Path, required=True, help="the image to write (png or svg)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    if all(text.partition("=")[0] in LINES for text in options.models):
        parser.error("no model was trained with goldfish; name at least one as k=RUN")
    documents = {
        rows: [
            row["text"] for row in load_stream(StreamSpec(name="full", rows=rows, join=20), root=options.root)
        ]
        for rows in (SEEN, UNSEEN)
    }
    columns = ("recited", "recited_end", "loss_seen", "loss_unseen")
    print(f"{'':10}" + "".join(f"{name:>24}" for name in columns))
    models = {}
    for text in options.models:
        label, equals, run = text.partition("=")
        if not equals or not (Path(run) / "model").is_dir():
            parser.error(f"{text!r} is not LABEL=RUN with the folder of a trained run")
        models[label] = one = measure(Path(run), documents)
        cells = ("{:.3f} [{:.3f}, {:.3f}]".format(*getattr(one, name)) for name in columns)
        print(f"{label:10}" + "".join(f"{cell:>24}" for cell in cells) + f"   {one.cuts} cuts", flush=True)
    if options.json:
        options.json.write_text(json.dumps({k: asdict(m) for k, m in models.items()}, indent=1) + "\n")
    draw(models, options.out)


if __name__ == "__main__":
    main()
