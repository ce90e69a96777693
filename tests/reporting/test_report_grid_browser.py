"""The report of a comparison in a real browser: thirty groups, a narrow screen, paper, light and dark.

Whatever the tests look at is also kept as screenshots and a PDF, under $UNLEARNKIT_ARTIFACTS if it is set.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headless
import pytest
from fabricated_grid import cell, make_cell, write_comparison

from unlearnkit.reporting import write_grid_report

METHODS = ("npo", "grad_diff", "simnpo", "rpo", "idk_dpo", "rmu", "undial", "wga", "sat_imp", "ce_u")
RATES = (5e-6, 1e-5, 2e-5)
WIDER = "Array.from(document.querySelectorAll('.scroll')).filter(n => n.scrollWidth > n.clientWidth).length"
BOXES = """(() => {
  const svg = Array.from(document.querySelectorAll('figure svg'))[0];
  const whole = svg.getBoundingClientRect();
  return Array.from(svg.querySelectorAll('text')).map(node => {
    const box = node.getBoundingClientRect();
    return [node.textContent, box.left - whole.left, box.right - whole.right, box.top, box.bottom];
  });
})()"""


@pytest.fixture(scope="module")
def page(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[headless.Page]:
    """A report of thirty groups, of which one has failed in its only seed."""
    program = headless.find()
    if program is None:
        pytest.skip(f"no Chromium to open the report in; looked for {', '.join(headless.NAMES)}")
    folder = tmp_path_factory.mktemp("runs") / "compare"
    run = make(folder.parent / "source")
    cells = []
    for place, method in enumerate(METHODS):
        for step, rate in enumerate(RATES):
            numbers = {
                "forget_quality": 10.0 ** -(place + step),
                "statistic": 0.05 + 0.06 * place + 0.02 * step,
                "model_utility": 0.35 + 0.03 * place - 0.02 * step,
                "train": 100.0 + 20 * place,
            }
            if (method, step) != ("rmu", 2):
                cells.append(make_cell(folder, run, method, 0, rate, numbers))
    error = "an error of " + "many " * 60 + "words."
    cells.append(cell("rmu", 0, RATES[2], status="failed", error=error, run=""))
    address = write_grid_report(write_comparison(folder, cells)).html.as_uri()
    with headless.Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        page = browser.open(address)
        page.size(1200)
        page.go(address)
        yield page


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    folder = os.environ.get("UNLEARNKIT_ARTIFACTS")
    place = Path(folder) if folder else tmp_path_factory.mktemp("artifacts")
    place.mkdir(parents=True, exist_ok=True)
    return place


def test_it_opens_in_silence_and_no_table_is_wider_than_the_page(
    page: headless.Page, artifacts: Path
) -> None:
    page.size(1200)
    assert page.problems == []
    assert all(url.startswith("file:") for url in page.requests)
    assert page.js("document.querySelectorAll('table.groups tr[data-group]').length") == 30
    assert page.js("document.documentElement.scrollWidth") == 1200
    assert page.js(WIDER) == 0
    page.screenshot(artifacts / "grid.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(page: headless.Page, scheme: str) -> None:
    page.media(scheme)
    seen, low = page.contrasts()
    page.media()
    assert seen > 400
    assert low == []


def test_every_group_and_every_method_is_named_in_the_plot(page: headless.Page) -> None:
    """29 groups by their number and 10 methods in the legend, none cut off at the plot's sides."""
    page.size(1200)
    boxes = page.js(BOXES)
    texts = [text for text, *_ in boxes]
    assert set(METHODS) <= set(texts)
    failed = (
        3 * sorted(METHODS).index("rmu") + 3
    )  # its third learning rate; the numbers on the axes are no integers
    assert {str(number) for number in range(1, 31)} - set(texts) == {str(failed)}
    assert [text for text, left, right, _, _ in boxes if left < -1 or right > 1] == []
    legend = sorted((top, bottom) for text, _, _, top, bottom in boxes if text in METHODS)
    assert all(first[1] <= second[0] + 1 for first, second in itertools.pairwise(legend))


def test_points_are_seen_in_the_dark(page: headless.Page) -> None:
    """What is drawn in black without saying so stays black on a dark page."""
    unthemed = """Array.from(document.querySelectorAll('figure svg :is(use, path)')).filter(node => {
      const style = getComputedStyle(node);
      return style.fill === 'rgb(0, 0, 0)' && style.fillOpacity !== '0' && !node.closest('defs');
    }).length"""
    page.media("dark")
    found = page.js(unthemed)
    page.media()
    assert found == 0


def test_on_a_narrow_screen_only_tables_and_plots_scroll(page: headless.Page, artifacts: Path) -> None:
    page.size(375, 740)
    assert page.js("document.documentElement.scrollWidth") == 375
    assert page.js(WIDER) >= 2
    page.screenshot(artifacts / "grid_narrow.png")
    page.size(1200)


def test_on_paper_no_table_is_cut(page: headless.Page, artifacts: Path) -> None:
    """A4 less its margins is 182 mm, 688 CSS pixels, wide."""
    page.media("light", "print")
    page.size(688)
    widest = page.js("Math.max(...Array.from(document.querySelectorAll('table')).map(n => n.scrollWidth))")
    page.pdf(artifacts / "grid.pdf")
    page.media()
    page.size(1200)
    assert widest <= 688
