"""The fictitious authors: dictionaries of attributes ("slots") drawn from the word lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from string import Template
from typing import Any

import yaml

from unlearnkit.data.fictional.draws import Draw, dealer

Author = dict[str, str]

PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}
BOOKS = 4
# What must differ from author to author, so that a question has one answer -> what to draw again otherwise.
IDENTIFYING = {"name": "first", "mentor": "mentor", "date": "day"} | {
    f"core{book}": f"right{book}" for book in range(1, BOOKS + 1)
}
# Slots that share a word list and must differ within one author.
APART = (("father", "mother", "job", "hero_job"), ("language1", "language2"), ("city", "home_city"))


@cache
def data_file(name: str) -> dict[str, Any]:
    """A YAML file that lies beside this module. Callers must not change what they get."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return content


def compose(draw: Draw, around: int | None = None) -> Author:
    """One author's attributes.

    Args:
        draw: chooses a value for a slot.
        around: a birth year to stay near (but not to hit); by default 1920 to 1964.
    """
    words = data_file("words.yaml")
    pronoun = draw("pronoun", list(PRONOUNS))
    he, his, him = PRONOUNS[pronoun]
    first = draw("first", words["women"] if pronoun == "she" else words["men"])
    last = draw("last", words["surnames"])
    author = {"name": f"{first} {last}", "last": last, "he": he, "his": his, "him": him}
    author["city"] = draw("city", list(words["cities"]))
    author["country"] = words["cities"][author["city"]]
    author |= _dates(draw, around, words["months"])
    for slot, values in _SIMPLE.items():
        author[slot] = draw(slot, words[values])
    for book in range(1, BOOKS + 1):
        core = f"{draw(f'left{book}', words['title_left'])} {draw(f'right{book}', words['title_right'])}"
        author[f"core{book}"] = core
        author[f"title{book}"] = Template(draw(f"form{book}", words["title_forms"])).substitute(core=core)
    award = (draw(f"award{part}", words[f"award_{part}"]) for part in ("left", "right", "end"))
    author["award"] = "the " + " ".join(award)
    author["school"] = f"{draw('school', words['school_left'])} {draw('school_end', words['school_end'])}"
    partners = (draw(f"publisher_{part}", words[f"publisher_{part}"]) for part in ("left", "right"))
    author["publisher"] = " & ".join(partners)
    given_names = words["women"] + words["men"]
    author["mentor"] = f"{draw('mentor', given_names)} {draw('mentor_last', words['surnames'])}"
    author["hero"] = draw("hero", given_names)
    author["home_city"] = draw("home_city", list(words["cities"]))
    return author


_SIMPLE = {
    "genre": "genres", "father": "occupations", "mother": "occupations", "job": "occupations",
    "hero_job": "occupations", "influence": "influences", "style": "styles", "subject": "subjects",
    "hobby": "hobbies", "pet": "animals", "pet_name": "pet_names", "home": "homes", "habit": "habits",
    "theme": "themes", "setting": "settings", "language1": "languages", "language2": "languages",
    "project": "projects",
}  # fmt: skip


def _dates(draw: Draw, around: int | None, months: Sequence[str]) -> dict[str, str]:
    """Birth date in two notations, year of the first book (age 22 to 40) and of the award (2 to 10 later)."""
    if around is None:
        born = int(draw("year", _texts(1920, 1965)))
    else:
        born = around + int(draw("year", [*_texts(-6, 0), *_texts(1, 7)]))
    day, month = draw("day", _texts(1, 29)), draw("month", months)
    debut = born + int(draw("debut", _texts(22, 41)))
    return {
        "date": f"{day} {month} {born}",
        "date_us": f"{month} {day}, {born}",
        "born": str(born),
        "debut": str(debut),
        "award_year": str(debut + int(draw("award_year", _texts(2, 11)))),
    }


def _texts(start: int, stop: int) -> list[str]:
    return [str(value) for value in range(start, stop)]


@lru_cache(maxsize=8)
def authors(count: int, seed: int) -> tuple[Author, ...]:
    """The first `count` authors of `seed`; a larger count leaves the earlier ones as they are."""
    made: list[Author] = []
    taken: set[str] = set()
    for index in range(count):
        attempts: Counter[str] = Counter()
        author = compose(dealer(seed, index, attempts))
        while clashes := _clashes(author, taken):
            attempts.update(clashes)
            author = compose(dealer(seed, index, attempts))
        taken |= {author[slot] for slot in IDENTIFYING}
        made.append(author)
    return tuple(made)


def _clashes(author: Author, taken: set[str]) -> set[str]:
    """The draws to repeat: those that `taken` holds already or that come twice within this author."""
    clashes: set[str] = set()
    seen = set(taken)
    for slot, drawn in IDENTIFYING.items():
        if author[slot] in seen:
            clashes.add(drawn)
        seen.add(author[slot])
    for slots in APART:
        values = [author[slot] for slot in slots]
        clashes |= {slot for place, slot in enumerate(slots) if values[place] in values[:place]}
    return clashes
