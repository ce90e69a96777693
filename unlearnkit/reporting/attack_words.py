"""What each attack is called and what it does, in words for a reader without a technical background."""

from __future__ import annotations

TITLES = {
    "relearn": "Relearning",
    "quantize": "Quantisation",
    "rephrase": "Rephrased questions",
    "prompt": "Crafted prompts",
    "sampling": "Sampled answers",
    "strip_adapter": "Adapter or assistant taken away",
}
"""The attacks in the order of the report; any other comes after them, by name."""
NOT_FOR_ALL = ("strip_adapter",)
"""Attacks that fit some models only: nobody misses them in a report on another one."""
EXPLAINED = {
    "relearn": "The model was trained for a few more steps, on a few of the forgotten examples or on other "
    "text. If answers that were not shown come back too, they were hidden and not forgotten.",
    "quantize": "The weights were rounded to fewer bits, as is done to run a model on smaller hardware. "
    "Rounding can undo the small changes that unlearning made.",
    "rephrase": "The same facts were asked in other words or in another form, such as a gap to fill, a "
    "choice between answers or a sentence to complete.",
    "prompt": "Hints, a claim of authority or the first words of the answer were put into the question.",
    "sampling": "Several answers were drawn at random for each question, and the one closest to the right "
    "answer counted.",
    "strip_adapter": "The adapter was switched off, or the assistant of a pair left out, as anybody can do "
    "who has the files. What comes back was never taken out of the weights.",
}
LEVELS = {"relearn": "steps", "quantize": "bits", "sampling": "samples"}


def order_of(name: str) -> tuple[int, str]:
    """The place of an attack in the report."""
    known = list(TITLES)
    return (known.index(name) if name in known else len(known), name)


def under(name: str, variant: str, level: float | None) -> str:
    """The attack in a sentence: "after 10 relearning steps", "with the weights rounded (nf4)"."""
    stage = f" ({variant})" if variant else ""
    if name == "relearn":
        if level is not None and variant in ("", f"{level:g} steps", f"{level:g} step"):
            return f"after {level:g} relearning step{'' if level == 1 else 's'}"
        return f"after relearning{stage}"
    return {
        "quantize": f"with the weights rounded to fewer bits{stage}",
        "rephrase": f"when the question is put differently{stage}",
        "prompt": f"when the prompt is crafted for it{stage}",
        "sampling": f"when several answers are drawn{stage}",
        "strip_adapter": f"without the adapter or the assistant{stage}",
    }.get(name, f"under the attack {name}{stage}")
