"""The verdict: what the numbers say, in words for a reader without statistics.

The order of the questions: is there anything to compare; did the model break; can the test see anything;
can the unlearned model be told apart from one that never saw the examples; did it keep its other abilities.
Each branch has a machine code, so that a script can act on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearnkit.reporting.answers import broken_answers
from unlearnkit.reporting.attacks import Attack, attacks_of
from unlearnkit.reporting.evidence import with_evidence
from unlearnkit.reporting.gaps import why_missing
from unlearnkit.reporting.kept import KEPT_LIMIT, Kept, is_of_trained, kept_ability, kept_sentence
from unlearnkit.reporting.numbers import count, number, p_value, percent
from unlearnkit.reporting.serving import with_serving
from unlearnkit.reporting.trained import judge_training
from unlearnkit.reporting.views import EvalView, Metric, RunView

P_LIMIT = 0.05
"""TOFU's limit (arXiv 2401.06121, section 2.2): above it, the two models cannot be told apart."""
BROKEN_LIMIT = 0.5
"""From this share of empty or repeating answers on, a model counts as collapsed."""
BROKEN_RISE = 0.25
"""By more than this the share must have grown, so that a target that babbles a little hides nothing."""
OVER_FORGOTTEN_RATIO = 0.25
"""Below this multiple of the retain model's forget probability, answers were pushed away, not unlearned."""
KNOWN_ROUGE, KNOWN_PROBABILITY = 0.25, 0.05
"""Below both, the target did not know the answers: questions on the same subject share that many words, and
a token that the model expects has a far higher probability."""
SMALL_N = 100
"""With fewer examples than this the test misses small differences, and the verdict says so."""


@dataclass(frozen=True)
class Verdict:
    """`code` for machines, `tone` for the colour ("good", "mixed", "bad", "unknown"), the rest for people."""

    code: str
    tone: str
    headline: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole verdict as one paragraph."""
        return " ".join((self.headline, *self.sentences))


def verdict_of(run: RunView, attacks: Sequence[Attack] | None = None) -> Verdict:
    """The verdict on a run, its broken answers counted from the records.

    Args:
        run: what was measured.
        attacks: what came back, where it was computed already.
    """
    found = judge(run, {role: broken_answers(view) for role, view in run.evaluations.items()})
    return with_evidence(with_serving(found, run), run, attacks_of(run) if attacks is None else attacks)


def judge(run: RunView, broken: dict[str, float]) -> Verdict:
    """Judge one run by its behaviour on the suite's questions, without attacks and membership tests.

    Args:
        run: what was measured.
        broken: for each role, the share of its answers to the forget questions that are empty or repeat
            themselves (NaN or absent where there are none).
    """
    told = judge_training(run)
    found = _judge(run, broken) if told is None else Verdict(*told)
    # Where the number of examples is not known its place in the sentence is empty.
    return replace(found, headline=re.sub(" {2,}", " ", found.headline))


def _judge(run: RunView, broken: dict[str, float]) -> Verdict:
    after = run.unlearned
    if after is None:
        return _nothing_unlearned(run)
    kept = kept_ability(run)
    if _collapsed(broken):
        return _collapse(run, after, broken["unlearned"], kept)
    quality = after.metrics.get("forget_quality")
    if quality is None or not quality.measured:
        return _without_retain_model(run, after, kept)
    return _with_retain_model(run, after, kept)


def _collapsed(broken: dict[str, float]) -> bool:
    after, before = broken.get("unlearned", math.nan), broken.get("target", math.nan)
    return after > BROKEN_LIMIT and not after <= before + BROKEN_RISE  # NaN: no target to compare with


def _nothing_unlearned(run: RunView) -> Verdict:
    role = run.main.role
    return Verdict(
        "no_comparison",
        "unknown",
        f"These are the measurements of a {role} model; nothing was unlearned.",
        ("Compare them with a run that unlearns.",),
    )


def _collapse(run: RunView, after: EvalView, share: float, kept: Kept | None) -> Verdict:
    sentences = [
        f"{percent(share)} of its answers to the forgotten questions are empty or repeat themselves.",
        *_quality_sentences(run, after),
        kept_sentence(run, kept, "What it kept could not be measured."),
        "A broken model hides the old answers without being a model that never learned them; "
        "train for less long, with a smaller learning rate or a stronger retain term.",
    ]
    return Verdict(
        "collapsed",
        "bad",
        "The model is broken: it no longer gives sensible answers to the "
        f"{_examples(after)} forgotten examples.",
        tuple(sentences),
    )


def _with_retain_model(run: RunView, after: EvalView, kept: Kept | None) -> Verdict:
    n, quality = _examples(after), after.metrics["forget_quality"]
    details = _quality_sentences(run, after)
    utility = kept_sentence(run, kept, "What it kept was not measured against another model.")
    if run.target is not None and run.target.value("forget_quality") > P_LIMIT:
        return Verdict(
            "inconclusive",
            "unknown",
            "This evaluation cannot tell whether anything was forgotten.",
            (
                f"Even before unlearning the model could not be told apart from one that never saw the {n} "
                f"examples (p = {p_value(run.target.value('forget_quality'))}, above {P_LIMIT}).",
                *details,
                utility,
                "Check that the target model really learned the forget set, or use more examples.",
            ),
        )
    if quality.value > P_LIMIT:
        if kept is not None and kept.share < KEPT_LIMIT:
            much = "too much" if kept.share >= 0.5 else "most"
            return Verdict(
                "forgotten_utility_lost",
                "mixed",
                f"The model no longer shows that it learned the {n} "
                f"forgotten examples, but it lost {much} of what it should keep.",
                (*details, utility),
            )
        ending, tone = ".", "mixed"
        if kept is not None and is_of_trained(run, kept):
            ending = ", and it kept what it was trained to keep."
        elif kept is not None:
            ending, tone = ", and it kept its other abilities as far as they were measured.", "good"
        return Verdict(
            "forgotten",
            tone,
            f"The model no longer shows that it learned the {n} forgotten examples{ending}",
            (*details, utility),
        )
    probability = after.value("forget_probability")
    usual = run.retain.value("forget_probability") if run.retain else math.nan
    if probability < (0.01 if math.isnan(usual) else OVER_FORGOTTEN_RATIO * usual):
        against = "" if math.isnan(usual) else f"; a model that never saw them gives them {number(usual)}"
        return Verdict(
            "over_forgotten",
            "bad",
            f"The model pushed the {n} forgotten answers away instead of forgetting them, and that itself "
            "can be noticed.",
            (
                f"It gives the right answers a probability of {number(probability)} per token{against}.",
                *details,
                utility,
                "Train for less long, or with a smaller learning rate.",
            ),
        )
    return Verdict(
        "not_forgotten",
        "bad",
        f"The model still shows that it learned the {n} forgotten examples.",
        (*details, *_progress(run, after), utility),
    )


def _quality_sentences(run: RunView, after: EvalView) -> list[str]:
    quality = after.metrics.get("forget_quality")
    if quality is None or not quality.measured:
        return []
    meaning = (
        f"above {P_LIMIT}: on these questions it cannot be told apart from a model that never saw them"
        if quality.value > P_LIMIT
        else f"not above {P_LIMIT}: it can be told apart from a model that never saw them"
    )
    sentences = [f"Forget quality is {_p(quality)} ({meaning})."]
    if run.target is not None and "forget_quality" in run.target.metrics:
        before = run.target.metrics["forget_quality"]
        if before.measured:
            sentences.append(f"Before unlearning it was {_p(before)}.")
    if quality.low <= P_LIMIT < quality.high:
        sentences.append(
            f"Drawing the examples anew moves p between {p_value(quality.low)} and {p_value(quality.high)}, "
            f"on both sides of {P_LIMIT}: take the answer as uncertain."
        )
    if quality.value > P_LIMIT and 0 < quality.n < SMALL_N:
        sentences.append(
            f"Only {quality.n} examples were compared; with so few, small differences go unseen."
        )
    return sentences


def _p(quality: Metric) -> str:
    p = f"p = {p_value(quality.value, quality.extra.get('log10_p'))}"
    return p if quality.value >= 0.001 else f"practically zero, {p}"


def _progress(run: RunView, after: EvalView) -> list[str]:
    now = after.metrics["forget_quality"].extra.get("statistic")
    quality = run.target.metrics.get("forget_quality") if run.target else None
    before = quality.extra.get("statistic") if quality else None
    if now is None or not before:
        return []
    distance = f"the distance D to such a model went from {number(before)} to {number(now)} (0 means alike)"
    if now < 0.9 * before:
        return [f"Unlearning went part of the way: {distance}."]
    return [f"Unlearning hardly changed it: {distance}."]


def _never_knew(run: RunView) -> bool:
    """Whether the target gave the answers neither in words nor as likely ones."""
    before = run.target
    return (
        before is not None
        and before.value("forget_rouge") < KNOWN_ROUGE
        and before.value("forget_probability") < KNOWN_PROBABILITY
    )


def _without_retain_model(run: RunView, after: EvalView, kept: Kept | None) -> Verdict:
    """Weaker evidence: what changed between before and after, with no model that never saw the examples."""
    quality = after.metrics.get("forget_quality")
    reason = why_missing(quality) if quality else "the suite has no such metric"
    why = f" ({reason})" if reason else ""
    missing = f"Forget quality could not be measured{why}, so nothing here shows how a model that never saw "
    missing += "them would answer."
    utility = kept_sentence(run, kept, "What it kept could not be measured.")
    n, changes, shares = _examples(after), [], []
    for name, what in (
        ("forget_rouge", "word overlap with the old answers (ROUGE-L)"),
        ("forget_probability", "probability of the old answers"),
        ("knowmem_forget", "knowledge of the forget set (KnowMem)"),
        ("verbmem_forget", "verbatim continuation of the forget set (VerbMem)"),
    ):
        new, old = after.value(name), run.target.value(name) if run.target else math.nan
        if not math.isnan(new) and old > 0:
            changes.append(f"the {what} went from {number(old)} to {number(new)}")
            shares.append(new / old)
    if not changes:
        return Verdict(
            "not_judged",
            "unknown",
            f"Whether the model forgot the {n} examples cannot be judged from these measurements.",
            (missing, "There is no measurement from before unlearning either.", utility),
        )
    evidence = f"As weaker evidence, before and after: {' and '.join(changes)}."
    if _never_knew(run):
        return Verdict(
            "not_known_before",
            "unknown",
            f"Even before unlearning the model hardly knew the {n} examples; there was little to forget.",
            (evidence, utility, missing),
        )
    if max(shares) <= 0.5:
        code, tone = "weaker_evidence_forgotten", "mixed"
        headline = f"The model repeats far less of the {n} forgotten examples than before."
    elif max(shares) <= 0.9:
        code, tone = "weaker_evidence_partly", "mixed"
        headline = (
            f"The model repeats less of the {n} forgotten examples than before, but a good part is left."
        )
    else:
        code, tone = "weaker_evidence_not_forgotten", "bad"
        headline = f"The model still repeats the {n} forgotten examples much as before."
    if kept is not None and kept.share < KEPT_LIMIT and tone == "mixed":
        headline = headline.rstrip(".") + "; it also lost part of what it should keep."
        code += "_utility_lost"
    return Verdict(code, tone, headline, (evidence, utility, missing))


def _examples(view: EvalView) -> str:
    """How many forget examples the verdict speaks of."""
    numbers = [
        view.metrics[name].n
        for name in ("forget_quality", "forget_rouge", "forget_probability")
        if name in view.metrics and view.metrics[name].n
    ]
    return count(numbers[0]) if numbers else ""
