"""`fictional`: a small benchmark in TOFU's columns that needs no download.

Fictitious authors, their attributes and some twenty questions about each are a pure function of a
`FictionalSpec`. The forget splits hold the last authors, as in TOFU (Maini et al. 2024,
https://arxiv.org/abs/2401.06121). The holdout splits hold further authors that no training split contains,
for membership attacks. The attributes of an author are dealt from shuffled decks, so that what is known about
one author says nothing about another.

The split `pairs` holds preference pairs in TRL's columns, one for every question of `full`: the true answer
is chosen, one of the five perturbed answers is rejected.

    >>> from unlearnkit.data.fictional import FictionalSpec, rows
    >>> len(rows("forget10")), len(rows("retain90"))
    (80, 720)
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnkit.data.fictional.authors import authors, data_file
from unlearnkit.data.fictional.draws import shuffled
from unlearnkit.data.fictional.questions import ask, chosen_kinds, kinds, pair
from unlearnkit.errors import DataError
from unlearnkit.files import write_atomic

__all__ = ["FictionalSpec", "export", "rows", "splits"]

Row = dict[str, Any]

MOST_AUTHORS = 200
SHARES = (1, 5, 10)  # per cent of the authors


@dataclass(frozen=True)
class FictionalSpec:
    """Sizes of the benchmark.

    Attributes:
        authors: authors in `full`, 2 to 199.
        questions: questions about each author, 1 to the number of kinds (26).
        holdout_authors: further authors that only the holdout splits contain, at least 1. No more than 200
            authors altogether.
        seed: chooses names, facts and wording.

    Raises:
        DataError: a size is outside its range.
    """

    authors: int = 40
    questions: int = 20
    holdout_authors: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _within("authors", self.authors, 2, MOST_AUTHORS - 1)
        _within("holdout_authors", self.holdout_authors, 1, MOST_AUTHORS - self.authors)
        _within("questions", self.questions, 1, len(kinds()))


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DataError(f"fictional: `{name}` is {value}; choose a number from {low} to {high}")


def splits() -> list[str]:
    """The names of all splits: TOFU's, `holdout` and `pairs`."""
    forget = [f"forget{share:02}" for share in SHARES]
    holdout = [f"holdout{share:02}" for share in SHARES]
    return [
        "full",
        *(name + end for name in (*forget, *holdout) for end in ("", "_perturbed")),
        *(f"retain{100 - share}" for share in SHARES),
        "retain_perturbed",
        *(name + end for name in ("real_authors", "world_facts") for end in ("", "_perturbed")),
        "idontknow",
        "pairs",
    ]


def rows(split: str, spec: FictionalSpec | None = None) -> list[Row]:
    """The rows of a split, with TOFU's columns in TOFU's order (`pairs`: prompt, chosen, rejected).

    Args:
        split: one of `splits()`.
        spec: sizes and seed; by default 40 authors with 20 questions each and 4 holdout authors.

    Raises:
        DataError: there is no such split.
    """
    spec = spec or FictionalSpec()
    if split not in splits():
        close = difflib.get_close_matches(str(split), splits(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(splits())}"
        raise DataError(f"fictional has no split '{split}'; {hint}")
    name, perturbed = split.removesuffix("_perturbed"), split.endswith("_perturbed")
    if name == "idontknow":
        return [{"text": text} for text in data_file("facts.yaml")[name]]
    if name in ("real_authors", "world_facts"):
        return [_fact(fact, perturbed, spec.seed) for fact in data_file("facts.yaml")[name]]
    everyone = authors(spec.authors + spec.holdout_authors, spec.seed)
    if name == "pairs":
        return [pair(everyone[index], index, kind, spec.seed) for index, kind in _select("full", spec)]
    chosen = _retain_sample(spec) if split == "retain_perturbed" else _select(name, spec)
    return [ask(everyone[index], index, kind, spec.seed, perturbed) for index, kind in chosen]


def export(folder: str | Path, spec: FictionalSpec | None = None) -> list[Path]:
    """Write every split as JSON lines to `folder/SPLIT.json` (UTF-8) and return the paths.

    Raises:
        UserError: `folder` is a file, cannot be written, or the disk is full.
    """
    if Path(folder).is_file():
        raise DataError(f"cannot export to {folder}: it is a file; name a folder")
    paths = []
    for split in splits():
        path = Path(folder) / f"{split}.json"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split, spec))
        write_atomic(path, "".join(lines))
        paths.append(path)
    return paths


def _select(name: str, spec: FictionalSpec) -> list[tuple[int, str]]:
    """The rows of full, forgetXX, retainXX or holdoutXX as (author, kind of question)."""
    everyone = range(spec.authors + spec.holdout_authors)
    members, holdout = everyone[: spec.authors], everyone[spec.authors :]
    if name == "full":
        chosen = members
    elif name.startswith("retain"):
        chosen = members[: -_count(100 - int(name[-2:]), spec)]
    elif name.startswith("forget"):
        chosen = members[-_count(int(name[-2:]), spec) :]
    else:
        chosen = holdout[-_count(int(name[-2:]), spec) :]
    return [(index, kind) for index in chosen for kind in chosen_kinds(index, spec.questions, spec.seed)]


def _count(share: int, spec: FictionalSpec) -> int:
    """How many of the authors `share` per cent are: rounded, at least one."""
    return max(1, (spec.authors * share + 50) // 100)


def _retain_sample(spec: FictionalSpec) -> list[tuple[int, str]]:
    """As many retain90 rows as forget10 has, spread over the retain authors, in their original order."""
    retain = _select("retain90", spec)
    order = shuffled(len(retain), spec.seed, "retain_perturbed")
    return [retain[place] for place in sorted(order[: len(_select("forget10", spec))])]


def _fact(fact: list[str], perturbed: bool, seed: int) -> Row:
    question, answer, *wrong = fact
    if perturbed:
        return {"question": question, "answer": answer, "perturbed_answer": wrong}
    options = [fact[1 + place] for place in shuffled(4, seed, "options", question)]
    return {
        "question": question,
        **{f"option{place}": option for place, option in enumerate(options, 1)},
        "answer": answer,
    }
