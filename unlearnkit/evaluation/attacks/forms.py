"""Other forms of a question and its answer, as text: cloze, statement to go on with, multiple choice.

Pure functions of strings and rows, without a model. Words are found in every script: where words have no
spaces between them (Han, Thai, ...), each character counts as a word. What a form needs is taken from the row
alone, so that the same row gives the same form wherever it stands.
"""

from __future__ import annotations

import functools
import hashlib
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearnkit.data.formats import prompt_and_answer
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.metrics.rouge import unicode_tokens
from unlearnkit.evaluation.questions import text_of
from unlearnkit.strict import did_you_mean

BLANK = "____"
#: Words that tell nothing, in English and Chinese; in other languages the blank is only bounded by length.
_STOP_TEXT = (
    "a about after again also although among an and any are as at be became because been before being "
    "between both but by can could despite did do does during each for from had has have he her hers him "
    "his how i if in include including into is it its itself like many may more most much my named no nor "
    "not of often on one only or other our over regarding s several she should so some such than that the "
    "their them themselves then there thereby these they this those through throughout thus to under "
    "until upon very was we well were what when where which while who whom whose why will with within "
    "without would you your "
    "的 了 是 在 和 与 之 一 个 他 她 它 这 那 也 都 而 及 为 被 有 于 以 其"
)
_STOP = frozenset(_STOP_TEXT.split())
#: These join two parts of one word: Al-Hashim, Symphony's; between digits also 05/11/1991, 10,000 and 10:30.
_JOINERS, _DIGIT_JOINERS = frozenset("-'\N{RIGHT SINGLE QUOTATION MARK}\u2010\u2011._"), frozenset("/,:")
#: Written at a word without a space, and part of it: LGBTQ+, 50%, #1, $5.
_SIGNS = frozenset("+%#@&")
_QUOTES = frozenset("\"'\u201c\u2018\u00ab")  # before a title: "The Salt Almanac"
_SMALL = frozenset(("of", "the", "and", "in", "for", "to", "de", "la", "von", "van"))


@dataclass(frozen=True)
class Word:
    """`text[start:end]`, and the folded form that is compared with other words."""

    start: int
    end: int
    key: str
    named: bool  # begins with a capital letter or has a digit


def words(text: str) -> list[Word]:
    """The words of a text in order; in scripts without spaces one word per character."""
    spans: list[tuple[int, int]] = []
    start, i = 0, 0
    while i < len(text):
        if not _in_word(text, i):
            i += 1
            continue
        start, i = i, i + 1
        while i < len(text) and _in_word(text, i) and not _alone(text, start, i):
            i += 1
        spans.append((start, i))
    found = []
    for start, end in spans:
        piece = text[start:end]
        if not unicode_tokens(piece):
            continue  # a lone sign
        key = unicodedata.normalize("NFKC", piece).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        key = key.removesuffix("'s").rstrip("'")
        if len(key) > 3 and key.isascii() and key.endswith("s") and not key.endswith("ss"):
            key = key[:-1]  # book, books
        named = piece[0].isupper() or any(c.isdigit() for c in piece)
        found.append(Word(start, end, key, named))
    return found


def _in_word(text: str, i: int) -> bool:
    char = text[i]
    if unicodedata.category(char)[0] in "LNM" or char in _SIGNS or unicodedata.category(char) == "Sc":
        return True
    if not 0 < i < len(text) - 1:
        return False
    before, after = text[i - 1], text[i + 1]
    if char in _DIGIT_JOINERS:
        return before.isdigit() and after.isdigit()
    return char in _JOINERS and before.isalnum() and after.isalnum()


def _alone(text: str, start: int, i: int) -> bool:
    """Whether the character at `i` begins a word although the one before it is in a word."""
    if unicodedata.category(text[i])[0] == "M":
        return False
    return _unspaced(text[i]) or _unspaced(text[i - 1])


@functools.lru_cache(maxsize=1 << 14)
def _unspaced(char: str) -> bool:
    """Whether two of these characters are two words."""
    return len(unicode_tokens(char * 2)) == 2


def telling_span(question: str, answer: str) -> tuple[int, int] | None:
    """Where in the answer the words stand that tell most: `answer[start:end]`; None without any word.

    The longest run of words that are neither stop words nor in the question; names and figures count twice.
    Among equals the later one, since an answer's news comes last. A run ends at punctuation, except for a
    comma between names (Dhaka, Bangladesh) and a small word between names (Sands of Time). It holds half of
    the answer's words at most, all of them when there are no more than three.
    """
    found = words(answer)
    if not found:
        return None
    asked = {w.key for w in words(question)}
    most = len(found) if len(found) <= 3 else len(found) // 2
    # Where the answer says nothing new, a blank still asks for what it repeats.
    telling = [_tells(w) for w in found]
    news = [tells and w.key not in asked for tells, w in zip(telling, found, strict=True)]
    candidates = next(one for one in (news, telling, [True] * len(found)) if any(one))
    runs = _runs(found, _with_names_whole(found, candidates, answer), answer)
    best: tuple[tuple[Any, ...], tuple[int, int]] | None = None
    for first, last in runs:
        size = min(most, last - first)
        for begin in range(first, last - size + 1):
            part = found[begin : begin + size]
            start, end = part[0].start, part[-1].end
            # A span that the sentence has twice would be read off its other place.
            once = answer.casefold().count(answer[start:end].casefold()) == 1
            weight = sum(1 + _is_name(found, begin + k) for k in range(size))
            rank = (once, weight, start)
            if best is None or rank > best[0]:
                best = (rank, (start, end))
    return best[1] if best else None


def _is_name(found: Sequence[Word], i: int) -> bool:
    return found[i].named and i > 0  # the first word of a text has a capital letter anyway


def _tells(word: Word) -> bool:
    """Whether a word is more than grammar; so are all but the endings and particles of Japanese."""
    return word.key not in _STOP and not all("\u3040" <= char <= "\u309f" for char in word.key)


def _with_names_whole(found: Sequence[Word], candidates: Sequence[bool], text: str) -> list[bool]:
    """Which words may be blanked: small words in names belong to them (Sands of Time, "The Salt Almanac")."""
    opened = list(candidates)
    for i, word in enumerate(found[:-1]):
        if word.named and text[max(0, word.start - 1)] in _QUOTES and opened[i + 1]:
            opened[i] = opened[i] or _joined(found, i, text)
    for i in range(1, len(found) - 1):
        after = i + 1 if found[i + 1].named else min(i + 2, len(found) - 1)
        ends = (found[i - 1], found[after])
        within = all(w.key in _SMALL for w in found[i:after])
        if within and all(w.named for w in ends) and opened[i - 1] and opened[after]:
            joined = all(_joined(found, k, text) for k in range(i - 1, after))
            opened[i:after] = [joined] * (after - i)
    return opened


def _runs(found: Sequence[Word], opened: Sequence[bool], text: str) -> list[tuple[int, int]]:
    """(first, after the last) of each longest run of open words without punctuation in between."""
    runs: list[tuple[int, int]] = []
    for i, is_open in enumerate(opened):
        if not is_open:
            continue
        if runs and runs[-1][1] == i and _joined(found, i - 1, text):
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


def _joined(found: Sequence[Word], i: int, text: str) -> bool:
    """Whether word `i` and the next one can stand in one blank."""
    between = text[found[i].end : found[i + 1].start]
    return not between.strip(" \t\N{MIDDLE DOT}\N{KATAKANA MIDDLE DOT}-&/") or (
        between == ", " and found[i].named and found[i + 1].named
    )


def cloze(question: str, answer: str) -> tuple[str, str] | None:
    """(the answer with its most telling span blanked, that span); the blank filled in gives the answer back.

    None for an answer without words, or one that has a blank already.
    """
    span = telling_span(question, answer)
    if span is None or BLANK in answer:
        return None
    start, end = span
    return answer[:start] + BLANK + answer[end:], answer[start:end]


def halves(question: str, answer: str) -> tuple[str, str] | None:
    """(the first half of the answer's words, the rest), which together are the answer.

    A name across the middle is not cut: it is the first part's where the question tells it, else the rest's,
    as long as both have a word. An opening quote or bracket at the border is the rest's, white space the
    first part's. None for less than two words.
    """
    found = words(answer)
    if len(found) < 2:
        return None
    middle = _beside_a_name(found, answer, {w.key for w in words(question)})
    before, after = found[middle - 1].end, found[middle].start
    spaces = [i for i in range(before, after) if answer[i].isspace()]
    border = spaces[-1] + 1 if spaces else after
    while not spaces and border > before and unicodedata.category(answer[border - 1]) in ("Ps", "Pi"):
        border -= 1
    return answer[:border], answer[border:]


def _beside_a_name(found: Sequence[Word], text: str, asked: set[str]) -> int:
    """The number of words in the first half, one at least and not all."""
    first = last = middle = len(found) // 2

    def across(k: int) -> bool:
        return 0 < k < len(found) and found[k - 1].named and found[k].named and _joined(found, k - 1, text)

    while across(first):
        first -= 1
    while across(last):
        last += 1
    told = all(w.key in asked for w in found[first:last])
    choices = (last, first) if told else (first, last)
    return next((one for one in choices if 0 < one < len(found)), middle)


def framed(question: str, instruction: str, statement: str) -> str:
    """The instruction and the statement, after the question where the statement does not name its subject.

    "He was born in ____" does not. A statement does when half of the names in the question are in it, or half
    of the telling words where the question has no name.
    """
    asked = words(question)
    names = {w.key for w in asked[1:] if w.named} or {w.key for w in asked if _tells(w)}
    said = {w.key for w in words(statement)}
    text = f"{instruction} {statement}".strip()
    return text if names and 2 * len(names & said) >= len(names) else f"{question.strip()}\n{text}".strip()


def options(right: str, wrong: Sequence[str], *, seed: int, example_id: str) -> list[str]:
    """The right option and the wrong ones, each once, in an order drawn by the seed and the example's id."""
    others = [one for one in dict.fromkeys(w.strip() for w in wrong) if one and one != right.strip()]
    chosen = [right.strip(), *others[: len(string.ascii_uppercase) - 1]]
    return sorted(chosen, key=lambda one: draw(seed, example_id, one))


def lettered(choices: Sequence[str]) -> str:
    """One option a line: "A) ..."."""
    return "\n".join(f"{a}) {one}" for a, one in zip(string.ascii_uppercase, choices, strict=False))


def draw(seed: int, *names: str) -> int:
    """A number in [0, 2^64) that depends on the seed and the names only."""
    text = "\x1f".join((str(seed), *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def messages_of(prompt: Any) -> list[dict[str, Any]]:
    """A prompt as messages, without the keys that are null."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{k: v for k, v in message.items() if v is not None} for message in prompt]


def question_of(row: Mapping[str, Any]) -> str:
    """What a row asks: its prompt, or the last message of the user's in it."""
    prompt, _ = prompt_and_answer(row)
    asked = [m["content"] for m in messages_of(prompt) if m["role"] == "user"]
    return str(asked[-1]) if asked else ""


def asking(row: Mapping[str, Any], question: str, completion: Any = None, **columns: Any) -> dict[str, Any]:
    """The row with another question; of a conversation only the last message of the user's changes.

    Args:
        completion: another answer; None keeps the row's own.
        columns: other columns that change with them.
    """
    prompt, answer = prompt_and_answer(row)
    if not isinstance(prompt, str):
        prompt = messages_of(prompt)
        last = max((i for i, m in enumerate(prompt) if m["role"] == "user"), default=None)
        if last is None:
            prompt.append({"role": "user", "content": question})
        else:
            prompt[last]["content"] = question
    else:
        prompt = question
    kept = {k: v for k, v in row.items() if k not in ("messages", "text")}
    return {**kept, "prompt": prompt, "completion": answer if completion is None else completion, **columns}


def answer_of(row: Mapping[str, Any]) -> str:
    """The row's answer as text, without white space around it."""
    return text_of(prompt_and_answer(row)[1]).strip()


def require_dataset(subject: Subject, dataset: str, attack: str) -> Sequence[Mapping[str, Any]]:
    """The rows of a data set.

    Raises:
        RecipeError: the suite asks no such data set.
    """
    if dataset not in subject.rows:
        raise RecipeError(
            f"the attack {attack} changes the data set {dataset!r}, which is not asked"
            f"{did_you_mean(dataset, subject.rows)}; name one with {attack}.dataset"
        )
    return subject.rows[dataset]


def answered_rows(subject: Subject, dataset: str, attack: str) -> list[Mapping[str, Any]]:
    """The rows of a data set that have a question and an answer; documents are left out.

    Raises:
        RecipeError: the suite asks no such data set.
        DataError: all its rows are documents.
    """
    rows = [row for row in require_dataset(subject, dataset, attack) if row.get("text") is None]
    if not rows:
        raise DataError(
            f"the attack {attack} changes questions, but {dataset!r} has none, only texts; name a data set "
            f"of questions and answers with {attack}.dataset"
        )
    return rows
