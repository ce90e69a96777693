"""One plain line for each term that a report uses."""

from __future__ import annotations

from collections.abc import Iterable

_TERMS = {
    "target model": "the model before unlearning; it learned the examples that must go.",
    "unlearned model": "the model after unlearning.",
    "retain model": "the gold standard: trained in the same way as the target model, but without the "
    "forget set.",
    "forget quality": "a p-value between 0 and 1. It asks whether the truth ratios of the unlearned "
    "model could come from "
    "a model that never saw the forget set (two-sided Kolmogorov-Smirnov test). Above 0.05 no "
    "difference was found.",
    "log10 p": "the same as a power of ten: −2 means p = 0.01. For very small p it is the only "
    "readable form.",
    "D": "the largest vertical distance between the two truth-ratio curves: 0 = alike, 1 = fully "
    "apart. Unlike p, it does "
    "not depend on how many examples there are.",
    "truth ratio": "how likely wrong answers are, divided by how likely the (paraphrased) right answer "
    "is. Near 0 the "
    "model knows the right answer; at 1 it cannot tell right from wrong.",
    "truth ratio score": "the ratio r turned into a score. Forget set: mean of min(r, 1/r), high = "
    "does not know. Other "
    "sets: mean of max(0, 1 − r), high = knows.",
    "model utility": "what is left of the other abilities, from 0 to 1: the harmonic mean of nine "
    "scores (probability, "
    "ROUGE-L and truth ratio on the retain set, real authors and world facts). One score of 0 makes it 0.",
    "probability": "how likely the model finds the right answer, per token (geometric mean over the tokens).",
    "normalised probability": "the probability of the right answer divided by the sum over right and "
    "wrong answers.",
    "ROUGE-L": "the share of the right answer's words that the generated answer repeats in the same "
    "order (recall).",
    "repetition": "the share of four-word sequences that an answer says more than once; near 1 it is babble.",
    "interval": "95 % bootstrap interval over examples: where the number would lie for other examples "
    "of the same kind.",
    "n": "the number of examples behind a number. Examples that could not be scored are counted apart, "
    "never averaged.",
    "fingerprint": "a short hash of the content; two equal fingerprints mean the same weights or the "
    "same data.",
}
_NEEDED_BY = {
    "forget_quality": ("forget quality", "log10 p", "D", "truth ratio"),
    "model_utility": ("model utility",),
    "normalised": ("normalised probability",),
    "truth_ratio": ("truth ratio", "truth ratio score"),
    "probability": ("probability",),
    "rouge": ("ROUGE-L",),
    "repetition": ("repetition",),
}
_ALWAYS = ("target model", "unlearned model", "retain model", "interval", "n", "fingerprint")


def glossary(metric_names: Iterable[str]) -> list[tuple[str, str]]:
    """Terms with their lines, in a fixed order, for the metrics that a report shows."""
    needed = set(_ALWAYS)
    for name in metric_names:
        for part, terms in _NEEDED_BY.items():
            if part in name:
                needed.update(terms)
    return [(term, line) for term, line in _TERMS.items() if term in needed]
