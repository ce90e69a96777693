"""Names and other terms: what counts as finding one, and where a list of them is looked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.terms import parts_of, read_terms, term_pattern
from unlearnkit.errors import RecipeError


def words(pattern, text):
    return [match[0] for match in pattern.finditer(text)]


def test_names_are_whole_words_also_before_an_apostrophe():
    pattern = term_pattern(["Ana Reyes", "C++"], parts=False)
    text = "Ana Reyes's C++, Ana  Reyes’ and Ana\nReyes, but no Mariana Reyes, Ana Reyesa or ana reyes."
    assert words(pattern, text) == ["Ana Reyes", "C++", "Ana  Reyes", "Ana\nReyes"]
    assert words(term_pattern(["Ana Reyes"], parts=False, ignore_case=True), "ana reyes") == ["ana reyes"]


def test_parts_are_the_first_and_the_last_word_and_the_whole_is_found_first():
    pattern = term_pattern(["Ana María Reyes"], parts=True)
    assert words(pattern, "Ana María Reyes: Ana, María, Reyes.") == ["Ana María Reyes", "Ana", "Reyes"]
    assert parts_of("Dr. Ana M. Reyes, Jr.") == ["Ana", "Reyes"]
    assert parts_of("J. K. Rowling") == ["Rowling"]
    assert parts_of("Hina") == parts_of("J. K.") == []


def test_a_letter_with_a_mark_is_one_however_it_is_written():
    """ "é" may be one character or two; the second alone is no end of a word."""
    pattern = term_pattern(["José", "O'Brien"], parts=False)
    two = "Jose\N{COMBINING ACUTE ACCENT}"
    assert words(pattern, f"José {two} O’Brien") == ["José", two, "O’Brien"]
    assert words(term_pattern(["Jose"], parts=False), "Jose\N{COMBINING ACUTE ACCENT}") == []


def test_a_term_between_slashes_is_a_regular_expression():
    pattern = term_pattern([r"/(?i)volde\w+/", r"/\d{4}/", "Ana Reyes"], parts=True)
    assert words(pattern, "VOLDEMORT in 1984, Ana") == ["VOLDEMORT", "1984", "Ana"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "there is no term"),
        (["Ana", " "], "one of them is empty"),
        (["/(/"], r"'\(' is malformed.*mend it"),
        (["/a*/"], r"'a\*' finds the empty text"),
        ([r"/(a)\1/"], "refers back"),
    ],
)
def test_terms_that_cannot_be_used(terms, message):
    with pytest.raises(RecipeError, match=message):
        term_pattern(terms, parts=True)


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=6), min_size=1
    )
)
def test_every_term_is_found_where_it_stands_alone(terms):
    terms = [term.strip() for term in terms if term.strip() and "/" not in term]
    for term in terms:
        assert term_pattern(terms, parts=False).fullmatch(term) is not None


def test_a_file_of_terms(tmp_path, monkeypatch):
    """As given, below the root, or beside the shipped recipes; # begins a comment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "names.txt"
    path.write_text("\N{BYTE ORDER MARK}# who\nAna Reyes\n\n  Bo Li \n", encoding="utf-8")
    assert read_terms(str(path)) == read_terms("names.txt", root="data") == ["Ana Reyes", "Bo Li"]
    assert read_terms(["Ana"]) == ["Ana"]
    assert len(read_terms("tofu_tiny/author_names.txt")) > 100
    path.write_text("# nobody\n")
    for name, message in (("none.txt", "none.txt does not exist"), (str(path), "holds no term")):
        with pytest.raises(RecipeError, match=message):
            read_terms(name)
