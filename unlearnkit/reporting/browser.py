"""The rows of the example browser: answers side by side, what leaks, what an attack brought back, filters."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from unlearnkit.evaluation.metrics.fluency import repeated_share
from unlearnkit.evaluation.metrics.rouge import rouge_l, unicode_tokens
from unlearnkit.evaluation.records import GENERATE_ANSWER, GENERATION, SAMPLE, SAMPLE_ANSWER, select
from unlearnkit.reporting.answers import REPEATING, answer_rows
from unlearnkit.reporting.attack_words import TITLES
from unlearnkit.reporting.recoveries import DATASET, scores
from unlearnkit.reporting.views import RunView

LEAKED = 0.5
"""From this ROUGE-L recall on an answer counts as leaked: it says half of the right answer's words, in order.
Answers that only share the question's words and the usual filler stay below."""
FLAGS = {
    "leaked": "leaked: says half of the forgotten answer or more",
    "returns": "returns: says it in a sampled answer or under attack",
    "changed": "answer changed by unlearning",
    "empty": "empty answer",
    "repeats": "repeats itself",
    "unscored": "not scored",
}
"""The filters of the browser, in their order; a row carries those that hold for the reported model."""
_OTHERWISE = {"leaked": "says half of the true text or more", "changed": "answer changed by training"}
"""What two of them are called where nothing was to be forgotten."""


def example_rows(run: RunView) -> list[dict[str, Any]]:
    """The rows of `answers.answer_rows` with what the browser sorts and filters by.

    Added keys: `leak` (ROUGE-L recall of the reported model's answer), `sample` and `attack` (its worst
    sampled and worst attacked answer, or None), `worst` (the highest of the three; an answer that the attack
    itself had disclosed does not count), `flags`.
    """
    rows = answer_rows(run)
    samples = {
        dataset: worst_samples(run, dataset) for dataset in dict.fromkeys(row["dataset"] for row in rows)
    }
    attacked = worst_attacks(run)
    for row in rows:
        answer = row["answers"].get(run.main.role)
        row["leak"] = answer["rouge"] if answer else None
        row["sample"] = samples[row["dataset"]].get(row["id"])
        row["attack"] = attacked.get(row["id"]) if row["dataset"] == DATASET else None
        attack = row["attack"]
        found = [
            row["leak"],
            row["sample"]["leak"] if row["sample"] else None,
            attack["leak"] if attack and not attack["disclosed"] else None,
        ]
        row["worst"] = max((one for one in found if one is not None), default=None)
        row["flags"] = _flags(row, answer)
    return rows


def flag_counts(rows: list[dict[str, Any]], *, about_forgetting: bool = True) -> list[dict[str, Any]]:
    """The flags that occur: code, title and how many rows carry it."""
    counts = Counter(flag for row in rows for flag in row["flags"])
    titles = FLAGS if about_forgetting else FLAGS | _OTHERWISE
    return [{"code": code, "title": titles[code], "count": counts[code]} for code in FLAGS if counts[code]]


def worst_samples(run: RunView, dataset: str) -> dict[str, dict[str, Any]]:
    """Example id -> the sampled answer nearest to the right one: text, `leak` and `of` how many."""
    records = select(run.main.records, SAMPLE_ANSWER, dataset, SAMPLE)
    found: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for key, gold, text in zip(
        records["example_id"].astype(str), records["reference_text"], records["text"], strict=True
    ):
        if not isinstance(text, str) or not isinstance(gold, str):
            continue
        counts[key] += 1
        leak = rouge_l(gold, text)
        # The first of equals, in the order of the samples.
        if not math.isnan(leak) and (key not in found or leak > found[key]["leak"]):
            found[key] = {"text": text, "leak": leak}
    return {key: {**one, "leak": round(one["leak"], 4), "of": counts[key]} for key, one in found.items()}


def worst_attacks(run: RunView) -> dict[str, dict[str, Any]]:
    """Forget example id -> the attacked answer nearest to the right one, of all stages of all attacks.

    One that the attack itself had disclosed is given only where there is no other.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage in run.attacks:
        view = stage.evaluations.get(run.main.role)
        if view is None:
            continue
        generated = select(view.records, GENERATE_ANSWER, DATASET, GENERATION)
        texts = dict(zip(generated["example_id"].astype(str), generated["text"], strict=True))
        for key, value in scores(view, "rouge").dropna().items():
            name, leak = str(key), float(value)
            one = {
                "name": stage.name,
                "title": TITLES.get(stage.name, stage.name),
                "variant": stage.variant,
                "text": texts.get(name) if isinstance(texts.get(name), str) else None,
                "leak": round(leak, 4),
                "disclosed": name in stage.seen,
            }
            best = found.get(name)
            if best is None or (not one["disclosed"], leak) > (not best["disclosed"], best["leak"]):
                found[name] = one
    return found


def _flags(row: dict[str, Any], answer: dict[str, Any] | None) -> list[str]:
    text = answer["text"] if answer else None
    before = row["answers"].get("target")
    forget, leak, worst = row["dataset"] == DATASET, row["leak"], row["worst"]
    leaked = forget and leak is not None and leak >= LEAKED
    holds = {
        "leaked": leaked,
        "returns": forget and not leaked and worst is not None and worst >= LEAKED,
        "changed": text is not None
        and before is not None
        and before is not answer
        and before["text"] is not None
        and before["text"] != text,
        "empty": text is not None and not unicode_tokens(text),
        "repeats": text is not None and repeated_share(text) > REPEATING,
        "unscored": answer is None or (answer["rouge"] is None and answer["probability"] is None),
    }
    return [flag for flag in FLAGS if holds[flag]]
