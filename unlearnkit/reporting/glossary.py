"""One plain line for each term that a report uses."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unlearnkit.reporting.views import Metric

_TERMS = {
    "target model": "the model before unlearning; it learned the examples that must go.",
    "unlearned model": "the model after unlearning.",
    "retain model": "the gold standard: trained in the same way as the target model, but without the "
    "forget set.",
    "forget set, retain set, holdout set": "the examples that must go, those that must stay, and examples of "
    "the same kind that no model was trained on.",
    "assistant": "a small network that was trained to remember the forget set and to know nothing of the "
    "rest; what it predicts is taken away from what the target model predicts.",
    "alpha": "how much the other networks count that are served beside the target model. It is set when the "
    "model is served; another alpha needs no training.",
    "filter": "tokens that the first network itself finds far less likely than its first choice are left out "
    "of the answers, and the other networks have no say about them.",
    "distillation": "training one model to answer as several networks do that are served together.",
    "forget quality": "a p-value between 0 and 1. It asks whether the truth ratios of the unlearned model "
    "could come from a model that never saw the forget set (two-sided Kolmogorov-Smirnov test). Above 0.05 "
    "no "
    "difference was found.",
    "log10 p": "the same as a power of ten: −2 means p = 0.01. For very small p it is the only readable "
    "form.",
    "D": "the largest vertical distance between the two truth-ratio curves: 0 = alike, 1 = fully apart. "
    "Unlike p, it does not depend on how many examples there are.",
    "truth ratio": "how likely wrong answers are, divided by how likely the (paraphrased) right answer is. "
    "Near 0 the model knows the right answer; at 1 it cannot tell right from wrong.",
    "truth ratio score": "the ratio r turned into a score. Forget set: mean of min(r, 1/r), high = does not "
    "know. Other sets: mean of max(0, 1 − r), high = knows.",
    "model utility": "what is left of the other abilities, from 0 to 1: the harmonic mean of nine scores "
    "(probability, ROUGE-L and truth ratio on the retain set, real authors and world facts). One score of 0 "
    "makes it 0.",
    "probability": "how likely the model finds the right answer, per token (geometric mean over the tokens).",
    "normalised probability": "the probability of the right answer divided by the sum over right and wrong "
    "answers.",
    "ROUGE-L": "the share of the right answer's words that the generated answer repeats in the same order "
    "(recall).",
    "exact memorisation": "the share of the right answer's words (tokens) that the model would guess next if "
    "it were shown all the words before: 1 = it knows the answer by heart.",
    "extraction strength": "how little of the answer one must show for the model to complete the rest "
    "without "
    "a fault: 0 = never, near 1 = from the first words on.",
    "verbatim extraction": "the model is shown the beginning of a document and goes on by itself; measured "
    "is "
    "how far it repeats the true text word for word: the overlap, the share repeated whole, the longest "
    "piece in common, and where it first departs.",
    "beyond the retain model": "of each text what the model continues, minus what the retain model, which "
    "never saw the text, continues of the same: 0 = no more than can be guessed.",
    "reference": "the model that is compared with: one that was trained plainly on the same data, without "
    "anything being left out or unlearned.",
    "mention": "a name or a pattern of the list of terms that stands in an answer, as a whole word.",
    "mention rate": "the share of the generated answers with at least one mention.",
    "low-risk tokens": "the words (tokens) of the right answer that belong to no mention. How likely they "
    "are to the model, given questions that contain a term, shows whether it understands what it must not "
    "say.",
    "log-prob": "how likely the model finds a text, as a natural logarithm (nats) per token: 0 = certain, "
    "−1 = 37 %, −2 = 14 %.",
    "VerbMem": "verbatim memory (MUSE): the overlap of the model's continuation with the true continuation "
    "of "
    "the texts to forget.",
    "KnowMem": "knowledge memory (MUSE): how well questions about the texts are answered; low is wanted for "
    "the texts to forget, high for those to keep.",
    "PrivLeak": "membership compared with the retain model, in per cent (MUSE): 0 = as for a model that "
    "never "
    "saw the texts, −100 = fully memorised, positive = pushed away so far that it stands out again.",
    "membership attack": "an attempt to find out, from how familiar a text looks to the model, whether it "
    "was "
    "in the training data. Who succeeds knows that a person's data was used, even if the model says "
    "nothing of it.",
    "AUC": "how well a membership attack tells the forget set from a holdout set: the chance that a holdout "
    "example looks less familiar than a forget example. 0.5 = guessing, 1 = always right; far below 0.5 the "
    "forget set stands out as unusually unfamiliar.",
    "TPR at FPR": "the share of forget examples that an attacker recognises (hits) if only 1 % or 0.1 % of "
    "the holdout examples may be accused wrongly (false alarms). It shows the few examples that give "
    "themselves away although the average does not.",
    "loss attack": "a membership attack that goes by how well the model predicts the text: familiar text is "
    "predicted better.",
    "zlib attack": "the loss, put in proportion to how far the text can be compressed, so that simple text "
    "is "
    "not taken for familiar text.",
    "Min-K": "a membership attack that looks only at the least likely words of a text: familiar text has "
    "few surprises.",
    "Min-K++": "the same, with each word's surprise compared with what the model expected at that place.",
    "reference attack": "a membership attack that compares the loss with that of a model that never saw "
    "the examples.",
    "gradient norm": "a membership attack that asks how strongly training on the text would still change the "
    "model: familiar text changes it little.",
    "sampled leakage": "how much of the right answer appears when several answers are drawn at random: on "
    "average, and in the worst of them. A single answer hides what comes up now and then.",
    "log-prob under the target": "how likely the model before unlearning finds what the unlearned model "
    "says, "
    "per token (0 is most likely). Very low values mean that it babbles.",
    "repetition": "the share of four-word sequences that an answer says more than once; near 1 it is babble.",
    "distinct n-grams": "the share of word sequences over all answers that differ; near 0 all answers are "
    "alike.",
    "capability": "scores on public tests of general knowledge and reasoning (lm-evaluation-harness), "
    "before and after.",
    "weaker evidence": "a number without a retain model behind it: nobody knows what a model that never saw "
    "the examples would score, so it hints and does not prove.",
    "attack": "an attempt to bring the forgotten answers back, after which the same questions are asked "
    "again.",
    "recovered share": "of what was forgotten, how much an attack brings back: 0 % = nothing, 100 % = as "
    "before unlearning. Examples that the attack itself showed to the model are left out.",
    "control": "the same attack on the retain model, which never saw the examples. What it then shows is no "
    "memory.",
    "beyond the control": "how much more the attacked model shows than the retain model under the same "
    "attack, in points: 100 = all that the target model knew beyond the retain model, 0 or less = no more "
    "than "
    "a model that never saw the examples.",
    "relearning": "training the unlearned model for a few more steps; if answers that were not shown return "
    "too, they were hidden and not forgotten.",
    "quantisation": "rounding the weights to 8 or 4 bits, as is done to save memory; it may undo small "
    "changes.",
    "rephrasing": "asking for the same fact in other words or in another form, such as a gap to fill.",
    "interval": "95 % bootstrap interval over examples: where the number would lie for other examples of "
    "the same kind.",
    "n": "the number of examples behind a number. Examples that could not be scored are counted apart, "
    "never averaged.",
    "fingerprint": "a short hash of the content; two equal fingerprints mean the same weights or the same "
    "data.",
}
_BY_METRIC = (
    (r"forget_quality", ("forget quality", "log10 p", "D", "truth ratio")),
    (r"model_utility", ("model utility",)),
    (r"normalised_prob|probability_normalised", ("normalised probability",)),
    (r"truth_ratio", ("truth ratio", "truth ratio score")),
    (r"probability", ("probability",)),
    (r"rouge", ("ROUGE-L",)),
    (r"repetition", ("repetition",)),
    (r"distinct", ("distinct n-grams",)),
    (r"exact_memori", ("exact memorisation",)),
    (r"extraction_strength", ("extraction strength",)),
    (r"verbatim|common_substring|departure", ("verbatim extraction",)),
    (r"verbatim.*excess", ("beyond the retain model",)),
    (r"mention_rate", ("mention", "mention rate")),
    (r"low_risk", ("mention", "low-risk tokens", "log-prob")),
    (r"without_terms", ("mention",)),
    (r"low_risk_logp_gap", ("reference",)),
    (r"verbmem", ("VerbMem",)),
    (r"knowmem", ("KnowMem",)),
    (r"priv_?leak", ("PrivLeak", "AUC", "membership attack")),
    (r"attack '", ("AUC", "TPR at FPR", "membership attack", "forget set, retain set, holdout set")),
    (r"attack 'loss'", ("loss attack",)),
    (r"'zlib'", ("zlib attack", "loss attack")),
    (r"'min_k'", ("Min-K",)),
    (r"'min_k_pp'", ("Min-K", "Min-K++")),
    (r"'reference'", ("reference attack", "loss attack")),
    (r"'gradient_norm'", ("gradient norm",)),
    (r"leakage", ("sampled leakage", "ROUGE-L")),
    (r"judged|under the target", ("log-prob under the target",)),
    (r"capability", ("capability",)),
)
"""What a metric's name, group or variant has in it -> the terms that its row uses."""
_ALWAYS = ("target model", "unlearned model", "retain model", "interval", "n", "fingerprint")
_NO_UNLEARNING = {"mentions", "understanding", "fluency"}
_BY_ATTACK = {"relearn": "relearning", "quantize": "quantisation", "rephrase": "rephrasing"}
_WITH_ATTACKS = ("attack", "recovered share", "control", "beyond the control", "ROUGE-L", "probability")


def glossary(
    metrics: Iterable[Metric], attacks: Iterable[str] = (), more: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Terms with their lines, in a fixed order: those of the metrics and attacks of a report, and `more`."""
    metrics = list(metrics)
    needed = {*_ALWAYS, *more}
    if metrics and {metric.group for metric in metrics} <= _NO_UNLEARNING:
        needed -= {"target model", "unlearned model", "retain model"}
    for metric in metrics:
        told = f"{metric.name} {metric.group} {metric.variant}"
        for pattern, terms in _BY_METRIC:
            if re.search(pattern, told):
                needed.update(terms)
        if metric.weaker:
            needed.add("weaker evidence")
    for name in attacks:
        needed.update(_WITH_ATTACKS)
        if name in _BY_ATTACK:
            needed.add(_BY_ATTACK[name])
    return [(term, line) for term, line in _TERMS.items() if term in needed]
