"""Verbatim extraction beyond a control: what is continued that a model without the texts cannot guess.

The goldfish paper (arXiv 2406.10209) compares with a control model that was trained without the documents,
since the floor of ROUGE-L is not 0. Here the control is the retain model, on each example by itself.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import pandas as pd

from unlearnkit.evaluation.metrics.paired import no_reference, paired_difference
from unlearnkit.evaluation.metrics.result import MetricResult, check_choice, not_measured
from unlearnkit.evaluation.metrics.verbatim import (
    TextProbe,
    cut_note,
    nothing_said,
    said_records,
    verbatim_exact,
    verbatim_rouge,
)
from unlearnkit.evaluation.records import Records

Score: TypeAlias = Literal["exact", "rouge"]


def verbatim_excess(
    run: Records,
    *,
    dataset: str,
    retain: Records | None = None,
    score: Score = "exact",
    probe: TextProbe = "continue_text",
    seed: int = 0,
) -> MetricResult:
    """Mean over examples of this model's score minus the retain model's on the same example, in [-1, 1].

    0: no more of the texts is continued than by a model that never saw them. `extra` has both means.

    Args:
        retain: the records of a model that never saw the texts (a control).
        score: `exact` as `verbatim_exact`, or `rouge` as `verbatim_rouge` with its defaults.
        probe: see `verbatim_rouge`.
        seed: draws the bootstrap interval of the differences.

    Raises:
        RecordsError: the two runs do not cover the same examples.
        RecipeError: an option has an unknown value.
    """
    check_choice("score", score, ("exact", "rouge"))
    what = "whole continuations (1 or 0)" if score == "exact" else "ROUGE-L recall of the continuation"
    name, variant = "verbatim_excess", f"{what}, minus the retain model's on the same example"
    records = said_records(run, dataset, probe)
    if records.empty:
        return not_measured(name, nothing_said(dataset, probe), variant=variant)
    if retain is None:
        return no_reference(name, variant=variant)
    other = said_records(retain, dataset, probe)
    if other.empty:
        why = f"the retain model's evaluation has {nothing_said(dataset, probe)}"
        return not_measured(name, why, variant=variant)

    def scored(table: Records) -> pd.Series[float]:
        result = (
            verbatim_exact(table, dataset=dataset, probe=probe)
            if score == "exact"
            else verbatim_rouge(table, dataset=dataset, probe=probe)
        )
        assert result.per_example is not None  # there are records
        return result.per_example

    note = "; ".join(filter(None, (cut_note(records), _other_texts(records, other))))
    return paired_difference(name, scored(run), scored(retain), variant=variant, note=note, seed=seed)


def _other_texts(records: pd.DataFrame, other: pd.DataFrame) -> str:
    """Says how many true continuations are not the same for both models (another tokenizer, or fewer
    positions)."""
    theirs = dict(zip(other["example_id"], other["reference_text"], strict=True))
    pairs = zip(records["example_id"], records["reference_text"], strict=True)
    count = sum(theirs.get(key, text) != text for key, text in pairs)
    return f"{count} of {len(records)} texts were split elsewhere for the retain model" if count else ""
