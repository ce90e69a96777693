"""Names and other terms in a text: one way to find them, for whoever marks them and for whoever counts them.

A term is found as a whole word, also before 's; white space in it stands for any, and the two apostrophes for
each other. A term written /.../ is a regular expression and is taken as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from unlearnkit import shipped
from unlearnkit.errors import RecipeError

#: What stands around a name and is none of its parts; an initial is none either.
_TITLES = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "sir", "lady", "lord", "st", "jr", "sr", "ii", "iii", "iv", "phd")
)
#: A letter, a digit, or a mark that belongs to the letter before it.
_WORD = r"[\w\u0300-\u036f]"
_APOSTROPHES = "['\N{RIGHT SINGLE QUOTATION MARK}]"
_FLAGS = re.compile(r"\(\?([aimsux]+)\)")


def term_pattern(terms: Iterable[str], *, parts: bool, ignore_case: bool = False) -> re.Pattern[str]:
    """One pattern that finds every term; of two that begin at the same place the longer one is found.

    Args:
        terms: words or names, and regular expressions between slashes.
        parts: also find a name's first and last word alone.
        ignore_case: read capital and small letters alike.

    Raises:
        RecipeError: no term, an empty one, or a regular expression that cannot be used.
    """
    terms = [term.strip() for term in terms]
    if not terms or not all(terms):
        raise RecipeError("there is no term to look for, or one of them is empty; give a word or a name")
    written = [term for term in terms if is_expression(term)]
    names = [term for term in terms if not is_expression(term)]
    if parts:
        names = [*names, *(part for name in names for part in parts_of(name))]
    forms = {*names, *(unicodedata.normalize(form, name) for name in names for form in ("NFC", "NFD"))}
    found = [_expression(term[1:-1]) for term in written]
    if forms:
        words = "|".join(_literal(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
        found.append(rf"(?<!{_WORD})(?:{words})(?!{_WORD})")
    return re.compile("|".join(found), re.IGNORECASE if ignore_case else 0)


def is_expression(term: str) -> bool:
    """Whether a term is a regular expression: it stands between slashes."""
    return len(term) > 2 and term[0] == term[-1] == "/"


def parts_of(name: str) -> list[str]:
    """A name's first and last word, without titles and initials; nothing for a name of one word.

    >>> parts_of("Dr. Ana M. Reyes Jr.")
    ['Ana', 'Reyes']
    """
    words = [word.strip(",.") for word in name.split()]
    own = [word for word in words if len(word) > 1 and word.casefold() not in _TITLES]
    return list(dict.fromkeys((own[0], own[-1]))) if own and len(words) > 1 else []


def _literal(name: str) -> str:
    """A pattern for the name as it may stand in a text."""
    spaced = re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(name))
    return re.sub(_APOSTROPHES, _APOSTROPHES, spaced)


def checked_expression(text: str) -> re.Pattern[str]:
    """A regular expression that finds something.

    Raises:
        RecipeError: it is malformed, or finds the empty text, which stands everywhere.
    """
    try:
        found = re.compile(text)
    except re.error as error:
        raise RecipeError(
            f"the regular expression {text!r} is malformed ({error}); mend it, or put a backslash before "
            "characters that stand for themselves"
        ) from None
    if found.search("") is not None:
        raise RecipeError(
            f"the regular expression {text!r} finds the empty text, which stands everywhere; let it need at "
            "least one character"
        )
    return found


def _expression(text: str) -> str:
    """A regular expression as one of several alternatives."""
    found = checked_expression(text)
    if found.groups and re.search(r"\\[1-9]|\(\?P=", text):
        raise RecipeError(
            f"the regular expression {text!r} refers back to a group of its own, which is not possible among "
            "several terms; write it without the reference"
        )
    flags = _FLAGS.match(text)
    return f"(?{flags[1]}:{text[flags.end() :]})" if flags else f"(?:{text})"


def read_terms(terms: str | Sequence[str], root: str | None = None) -> list[str]:
    """Terms as given, or those of a file: one a line; empty lines and those that begin with # are left out.

    Args:
        terms: a list, or a file: as given, below `root`, or beside the shipped recipes.
        root: a folder of data.

    Raises:
        RecipeError: no such file, or one without a term.
    """
    if not isinstance(terms, str):
        return list(terms)
    path = find_file(terms, root)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the terms in {terms} cannot be read ({error}); give a text file in UTF-8, one term a line"
        ) from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise RecipeError(f"{terms} holds no term; write one a line")
    return found


def find_file(name: str, root: str | None) -> Path:
    """A file that a recipe names: as given, below `root`, or beside the shipped recipes.

    Raises:
        RecipeError: there is none.
    """
    places = [Path(name).expanduser(), *([Path(root).expanduser() / name] if root else [])]
    places += [folder / name for folder in shipped.folders("recipes")]
    for place in places:
        if place.is_file():
            return place
    raise RecipeError(
        f"the file {name} does not exist, nor is it below data.root or beside the shipped recipes; check the "
        "path, or write the terms themselves as a list"
    )
