"""What the records say example by example: answers side by side, truth ratios, broken answers.

Every score is computed by `unlearnkit.evaluation.metrics`; nothing is defined here a second time.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics.fluency import repeated_share
from unlearnkit.evaluation.metrics.rouge import unicode_tokens
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    CONTINUATION,
    CONTINUE_TEXT,
    GENERATE_ANSWER,
    GENERATION,
    select,
)
from unlearnkit.reporting.story import dataset_name
from unlearnkit.reporting.views import ROLES, EvalView, RunView

REPEATING = 0.5
"""From this share of repeated 4-grams on, an answer counts as repeating itself."""
MOST_SHOWN = 600
"""Of a text that was continued at most so many characters are shown before the continuation."""


#: Characters that are compared where words tell nothing.
_STRETCH = 8


def broken_answers(
    view: EvalView, dataset: str = "forget", *, probe: str = GENERATE_ANSWER, field: str = GENERATION
) -> float:
    """Share of the generated answers that have no word or repeat themselves; NaN where there are none."""
    texts = [text for text in select(view.records, probe, dataset, field)["text"] if isinstance(text, str)]
    if not texts:
        return math.nan
    return sum(not unicode_tokens(text) or _repeats(text) for text in texts) / len(texts)


def _repeats(text: str) -> bool:
    """Whether a text repeats itself by words, or by characters where it has no spaces ("ItItItIt")."""
    stretches = [text[i : i + _STRETCH] for i in range(len(text) - _STRETCH + 1)]
    alike = 1 - len(set(stretches)) / len(stretches) if stretches else 0.0
    return repeated_share(text) > REPEATING or alike > REPEATING


def truth_ratio_samples(run: RunView) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Truth ratios of the forget set for each role, as forget quality had them, and a note if unknown.

    The definition is recognised by its KS distance: of the possible ones, the one that gives the recorded D.
    """
    quality = run.main.metrics.get("forget_quality")
    recorded = quality.extra.get("statistic") if quality else None
    first: dict[str, NDArray[np.float64]] | None = None
    for wrong, correct in itertools.product(("geometric", "arithmetic"), ("paraphrased_answer", "answer")):
        options: dict[str, Any] = {"wrong": wrong, "correct": correct}
        tables = {
            role: metrics.truth_ratios(view.records, "forget", **options)["ratio"].dropna()
            for role, view in run.evaluations.items()
        }
        samples = {role: table.to_numpy(dtype=np.float64) for role, table in tables.items() if len(table)}
        first = samples if first is None else first
        if recorded is None or "unlearned" not in samples or "retain" not in samples:
            return samples, ""
        both = tables["unlearned"].index.intersection(tables["retain"].index)
        here = metrics.formulas.ks_test(tables["unlearned"].loc[both], tables["retain"].loc[both]).statistic
        if abs(here - recorded) < 1e-6:
            return samples, ""
    return first or {}, (
        "These curves do not give the recorded D: the test was made with other records of the retain "
        "model or with another definition of the truth ratio."
    )


def answer_rows(run: RunView) -> list[dict[str, Any]]:
    """One entry per example: question, right answer, and each role's answer with ROUGE-L and probability.

    `change` is ROUGE-L after minus before (probability where nothing was generated); None if missing.
    """
    roles = [role for role in ROLES if role in run.evaluations]
    rows: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(str(name) for name in run.main.records["dataset"]):
        scores = {role: _scores(run.evaluations[role], dataset) for role in roles}
        for example_id, question in _questions(run.main, dataset).items():
            answers = {role: scores[role].get(example_id) for role in roles}
            rows.append(
                {
                    "id": example_id,
                    "dataset": dataset,
                    "set": dataset_name(dataset),
                    **question,
                    "answers": answers,
                    "change": _change(answers),
                }
            )
    return rows


def _questions(view: EvalView, dataset: str) -> dict[str, dict[str, str]]:
    """Example id -> question and right answer, in the order of the records.

    Of a text that was continued the end of what was shown, and the true continuation.
    """
    records = view.records
    rows = records[
        (records["dataset"] == dataset) & records["field"].isin([ANSWER, GENERATION, CONTINUATION])
    ]
    rows = rows[rows["probe"].isin([ANSWER_LIKELIHOOD, GENERATE_ANSWER, CONTINUE_TEXT])]
    continued = rows[rows["probe"] == CONTINUE_TEXT]
    if len(continued) and GENERATE_ANSWER not in set(rows["probe"]):
        rows = continued
    rows = rows.drop_duplicates("example_id")
    return {
        str(key): {"question": _end(prompt) if probe == CONTINUE_TEXT else _text(prompt), "gold": _text(gold)}
        for key, probe, prompt, gold in zip(
            rows["example_id"], rows["probe"], rows["prompt"], rows["reference_text"], strict=True
        )
    }


def _scores(view: EvalView, dataset: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def entry(key: Any) -> dict[str, Any]:
        return found.setdefault(str(key), {"text": None, "rouge": None, "probability": None})

    generated = select(view.records, GENERATE_ANSWER, dataset, GENERATION)
    for key, text in zip(generated["example_id"], generated["text"], strict=True):
        entry(key)["text"] = text if isinstance(text, str) else None
    for name, result in (
        ("rouge", metrics.rouge(view.records, dataset=dataset)),
        ("probability", metrics.probability(view.records, dataset=dataset)),
    ):
        values: pd.Series[float] = (
            pd.Series(dtype="float64") if result.per_example is None else result.per_example
        )
        for key, value in values.items():
            entry(key)[name] = None if math.isnan(value) else round(float(value), 4)
    for key in select(view.records, ANSWER_LIKELIHOOD, dataset, ANSWER)["example_id"]:
        entry(key)
    if generated.empty:  # a document to go on with, in place of a question
        continued = select(view.records, CONTINUE_TEXT, dataset, CONTINUATION)
        for key, gold, text in zip(
            continued["example_id"], continued["reference_text"], continued["text"], strict=True
        ):
            if isinstance(text, str) and isinstance(gold, str):
                value = metrics.rouge_l(gold, text)
                entry(key).update(text=text, rouge=None if math.isnan(value) else round(value, 4))
    return found


def _change(answers: dict[str, dict[str, Any] | None]) -> float | None:
    before, after = answers.get("target"), answers.get("unlearned")
    if before and after:
        for name in ("rouge", "probability"):
            if before[name] is not None and after[name] is not None:
                return round(float(after[name] - before[name]), 4)
    return None


def _end(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= MOST_SHOWN else f"… {text[-MOST_SHOWN:]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
