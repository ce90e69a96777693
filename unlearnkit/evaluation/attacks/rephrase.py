"""The same knowledge asked for in other forms (arXiv 2506.07795).

Unlearning often holds for the form it was trained in only. From the rows of a data set other forms are made
without a model: the paraphrased question, a cloze, a multiple choice, and a statement to go on with. One
stage each; a report shows the worst form and the spread. ROUGE-L recall and probability are measured on the
answer that belongs to the form, so that 1 means the same in each; how much a form gives away by itself is
seen in the retain model under the same attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from unlearnkit.errors import DataError, RecipeError
from unlearnkit.evaluation.attacks.forms import (
    answer_of,
    answered_rows,
    asking,
    cloze,
    framed,
    halves,
    lettered,
    options,
    question_of,
)
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.strict import did_you_mean

_Row = Mapping[str, Any]
#: Form -> what a row needs for it, in words.
FORMS = {
    "paraphrase": "a paraphrased_question",
    "cloze": "an answer with words",
    "choice": "a perturbed_answer",
    "completion": "an answer of two words or more",
}
# Neither fits a form in which a part of the true answer is given.
_NO_OTHERS = {"paraphrased_answer": None, "perturbed_answer": None}


@dataclass(frozen=True)
class Rephrase:
    """Ask for the same knowledge in other forms: paraphrased question, cloze, multiple choice, completion.

    Raises:
        RecipeError: no form, or an unknown one.
    """

    dataset: str = field(default="forget", metadata={"help": "the data set whose questions change"})
    forms: list[str] = field(default_factory=lambda: list(FORMS), metadata={"help": "one stage for each"})
    seed: int = field(default=0, metadata={"help": "draws the order of the options of a multiple choice"})
    fill_in: str = field(default="Fill in the blank:", metadata={"help": "before a cloze"})
    choose: str = field(
        default="Which of these is right? Answer with its text.", metadata={"help": "before the options"}
    )
    go_on: str = field(
        default="Complete this statement:", metadata={"help": "before the first half of an answer"}
    )

    def __post_init__(self) -> None:
        for form in self.forms:
            if form not in FORMS:
                raise RecipeError(f"rephrase.forms has the unknown form {form!r}{did_you_mean(form, FORMS)}")
        if not self.forms:
            raise RecipeError(f"rephrase.forms is empty; give some of {', '.join(FORMS)}")

    def refuse(self, subject: Subject) -> None:
        """Find out what `stages` would refuse; it costs nothing."""
        with self.stages(subject):
            pass

    def stages(self, subject: Subject) -> AbstractContextManager[Iterator[Subject]]:
        """One subject for each form, with the rows that can take it; the model is left alone.

        Raises:
            RecipeError: the suite does not ask the data set.
            DataError: no row can take any of the forms.
        """
        rows = answered_rows(subject, self.dataset, "rephrase")
        made = {form: self.rows(rows, form) for form in dict.fromkeys(self.forms)}
        skipped = {form: f"no row has {FORMS[form]}" for form, found in made.items() if not found}
        if len(skipped) == len(made):
            needed = " or ".join(FORMS[form] for form in made)
            raise DataError(f"no row of {self.dataset!r} can be rephrased; give its rows {needed}")
        total = len(subject.rows[self.dataset])
        return nullcontext(
            dataclasses.replace(
                subject,
                rows={**subject.rows, self.dataset: found},
                variant=form,
                facts={
                    **subject.facts,
                    "dataset": self.dataset,
                    "rows": len(found),
                    "left_out": total - len(found),
                    "skipped_forms": skipped,
                },
            )
            for form, found in made.items()
            if found
        )

    def rows(self, rows: Sequence[_Row], form: str) -> list[_Row]:
        """The rows in another form, those that cannot take it left out; ids and order stay."""
        change: Callable[[_Row], _Row | None] = getattr(self, f"_{form}")
        return [changed for row in rows if (changed := change(row)) is not None]

    def _paraphrase(self, row: _Row) -> _Row | None:
        question = row.get("paraphrased_question")
        return asking(row, question) if isinstance(question, str) and question.strip() else None

    def _cloze(self, row: _Row) -> _Row | None:
        question = question_of(row)
        if (made := cloze(question, answer_of(row))) is None:
            return None
        sentence, span = made
        asked = framed(question, self.fill_in, sentence)
        return asking(row, asked, span, **_NO_OTHERS)

    def _completion(self, row: _Row) -> _Row | None:
        question = question_of(row)
        if (made := halves(question, answer_of(row))) is None:
            return None
        first, rest = made
        asked = framed(question, self.go_on, f"{first.rstrip()} ...")
        return asking(row, asked, rest, **_NO_OTHERS)

    def _choice(self, row: _Row) -> _Row | None:
        """The right option is the paraphrased answer where there is one, and so is the true answer.

        Wrong answers are written like the paraphrase. Among those of TOFU the original answer is the odd one
        out in nine of ten questions (least mean ROUGE-L with the other options), the paraphrase in one of
        five, where chance is one of six: the original could be told without knowing anything.
        """
        wrong = row.get("perturbed_answer") or []
        right = (row.get("paraphrased_answer") or "").strip() or answer_of(row)
        choices = options(
            right,
            [wrong] if isinstance(wrong, str) else wrong,
            seed=self.seed,
            example_id=str(row["example_id"]),
        )
        if len(choices) < 2:
            return None
        others = [one for one in choices if one != right]
        asked = f"{question_of(row)}\n{self.choose}\n{lettered(choices)}"
        return asking(row, asked, right, paraphrased_answer=None, perturbed_answer=others)


ATTACK = Rephrase
