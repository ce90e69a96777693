"""docs/methods.md says what the code does: its table and the default settings in its sections."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from unlearnkit import lookup

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
#: Method -> its section, and its line of the table.
SECTIONS = {
    title: text
    for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])
    if title in lookup.methods()
}
ROWS = {row[1]: row[0].split("|") for row in re.finditer(r"^\| \[`(\w+)`\].*$", PAGE, re.MULTILINE)}


def _defaults(method: str) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(lookup.method(method).config)}


def test_every_section_has_a_line_in_the_table() -> None:
    assert ROWS.keys() == SECTIONS.keys()
    assert "npo" in ROWS


@pytest.mark.parametrize("method", SECTIONS)
def test_the_settings_are_the_defaults(method: str) -> None:
    """Numbers written as `name: number` are defaults; so is the retain term in the table."""
    defaults = _defaults(method)
    written = re.findall(r"`(\w+): ([-+.\de]+)`", SECTIONS[method])
    assert {name: float(value) for name, value in written} == {name: defaults[name] for name, _ in written}
    assert ROWS[method][5].split(",")[0].strip() == defaults["retain"]
