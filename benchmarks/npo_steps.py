"""The two NPO steps that `train_speed.py` compares, and their data."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unlearnkit.data import fictional
from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE, Template, tokenize_stream
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.data.streams import load_stream
from unlearnkit.methods.npo import NPO
from unlearnkit.models.tiny import create_model, train_tokenizer
from unlearnkit.recipe import StreamSpec
from unlearnkit.training import reference
from unlearnkit.training.objective import Step, WeightedSum, as_counts, count_streams, fuse
from unlearnkit.training.packing import packed_batch, packs
from unlearnkit.training.retain import CrossEntropy

BETA = 0.1
LEARNING_RATE = 1e-4
STREAMS = ("forget", "retain")
OBJECTIVE = WeightedSum(((1.0, NPO(BETA)), (1.0, CrossEntropy())))


@dataclass(frozen=True)
class Settings:
    """What is run; `batch` counts rows of each stream in one step."""

    tofu: Path | None
    authors: int
    batch: int
    steps: int
    repeats: int
    warm_up: int
    threads: int
    bf16: bool
    seed: int
    json: Path | None


@dataclass(frozen=True)
class Data:
    """Token rows by stream, and the tokenizer that the model is made for."""

    tokenizer: Any
    rows: dict[str, list[Any]]
    name: str

    def model(self, seed: int) -> Any:
        """The shape of recipes/tofu_tiny."""
        return create_model(self.tokenizer, hidden_size=256, num_layers=3, num_heads=4, seed=seed)


def load_data(settings: Settings) -> Data:
    """forget10 and retain90 of TOFU, or of the built-in benchmark in the same size."""
    texts, sets = [], {}
    for stream, split in zip(STREAMS, ("forget10", "retain90"), strict=True):
        if settings.tofu is None:
            rows = fictional.rows(split, fictional.FictionalSpec(authors=settings.authors, holdout_authors=1))
            pairs = [(row["question"], row["answer"]) for row in rows]
        else:
            data = load_stream(StreamSpec(name=split), root=str(settings.tofu), name=stream)
            pairs = list(zip(data["prompt"], data["completion"], strict=True))
        sets[stream] = [
            {"example_id": f"{stream}{i}", "prompt": q, "completion": a} for i, (q, a) in enumerate(pairs)
        ]
        texts += [text for pair in pairs for text in pair]
    tokenizer = train_tokenizer(texts, vocab_size=4096)
    template = Template.for_tokenizer(tokenizer)
    rows_of = {s: tokenize_stream(data, tokenizer, template, max_length=512).rows for s, data in sets.items()}
    return Data(tokenizer, rows_of, "TOFU" if settings.tofu else f"fictional, {settings.authors} authors")


# ---- The two variants --------------------------------------------------------------------------------------


def batches(mix: StreamMix, settings: Settings, strategy: str) -> Iterator[list[Any]]:
    """The items of one step after the other, without end."""
    order = EpochOrder(
        mix, micro_batch_size=settings.batch, num_micro_batches=1, strategy=strategy, seed=settings.seed
    )
    for epoch in count():
        order.set_epoch(epoch)
        chosen = list(order)
        for start in range(0, len(chosen), settings.batch):
            yield [mix[n] for n in chosen[start : start + settings.batch]]


class Shipped:
    """The step as `UnlearnTrainer` runs it."""

    strategy = "random"

    def __init__(self, model: Any, data: Data, settings: Settings) -> None:
        self.model = model
        self.collate = StreamCollator(STREAMS, pad_id=data.tokenizer.pad_token_id, packed=packs(model))
        start = time.perf_counter()
        with autocast(settings):
            scores = reference.score_rows(
                model, data.rows["forget"], device="cpu", pad_id=self.collate.pad_id
            )
        for row, values in zip(data.rows["forget"], scores, strict=True):
            row["reference_logps"] = values
        self.seconds_before = time.perf_counter() - start

    def loss(self, items: list[Any]) -> Tensor:
        """NPO + retain NLL through the library's objects."""
        batch = self.collate(items)
        counts = as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS)
        return OBJECTIVE(Step(self.model, batch, counts, reference.CachedLogps()), batch).loss

    def padded(self, items: list[Any]) -> int:
        """Positions that the policy processes, padding included."""
        batch = self.collate(items)
        return (packed_batch(batch) or fuse(batch))["input_ids"].numel()


class Plain:
    """The step as a researcher would write it."""

    strategy = "random"

    def __init__(self, model: Any, data: Data, settings: Settings) -> None:
        self.model = model
        self.pad_id = data.tokenizer.pad_token_id
        start = time.perf_counter()
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.seconds_before = time.perf_counter() - start

    def loss(self, items: list[Any]) -> Tensor:
        """NPO + retain NLL."""
        forget, retain = (self.pad(rows) for rows in rows_of(items))
        forget_logps = self.logps(self.model, forget).sum(1)
        with torch.no_grad():
            reference_logps = self.logps(self.reference, forget).sum(1)
        npo = -2 / BETA * logsigmoid(-BETA * (forget_logps - reference_logps)).mean()
        retain_tokens = (retain["labels"][:, 1:] != IGNORE).sum()
        return npo - self.logps(self.model, retain).sum() / retain_tokens

    def pad(self, rows: list[Any]) -> dict[str, Tensor]:
        """Padded to the longest row of the batch."""
        tensors = {
            key: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=fill
            )
            for key, fill in (("input_ids", self.pad_id), ("labels", IGNORE))
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(tensors["labels"].shape[1]) < lengths[:, None]
        return {**tensors, "attention_mask": mask.long()}

    def logps(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Log-prob of every label, [B, T - 1], 0 where there is none."""
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        labels = batch["labels"][:, 1:]
        logps: Tensor = (
            logits[:, :-1].float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        )
        return logps * (labels != IGNORE)

    def padded(self, items: list[Any]) -> int:
        """Positions that the policy processes, padding included."""
        return sum(self.pad(rows)["input_ids"].numel() for rows in rows_of(items))


VARIANTS: dict[str, type[Shipped] | type[Plain]] = {"shipped": Shipped, "plain": Plain}


def rows_of(items: list[Any]) -> tuple[list[Any], list[Any]]:
    """The forget rows and the retain rows of a step."""
    forget, retain = ([row for item in items for row in item[s]] for s in STREAMS)
    return forget, retain


def autocast(settings: Settings) -> torch.autocast:
    """bf16 where --bf16 asks for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """The trainer's default: fused AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)


def train_step(
    variant: Shipped | Plain, optimizer: torch.optim.Optimizer, items: list[Any], bf16: Any
) -> float:
    """One optimizer step; the loss before it."""
    with bf16:
        loss = variant.loss(items)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
