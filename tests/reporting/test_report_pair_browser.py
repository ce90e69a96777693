"""The report of a pair, and its comparison with what was distilled from it, in a real browser.

Whatever the tests look at is also kept as screenshots, under $UNLEARNKIT_ARTIFACTS if it is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import headless
import pytest
from fabricated_pairs import make_distilled

from unlearnkit.reporting import write_report

OVERLAPS = """(() => {
  const svg = document.querySelector('#alphas ~ figure svg');
  const boxes = Array.from(svg.querySelectorAll('text')).map(node => node.getBoundingClientRect());
  let found = 0;
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 2 && height > 4) { found += 1; }
  }));
  return [boxes.length, found];
})()"""
"""How many texts the plot over alpha has, and how many pairs of them cover each other."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[headless.Browser]:
    program = headless.find()
    if program is None:
        pytest.skip(f"no Chromium to open the report in; looked for {', '.join(headless.NAMES)}")
    with headless.Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_a_pair_and_its_comparison_can_be_read_in_both_modes(
    browser: headless.Browser, pair_run: Path, tmp_path: Path
) -> None:
    place = Path(os.environ.get("UNLEARNKIT_ARTIFACTS") or tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    distilled = make_distilled(tmp_path / "uld-distilled", pair_run)
    for name, folders in (("pair", pair_run), ("pair-distilled", [pair_run, distilled])):
        address = write_report(folders, tmp_path / name).html.as_uri()
        page = browser.open(address)
        page.size(1200)
        for scheme in ("light", "dark"):
            page.media(scheme)
            seen, low = page.contrasts()
            assert seen > 100
            assert low == []
            page.screenshot(place / f"{name}-{scheme}.png")
        assert page.problems == []
        assert set(page.requests) == {address}


def test_the_plot_over_alpha_is_named_and_its_texts_are_apart(
    browser: headless.Browser, pair_run: Path, tmp_path: Path
) -> None:
    page = browser.open(write_report(pair_run, tmp_path).html.as_uri())
    page.size(1200)
    texts, covered = page.js(OVERLAPS)
    assert texts > 20
    assert covered == 0
    label = "document.querySelector('#alphas ~ figure svg').getAttribute('aria-label')"
    assert page.js(label).startswith("Forgetting and keeping against alpha.")
    page.size(420)
    table = "document.querySelector('table.sweep').closest('.scroll')"
    assert page.js(f"{table}.scrollWidth > {table}.clientWidth")
    assert page.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
