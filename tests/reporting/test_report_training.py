"""Reports on texts by heart and on mentions: verdicts from values set by hand, and no word of forgetting."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.evaluation.records import EvalRun, new_records
from unlearnkit.evaluation.results import compute_metrics, described
from unlearnkit.evaluation.suite import load_suite
from unlearnkit.reporting import write_report
from unlearnkit.reporting.answers import answer_rows
from unlearnkit.reporting.load import load_run
from unlearnkit.reporting.verdict import Verdict, verdict_of

CODES = (Path(__file__).parents[2] / "docs" / "summary.md").read_text(encoding="utf-8")
Rows = list[dict[str, Any]]
TRUE = [1, 2, 3, 4]


def texts(whole: int, of: int, *, said: list[int] | None = None) -> Rows:
    """Continuations: `whole` of `of` texts word for word, the others as `said` (default: nothing of it)."""
    rows = []
    for i in range(of):
        tokens = TRUE if i < whole else said or [7, 8]
        row = {"probe": "continue_text", "dataset": "forget", "field": "continuation", "prompt": "Text."}
        row |= {"example_id": f"e{i:03}", "reference_tokens": TRUE, "tokens": tokens, "num_tokens": 4}
        row |= {"reference_text": " ".join(map(str, TRUE)), "text": " ".join(map(str, tokens))}
        rows.append(row)
    return rows


def answers(naming: int, of: int, logp: float, *, text: str = "She wrote elegies of the sea.") -> Rows:
    """Answers of which `naming` say the name, and the log-prob of each low-risk token."""
    listed = {"probe": "list_terms", "dataset": "terms", "example_id": "t", "field": "term", "text": "Reyes"}
    rows: Rows = [listed]
    for i in range(of):
        shared = {"dataset": "questions", "example_id": f"e{i:03}", "prompt": "Who is Reyes?"}
        shared["reference_text"] = "Reyes wrote elegies."
        said = f"Reyes wrote. {text}" if i < naming else text
        rows.append({**shared, "probe": "generate_answer", "field": "generation", "text": said})
        numbers = {"logps": [-9.0, logp], "risky": [True, False], "num_tokens": 2, "hits": [True, True]}
        numbers |= {"means": [-1.0, -1.0], "variances": [1.0, 1.0]}
        rows.append({**shared, "probe": "answer_likelihood", "field": "answer", **numbers})
    return rows


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Verdict]:
    """`judged(suite, rows, reference)`: the verdict; the folders of both evaluations are kept."""

    def save(name: str, suite_name: str, rows: Rows, role: str, reference: Any = None) -> Path:
        suite, records = load_suite(suite_name), new_records(rows)
        metrics = compute_metrics(suite, records, reference)
        meta = {
            "format": 1, "suite": suite.name, "suite_version": suite.version, "role": role, "label": role,
            "fingerprint": {}, "metrics": described(metrics, suite),
        }  # fmt: skip
        EvalRun(records, meta).save(tmp_path / name)
        return tmp_path / name

    def judge(suite: str, rows: Rows, reference: Rows | None = None) -> Verdict:
        beside = {}
        if reference is not None:
            beside["retain"] = save("reference", suite, reference, "retain")
        own = save("own", suite, rows, "unlearned", None if reference is None else new_records(reference))
        return verdict_of(load_run(own, beside=beside))

    return judge


@pytest.mark.parametrize(
    ("own", "control", "code", "tone", "headline"),
    [
        (
            (40, 40),
            (0, 40),
            "memorised",
            "bad",
            "continues 100 % of 40 texts word for word; a model that nev",
        ),
        (
            (0, 40),
            (0, 40),
            "not_memorised",
            "good",
            "0 % of 40 .* continues 0 %: nothing was found to be mem",
        ),
        ((1, 40), (0, 40), "perhaps_memorised", "mixed", "2 % of 40 .*; the difference may be chance"),
        ((5, 40), None, "repeats_texts", "unknown", "continues 12 % of 40 texts word for word.$"),
    ],
)
def test_texts(
    judged: Callable[..., Verdict],
    own: tuple[int, int], control: tuple[int, int] | None, code: str, tone: str, headline: str,
) -> None:  # fmt: skip
    found = judged("memorization", texts(*own), None if control is None else texts(*control))
    assert (found.code, found.tone) == (code, tone)
    assert f"`{code}`" in CODES
    assert re.search(headline, found.headline), found.headline
    if control is None:
        assert "No model that never saw the texts was evaluated" in found.text


def test_words_that_are_repeated_without_whole_texts(judged: Callable[..., Verdict]) -> None:
    """3 of 4 words of each text, none whole: ROUGE-L 0.75 against 0."""
    found = judged("memorization", texts(0, 40, said=[1, 2, 3, 9]), texts(0, 40))
    assert (found.code, found.tone) == ("partly_memorised", "mixed")
    assert "ROUGE-L of the continuations is 0.750, 0.000 for a model" in found.text


@pytest.mark.parametrize(
    ("own", "reference", "code", "tone", "headline"),
    [
        (
            (0, -1.05),
            (30, -1.0),
            "seldom_mentions",
            "good",
            "0 % of 40 .* reference does in 75 %, and what sta",
        ),
        ((0, -1.5), (30, -1.0), "mentions_less_understands_less", "mixed", "is understood less well"),
        (
            (8, -1.0),
            (30, -1.0),
            "mentions_less",
            "mixed",
            "in 20 % of 40 answers; the reference does in 75 %",
        ),
        ((29, -1.0), (30, -1.0), "mentions", "bad", "72 % of 40 answers; the reference does in 75 %.$"),
        ((29, -1.0), None, "mentions", "unknown", "in 72 % of 40 answers.$"),
        ((0, -1.0), None, "seldom_mentions", "mixed", "in 0 % of 40 answers.$"),
    ],
)
def test_mentions(
    judged: Callable[..., Verdict],
    own: tuple[int, float], reference: tuple[int, float] | None, code: str, tone: str, headline: str,
) -> None:  # fmt: skip
    other = None if reference is None else answers(reference[0], 40, reference[1])
    found = judged("mentions", answers(own[0], 40, own[1]), other)
    assert (found.code, found.tone) == (code, tone)
    assert f"`{code}`" in CODES
    assert re.search(headline, found.headline), found.headline
    compared = "was not compared with a reference" if reference is None else "nats"
    assert compared in found.text


def test_answers_that_go_astray_are_told(judged: Callable[..., Verdict]) -> None:
    """No name, the right tokens as likely, and nothing of the right answer in its own: ROUGE-L 0 of 0.5."""
    found = judged(
        "mentions", answers(0, 40, -1.0, text="Nobody can tell."), answers(30, 40, -1.0, text="wrote")
    )
    assert (found.code, found.tone) == ("seldom_mentions", "mixed")
    assert "understood about as well; its own answers go astray." in found.headline


def test_babble_says_no_names_and_is_no_success(judged: Callable[..., Verdict]) -> None:
    babble = answers(0, 40, -1.0, text="and the sea " * 12)
    found = judged("mentions", babble, answers(30, 40, -1.0))
    assert (found.code, found.tone) == ("collapsed", "bad")


@pytest.mark.parametrize(
    ("suite", "own", "reference"),
    [
        ("memorization", texts(9, 10), texts(0, 10)),
        ("mentions", answers(1, 10, -1.0), answers(9, 10, -1.0)),
    ],
)
def test_the_report_speaks_of_its_suite(
    judged: Callable[..., Verdict], tmp_path: Path, suite: str, own: Rows, reference: Rows
) -> None:
    judged(suite, own, reference)
    written = write_report(tmp_path / "own", retain=tmp_path / "reference")
    for page in (written.html.read_text(), written.markdown.read_text()):
        text = re.sub(r"(?s)<(script|style).*?</\1>|<[^>]+>", " ", page)
        wrong = "forgot|unlearned [(]|under attack|forget quality|leaked"
        assert not re.findall(f"(?i)[^.]*(?:{wrong})[^.]*", text)
        assert "valuating the this" not in text
        assert ("Retain (control)" if suite == "memorization" else "Reference") in text
        if suite == "mentions":
            assert "retain model" not in text.lower()
            assert "Terms looked for: 1." in text
            assert "the list of terms" in text, "the glossary"
        else:
            assert "beyond the retain model" in text


def test_a_text_is_shown_up_to_where_it_was_continued(judged: Callable[..., Verdict], tmp_path: Path) -> None:
    """Not as it was scored, from its second token on; of a long one the end."""
    rows = texts(1, 2)
    rows[0]["prompt"] = "x" * 1000 + " the end"
    scored = {"probe": "answer_likelihood", "dataset": "forget", "field": "answer", "prompt": "T"}
    scored |= {"reference_text": "ext. 1 2 3 4", "num_tokens": 1, "logps": [-1.0], "hits": [True]}
    scored |= {"means": [-1.0], "variances": [1.0]}
    judged("memorization", [{**scored, "example_id": row["example_id"]} for row in rows] + rows)
    shown = answer_rows(load_run(tmp_path / "own"))
    assert [row["gold"] for row in shown] == ["1 2 3 4"] * 2
    assert shown[0]["question"] == "… " + "x" * 592 + " the end"
    assert shown[1]["question"] == "Text."
