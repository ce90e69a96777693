"""The report in a real browser, opened from disk: it is quiet, asks for nothing, filters, and can be read.

Whatever the tests look at is also kept as screenshots and a PDF, under $UNLEARNKIT_ARTIFACTS if it is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headless
import pytest
from PIL import Image

from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import write_report

HOSTILE = "</script><img src=x onerror='document.title=1'> & <b>bold</b>"
ARABIC = "كان والد الكاتبة صانع ساعات في تونس."
UNBROKEN = "长" * 300 + "x" * 300
TEXTS = (HOSTILE, ARABIC, UNBROKEN, "", "same words again and again " * 60)
TABLE = "Array.from(document.querySelectorAll('#examples-body tr'))"
ROWS = f"{TABLE}.map(row => row.querySelector('.meta').textContent.split(' · ')[1])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[headless.Browser]:
    program = headless.find()
    if program is None:
        pytest.skip(f"no Chromium to open the report in; looked for {', '.join(headless.NAMES)}")
    with headless.Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    folder = os.environ.get("UNLEARNKIT_ARTIFACTS")
    place = Path(folder) if folder else tmp_path_factory.mktemp("artifacts")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="module")
def report(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report of a run that answers in several scripts, with nothing, and with markup."""
    run = tmp_path_factory.mktemp("browser") / "npo_full"
    shutil.copytree(full_run, run)
    evaluation = EvalRun.load(run / "eval" / "tofu")
    frame = evaluation.records.copy()
    asked = frame.index[(frame["probe"] == "generate_answer") & (frame["dataset"] == "forget")]
    for place, text in zip(asked, TEXTS, strict=False):
        frame.loc[place, "text"] = text
    EvalRun(frame, evaluation.meta).save(run / "eval" / "tofu")
    return write_report(run).html.as_uri()


@pytest.fixture(scope="module")
def tab(browser: headless.Browser, report: str) -> headless.Page:
    """One tab for all tests; each loads what it needs."""
    return browser.open(report)


@pytest.fixture
def page(tab: headless.Page, report: str) -> headless.Page:
    """The report, loaded afresh in a wide, light window."""
    tab.media()
    tab.size(1200)
    tab.go(report)
    return tab


@pytest.fixture(scope="module")
def rows(report: str) -> list[dict[str, Any]]:
    html = Path(report.removeprefix("file://")).read_text()
    match = re.search(r'id="examples-data">(.*?)</script>', html, re.DOTALL)
    assert match
    return list(json.loads(match.group(1))["rows"])


def by_leak(row: dict[str, Any]) -> tuple[float, float]:
    return -row["worst"], -row["leak"]


def test_it_opens_from_disk_in_silence_and_asks_for_nothing(page: headless.Page, report: str) -> None:
    assert page.js("document.querySelectorAll('svg').length") >= 9
    assert page.js("document.title").startswith("npo_full")
    assert page.problems == []
    assert set(page.requests) == {report}
    html = Path(report.removeprefix("file://")).read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_it_shows_the_forget_examples_that_leak_most_first(page: headless.Page, rows: Any) -> None:
    forget = sorted((row for row in rows if row["dataset"] == "forget"), key=by_leak)
    assert page.js(ROWS) == [row["id"] for row in forget[:10]]
    assert page.js("document.getElementById('count').textContent") == f"40 of {len(rows)} examples"
    assert page.js("document.getElementById('place').textContent") == "page 1 of 4"
    assert page.js("location.hash") == ""  # looking changes no address


VIEWS: dict[str, Any] = {
    "#set=retain&order=given": (lambda row: row["dataset"] == "retain", None),
    "#set=*&order=given&page=2": (lambda row: True, None),
    "#show=returns": (lambda row: "returns" in row["flags"] and row["dataset"] == "forget", by_leak),
    "#set=*&show=empty": (lambda row: "empty" in row["flags"], by_leak),
    "#show=repeats&order=given": (lambda row: "repeats" in row["flags"], None),
    "#set=retain&order=least": (
        lambda row: row["dataset"] == "retain",
        lambda row: abs(row["change"] or 0.0),
    ),
    "#find=watchmaker+kyoto": (
        lambda row: (
            row["dataset"] == "forget"
            and {"watchmaker", "kyoto"} <= set(re.findall(r"\w+", str(row).lower()))
        ),
        by_leak,
    ),
    "#find=%D8%B3%D8%A7%D8%B9%D8%A7%D8%AA": (lambda row: ARABIC in str(row), by_leak),
    "#find=nothing-has-this": (lambda row: False, by_leak),
    "#set=nonsense&show=nonsense&order=nonsense&page=99": (lambda row: row["dataset"] == "forget", by_leak),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_link_to_a_view_leads_to_it(page: headless.Page, report: str, rows: Any, view: str) -> None:
    keep, order = VIEWS[view]
    found = [row for row in rows if keep(row)]
    found = sorted(found, key=order) if order else found
    number = min(int(view.partition("page=")[2] or 1), max(1, -(-len(found) // 10)))
    expected = [row["id"] for row in found[10 * number - 10 : 10 * number]]
    assert expected or "nothing" in view
    page.go(report + view)
    assert page.js(ROWS) == expected
    count = page.js("document.getElementById('count').textContent")
    assert count.startswith(f"{len(found)} of {len(rows)}" if found else "No example")


def test_the_link_from_the_attacks_leads_to_the_answers_that_came_back(page: headless.Page) -> None:
    arrived = "new Promise(done => addEventListener('hashchange', () => setTimeout(done), {once: true}))"
    link = "document.querySelector('a[href=\"#show=returns&order=leaked\"]')"
    page.js(f"(() => {{ const there = {arrived}; {link}.click(); return there; }})()")
    badges = page.js(f"{TABLE}.map(row => row.querySelector('.badge.returns').textContent)")
    assert set(badges) == {"returns"}
    assert page.js("document.activeElement.id") == "examples-title"
    page.js(f"document.body.tabIndex = -1, document.body.focus(), {link}.click()")
    assert page.js("document.activeElement.id") == "examples-title"  # a second time, too
    opened = page.js("document.querySelector('#examples-body details.leaks[open]').textContent")
    assert re.match(r"(Under attack|Worst of 4 samples).*ROUGE-L [01]\.\d\d", opened)


def focus(page: headless.Page) -> str:
    return str(page.js("document.activeElement.id || document.activeElement.textContent.trim()"))


def test_it_can_be_used_with_the_keyboard_alone(page: headless.Page) -> None:
    page.press("Tab")
    assert focus(page) == "Skip to the answers"
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter", "Tab")
    assert focus(page) == "find"
    page.press(*"kyo")
    page.js("void dispatchEvent(new HashChangeEvent('hashchange'))")  # of the link: it may come late
    page.press(*"to")
    assert page.js("location.hash") == "#find=kyoto"
    assert page.js(f"{TABLE}.every(row => /kyoto/i.test(row.textContent))")
    page.press("Tab")
    assert focus(page) == "set"
    page.press("Home")  # the first choice: all sets
    assert page.js("location.hash") == "#find=kyoto&set=*"
    page.press("Tab", "Tab", "Tab", "Enter")
    assert focus(page) == "Reset"
    assert page.js("Array.from(controls.elements).slice(0, 2).map(field => field.value)") == ["", "forget"]
    page.press("Tab")
    assert focus(page) == "next"  # the button back is switched off on the first page
    place = "document.getElementById('place').textContent"
    page.press("Enter")
    assert page.js(place) == "page 2 of 4"
    assert page.js("location.hash") == "#page=2"
    page.press("ArrowRight", "ArrowRight")
    assert page.js(place) == "page 4 of 4"
    # The button forward is switched off here, and the keyboard's place moves on to the other one.
    assert focus(page) == "previous"
    assert page.js("document.getElementById('next').disabled")
    page.press("Home")
    assert page.js(place) == "page 1 of 4"
    assert focus(page) == "next"
    page.press("End", "ArrowLeft")
    assert page.js(place) == "page 3 of 4"
    assert page.problems == []


def test_every_control_has_a_name_and_the_count_is_read_out(page: headless.Page) -> None:
    unnamed = (
        "Array.from(document.querySelectorAll('input, select')).filter(node => !node.labels.length).length"
    )
    assert page.js(unnamed) == 0
    assert page.js("document.querySelectorAll('#controls select, #controls input').length") == 4
    assert page.js("document.querySelectorAll('button:empty, a:empty').length") == 0
    for name in ("count", "place"):
        assert page.js(f"document.getElementById('{name}').getAttribute('aria-live')") == "polite"
    assert page.js(f"{TABLE}.every(row => row.closest('[role=table]') && row.matches('[role=row]'))")
    assert page.js(
        "Array.from(document.querySelectorAll('svg')).every(svg => svg.getAttribute('aria-label'))"
    )


def test_a_models_text_stays_text_in_every_script(page: headless.Page, report: str) -> None:
    page.go(f"{report}#order=given")
    assert page.js("document.querySelectorAll('#examples-body :is(img, b, script)').length") == 0
    assert page.js("document.title") != "1"
    answers = page.js(f"{TABLE}.slice(0, 4).map(row => row.children[2].firstChild.textContent)")
    assert answers[:2] == [HOSTILE, ARABIC]
    assert answers[3] == "(empty answer)"
    style = f"getComputedStyle({TABLE}[1].children[2].firstChild)"
    assert page.js(f"{style}.direction") == "rtl"
    assert page.js(
        f"{TABLE}.every(row => Array.from(row.children).every(td => td.scrollWidth <= td.clientWidth))"
    )
    # A long answer is folded, never cut short: both parts together are the whole.
    folded = f"{TABLE}[4].children[2].firstChild.querySelectorAll('.said')"
    parts = page.js(f"Array.from({folded}).map(node => node.textContent)")
    assert len(parts) == 2
    assert parts[0].removesuffix(" …") + parts[1].removeprefix("… ") == TEXTS[4]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_in_dark_mode(
    page: headless.Page, scheme: str, artifacts: Path
) -> None:
    page.media(scheme)
    seen, low = page.contrasts()
    assert seen > 400
    assert low == []
    page.screenshot(artifacts / f"report_{scheme}.png")
    with Image.open(artifacts / f"report_{scheme}.png") as image:
        shades = image.convert("L").resize((1, 1)).getpixel((0, 0))
        assert (shades < 60) if scheme == "dark" else (shades > 220)


def test_the_plots_follow_the_mode(page: headless.Page) -> None:
    drawn = "getComputedStyle(document.querySelector('svg text')).fill"
    light = page.js(drawn)
    page.media("dark")
    assert page.js(drawn) != light


def test_on_a_narrow_screen_nothing_is_lost(page: headless.Page, artifacts: Path) -> None:
    page.size(360, 740)
    page.js("dispatchEvent(new Event('resize'))")
    assert page.js("document.documentElement.scrollWidth") == 360
    heads = page.js(
        f"Array.from({TABLE}[0].children).map(cell => getComputedStyle(cell, '::before').content)"
    )
    assert heads[1:4] == ['"Before unlearning"', '"After unlearning"', '"Retain model"']
    # What is wider than the screen scrolls, and a keyboard gets there.
    wide = "Array.from(document.querySelectorAll('figure.wide'))"
    assert page.js(f"{wide}.every(node => node.scrollWidth > 700 && node.tabIndex === 0)")
    page.screenshot(artifacts / "report_narrow.png")


def test_on_paper_there_is_all_evidence_and_no_control(page: headless.Page, artifacts: Path) -> None:
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.js(folded)
    assert before > 3
    page.js(f"addEventListener('beforeprint', () => {{ window.foldedOnPaper = {folded}; }})")
    paper = page.pdf(artifacts / "report.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) > 4
    assert page.js("window.foldedOnPaper") == 0
    assert page.js(folded) == before
    page.media("dark", "print")
    for name in ("#controls", "#turn", "#count", "nav.contents", ".skip"):
        assert page.js(f"getComputedStyle(document.querySelector('{name}')).display") == "none"
    note = page.js("document.getElementById('printed').innerText")
    assert note.startswith("On paper: 10 of 40 chosen examples")
    assert "most leaked first" in note
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.js("getComputedStyle(document.querySelector('main a')).textDecorationLine") == "none"


def test_other_reports_open_in_silence_too(
    browser: headless.Browser, complete_run: Path, full_run: Path, tmp_path: Path
) -> None:
    for name, folders in (("plain", complete_run), ("compared", [complete_run, full_run])):
        address = write_report(folders, tmp_path / name).html.as_uri()
        page = browser.open(address)
        assert page.problems == []
        assert set(page.requests) == {address}
        for scheme in ("light", "dark"):
            page.media(scheme)
            assert page.contrasts()[1] == []
    html = (tmp_path / "plain" / "report.html").read_text()
    section = html.partition('<h2 id="attacks">')[2].partition("<h2")[0]
    assert "No attack was run" in section
    assert "<svg" not in section
