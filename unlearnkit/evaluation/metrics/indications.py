"""Indications that need no retain model: what the unlearned model's own answers suggest.

They are weaker evidence than a comparison with a retain model, since nobody knows what a model that never saw
the forget set would score; every result says so (`MetricResult.weaker`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearnkit.evaluation.metrics.likelihood import field_nll, wrong_nlls
from unlearnkit.evaluation.metrics.result import MetricResult, mean_result, not_measured
from unlearnkit.evaluation.records import ANSWER, PARAPHRASED_ANSWER, Records

# Nats per token; log-probs are float32, so that equal answers may differ by this much.
TIE = 1e-6


def paraphrase_preference(
    run: Records, *, dataset: str, retain: Records | None = None, seed: int = 0
) -> MetricResult:
    """Share of the examples whose paraphrased true answer is likelier than the false ones, in [0, 1].

    "Likelier" means a truth ratio r < 1 (arXiv 2401.06121, eq. 1): a mean NLL per token below the mean of the
    perturbed answers' (their geometric mean probability). Ties, within 1e-6 nats, count half, so that 0.5 is
    no preference. A model that knows the forget set is near 1, and neither wording need have been trained on.
    But the value is not 0.5 for every ignorant model: paraphrases and perturbations may differ in style.

    Examples without a paraphrase or without perturbed answers are unscored. `retain` is not used.

    Args:
        run: the model's records.
        dataset: the suite's name of the data.
        retain: not used; every metric takes it.
        seed: draws the bootstrap interval.
    """
    variant = "share of examples with truth ratio < 1 (paraphrase over geometric mean), ties half; 0.5 = none"
    name = "paraphrase_preference"
    paraphrased = field_nll(run, dataset, PARAPHRASED_ANSWER)
    wrong = wrong_nlls(run, dataset)
    if paraphrased.empty or not wrong:
        lacking = "paraphrased" if paraphrased.empty else "perturbed"
        why = f"no {lacking} answers in the data for {dataset!r}"
        result = not_measured(name, why, variant=variant)
        result.weaker = True
        return result
    ids = sorted({*field_nll(run, dataset, ANSWER).index, *paraphrased.index, *wrong})
    margin = [
        float(wrong[key].mean() - paraphrased[key]) if key in wrong and key in paraphrased.index else np.nan
        for key in ids
    ]
    margin_N = np.asarray(margin, dtype=np.float64)
    scores_N = np.where(np.abs(margin_N) <= TIE, 0.5, (margin_N > 0).astype(np.float64))
    scores_N[np.isnan(margin_N)] = np.nan
    without = sum(key not in wrong or key not in paraphrased.index for key in ids)
    note = f"{without} of {len(ids)} examples have no paraphrased or no perturbed answers" if without else ""
    result = mean_result(name, pd.Series(scores_N, index=ids), variant=variant, note=note, seed=seed)
    result.weaker = True
    return result
