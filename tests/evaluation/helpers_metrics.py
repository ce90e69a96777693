"""Building records by hand, and from the published TOFU logs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from unlearnkit.evaluation.records import new_records

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_SETS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}


def answer(
    example_id: str,
    logps: Sequence[float],
    *,
    dataset: str = "forget",
    field: str = "answer",
    index: int = 0,
    hits: Sequence[bool] | None = None,
    eos: bool | None = None,
) -> dict[str, Any]:
    """One likelihood record whose tokens have these log-probs; the last is an EOS unless `eos` is False."""
    n = len(logps)
    return {
        "probe": "answer_likelihood",
        "dataset": dataset,
        "example_id": example_id,
        "field": field,
        "index": index,
        "num_tokens": n,
        "logps": list(logps),
        "hits": [True] * n if hits is None else list(hits),
        "means": [-1.0] * n,
        "variances": [0.5] * n,
        "ends_with_eos": bool(n) if eos is None else eos,
    }


def example(
    example_id: str,
    correct: Sequence[float],
    wrong: Sequence[Sequence[float]] = (),
    *,
    paraphrase: Sequence[float] | None = None,
    dataset: str = "forget",
) -> list[dict[str, Any]]:
    """The likelihood records of one example."""
    rows = [answer(example_id, correct, dataset=dataset)]
    if paraphrase is not None:
        rows.append(answer(example_id, paraphrase, dataset=dataset, field="paraphrased_answer"))
    rows += [
        answer(example_id, logps, dataset=dataset, field="perturbed_answer", index=index)
        for index, logps in enumerate(wrong)
    ]
    return rows


def generation(
    example_id: str, reference: str, text: str | None, *, dataset: str = "forget"
) -> dict[str, Any]:
    """One generation record."""
    return {
        "probe": "generate_answer",
        "dataset": dataset,
        "example_id": example_id,
        "field": "generation",
        "reference_text": reference,
        "text": text,
    }


def sampled(
    example_id: str, reference: str, texts: Sequence[str | None], *, dataset: str = "forget"
) -> list[dict[str, Any]]:
    """The sampled answers of one example."""
    row = generation(example_id, reference, None, dataset=dataset)
    row |= {"probe": "sample_answer", "field": "sample"}
    return [{**row, "index": index, "text": text} for index, text in enumerate(texts)]


def continuation(
    example_id: str,
    reference: Sequence[int],
    tokens: Sequence[int],
    *,
    text: str | None = None,
    scored: bool = True,
    probe: str = "continue_text",
    dataset: str = "verbmem",
) -> dict[str, Any]:
    """One continuation (or generation) of these tokens; its texts spell the ids."""
    return {
        "probe": probe,
        "dataset": dataset,
        "example_id": example_id,
        "field": "continuation" if probe == "continue_text" else "generation",
        "reference_text": " ".join(map(str, reference)),
        "text": (" ".join(map(str, tokens)) if text is None else text) if scored else None,
        "num_tokens": len(tokens),
        "reference_tokens": list(reference),
        "tokens": list(tokens),
    }


def judged(example_id: str, logps: Sequence[float], *, dataset: str = "forget") -> dict[str, Any]:
    """A generation whose tokens have these log-probs under the target model."""
    return {
        **answer(example_id, logps, dataset=dataset, field="generation"),
        "probe": "judged_likelihood",
        "text": "said" if logps else "",
    }


def published_log(name: str) -> dict[str, Any]:
    """The published per-example log "full" or "retain90"; skips the test where the files are not at hand."""
    default = ROOT.parent / "shared" / "data" / "tofu_published"
    path = Path(os.environ.get("UNLEARNKIT_TOFU_PUBLISHED", default)) / f"llama2_7b_{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent; point UNLEARNKIT_TOFU_PUBLISHED to the folder of published TOFU logs")
    log: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return log


def published_records(name: str) -> pd.DataFrame:
    """The published log as records: one token an answer, whose log-prob is minus the published mean NLL.

    For real authors and world facts the log scored the answer itself a second time, in another batch, as the
    paraphrase; its loss differs by rounding, and the published truth ratios use that one.
    """
    log = published_log(name)
    rows = []
    for dataset, key in PUBLISHED_SETS.items():
        part = log[key]
        for index, loss in part["avg_gt_loss"].items():
            paraphrase = [-part["avg_paraphrased_loss"][index]]
            wrong = [[-value] for value in part["average_perturb_loss"][index]]
            rows += example(f"{int(index):04d}", [-loss], wrong, paraphrase=paraphrase, dataset=dataset)
            _, text, reference = part["generated_text"][index]
            rows.append(generation(f"{int(index):04d}", reference, text, dataset=dataset))
    return new_records(rows)
