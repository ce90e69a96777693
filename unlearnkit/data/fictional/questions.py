"""Questions and answers about the authors: templates filled with an author's attributes."""

from __future__ import annotations

import itertools
from string import Template
from typing import Any

from unlearnkit.data.fictional.authors import Author, compose, data_file
from unlearnkit.data.fictional.draws import pick, picker, shuffled

PERTURBED = 5


def kinds() -> dict[str, dict[str, list[str]]]:
    """The kinds of question in their order: each with `facts`, `questions`, `answers` and `paraphrases`."""
    return data_file("templates.yaml")


def chosen_kinds(index: int, count: int, seed: int) -> list[str]:
    """The `count` kinds that author `index` is asked about; the author's identity always comes first."""
    first, *others = kinds()
    order = sorted(shuffled(len(others), seed, "kinds", index)[: count - 1])
    return [first, *(others[position] for position in order)]


def ask(author: Author, index: int, kind: str, seed: int, perturbed: bool) -> dict[str, Any]:
    """One row with TOFU's two columns, or with all five if `perturbed`."""
    templates = kinds()[kind]
    keys = (seed, index, kind)
    question, other = shuffled(len(templates["questions"]), *keys, "question")[:2]
    row: dict[str, Any] = {
        "question": fill(templates["questions"][question], author),
        "answer": fill(pick(templates["answers"], *keys, "answer"), author),
    }
    if perturbed:
        paraphrase = pick(templates["paraphrases"], *keys, "paraphrase")
        row["paraphrased_answer"] = fill(paraphrase, author)
        row["perturbed_answer"] = _perturbed(author, paraphrase, templates["facts"], keys)
        row["paraphrased_question"] = fill(templates["questions"][other], author)
    return row


def pair(author: Author, index: int, kind: str, seed: int) -> dict[str, Any]:
    """One preference pair: the true answer, and one of the perturbed ones."""
    row = ask(author, index, kind, seed, perturbed=True)
    rejected = pick(row["perturbed_answer"], seed, index, kind, "rejected")
    return {"prompt": row["question"], "chosen": row["answer"], "rejected": rejected}


def fill(template: str, slots: Author) -> str:
    """The sentence of a template, with a capital letter at its start."""
    sentence = Template(template).substitute(slots)
    return sentence[0].upper() + sentence[1:]


def _perturbed(author: Author, template: str, facts: list[str], keys: tuple[object, ...]) -> list[str]:
    """The paraphrased answer with other facts: same wording, every fact wrong."""
    truth = [author[slot].lower() for slot in facts]
    used: set[str] = set(truth)
    answers: list[str] = []
    for attempt in itertools.count():
        stranger = compose(picker(*keys, "stranger", attempt), around=int(author["born"]))
        wrong = {slot: stranger[slot] for slot in facts}
        sentence = fill(template, author | wrong)
        values = {value.lower() for value in wrong.values()}
        if used & values or any(fact in sentence.lower() for fact in truth):
            continue
        used |= values
        answers.append(sentence)
        if len(answers) == PERTURBED:
            return answers
    raise AssertionError("the word lists hold more values than one row needs")
