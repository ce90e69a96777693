"""The metrics against numbers published with per-example logs (Llama-2-7B-chat on TOFU, 300 examples a set).

Without the 1e-10 guards the numbers are the original aggregation's, to 1e-12; the guards move them by
up to 1e-8.
"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
from helpers_metrics import PUBLISHED_SETS, published_log, published_records

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics import formulas

GUARDS = [pytest.param(0.0, 1e-12, id="bare"), pytest.param(1e-10, 1e-7, id="guarded")]
PARTS = {
    "retain_rouge": 0.9856545937933034,
    "retain_probability": 0.9895272273969067,
    "retain_truth_ratio": 0.47469858801063747,
    "real_authors_rouge": 0.9329999999999999,
    "real_authors_probability_normalised": 0.45548207783762884,
    "real_authors_truth_ratio": 0.5962289157077105,
    "world_facts_rouge": 0.8824786324786325,
    "world_facts_probability_normalised": 0.4185618075594898,
    "world_facts_truth_ratio": 0.5390328416393139,
}
UTILITY = {"full": 0.6226773637427151, "retain90": 0.613744995233942}
FORGET_PROBABILITY = {"full": 0.9909385566403208, "retain90": 0.1475628122566954}
FORGET_TRUTH_RATIO = {"full": 0.5159854212808593, "retain90": 0.6740192657877031}


@functools.cache
def records(name: str) -> pd.DataFrame:
    return published_records(name)


@pytest.mark.parametrize("name", ["full", "retain90"])
@pytest.mark.parametrize(("guard", "tolerance"), GUARDS)
def test_model_utility(name: str, guard: float, tolerance: float) -> None:
    result = metrics.model_utility(records(name), guard=guard)
    assert result.value == pytest.approx(UTILITY[name], abs=tolerance)
    assert result.n == 517
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.value < result.high


@pytest.mark.parametrize(("guard", "tolerance"), GUARDS)
def test_nine_parts(guard: float, tolerance: float) -> None:
    parts = metrics.model_utility(records("full"), guard=guard).extra["parts"]
    assert parts == pytest.approx(PARTS, abs=tolerance)
    assert set(parts) == set(metrics.PARTS)


@pytest.mark.parametrize("name", ["full", "retain90"])
@pytest.mark.parametrize(("guard", "tolerance"), GUARDS)
def test_forget_set(name: str, guard: float, tolerance: float) -> None:
    probability = metrics.probability(records(name), dataset="forget")
    assert probability.value == pytest.approx(FORGET_PROBABILITY[name], abs=1e-12)
    ratio = metrics.truth_ratio(records(name), dataset="forget", guard=guard)
    assert ratio.value == pytest.approx(FORGET_TRUTH_RATIO[name], abs=tolerance)
    assert ratio.n == 300


@pytest.mark.parametrize(("guard", "tolerance"), GUARDS)
def test_forget_quality(guard: float, tolerance: float) -> None:
    result = metrics.forget_quality(records("full"), retain=records("retain90"), guard=guard)
    assert result.value == pytest.approx(1.834066410994743e-21, rel=tolerance)
    assert result.extra["statistic"] == pytest.approx(0.39666666666666667, abs=1e-15)
    assert result.extra["log10_p"] == pytest.approx(np.log10(1.834066410994743e-21), abs=1e-10)
    assert result.extra["statistic_low"] < 0.3966 < result.extra["statistic_high"]
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.value < result.high < 0.01


@pytest.mark.parametrize("name", ["full", "retain90"])
def test_rouge_recall_of_every_generation(name: str) -> None:
    """The logs hold the ROUGE-L recall of each generation: ours is the same number for all 817."""
    log = published_log(name)
    for dataset, key in PUBLISHED_SETS.items():
        scores = metrics.rouge(records(name), dataset=dataset).per_example
        assert scores is not None
        expected = {f"{int(index):04d}": value for index, value in log[key]["rougeL_recall"].items()}
        assert scores.to_dict() == expected


def test_bare_formulas_give_the_published_numbers() -> None:
    """The array-level functions on the arrays of the log, with no records in between."""
    log = published_log("full")["eval_log.json"]
    order = list(log["avg_gt_loss"])
    correct = formulas.probability([log["avg_paraphrased_loss"][index] for index in order])
    wrong = np.array([log["average_perturb_loss"][index] for index in order])
    ratio = formulas.truth_ratio(correct, wrong, guard=0)
    assert formulas.true_better(ratio).mean() == pytest.approx(PARTS["retain_truth_ratio"], abs=1e-12)
    assert float(formulas.harmonic_mean(list(PARTS.values()))) == pytest.approx(UTILITY["full"], abs=1e-12)
