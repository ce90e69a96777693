"""`unlearnkit data annotate`: what it shows, what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers_runs import command

from unlearnkit.annotating import marked
from unlearnkit.data.spans import Span


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("in.jsonl", ...)` in a folder with that file: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    rows = [
        {"question": "Who?", "answer": "It is Ana Reyes [sic].", "page": 3},
        {"question": "When?", "answer": "In 1984 Ana wrote it.", "page": 4},
        {"question": "Why?", "answer": "Nobody knows.", "page": 5},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments):
        code = command(monkeypatch, "data", "annotate", *arguments)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_command_shows_and_writes(run, tmp_path):
    """Other columns stay; without --output nothing is written; a second call adds a second class."""
    code, out, _ = run("in.jsonl", "--name", "Ana Reyes", "--preview", "1")
    assert code == 0
    assert "It is [high: Ana Reyes] [sic]." in out
    assert "In 1984" not in out
    assert re.search(r"high +2 +2 +21\.43%", out)  # 12 of 56 characters
    assert "3 rows, 1 of them without a span" in out
    assert "Nothing was written" in out
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

    assert run("in.jsonl", "--name", "Ana Reyes", "--no-parts", "--output", "out.jsonl")[0] == 0
    assert run("out.jsonl", "--pattern", r"\d{4}", "--risk", "middle", "--output", "more.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path("more.jsonl").read_text().splitlines()]
    assert [row["page"] for row in rows] == [3, 4, 5]
    assert [row["spans"] for row in rows] == [
        [{"start": 6, "end": 15, "risk": "high"}], [{"start": 3, "end": 7, "risk": "middle"}], [],
    ]  # fmt: skip


def test_the_command_on_other_columns_with_a_file_of_names(run, tmp_path):
    Path("names.txt").write_text("ana reyes\n")
    Path("q.jsonl").write_text(json.dumps({"q": "Who?", "a": "Ana."}) + "\n")
    code, out, _ = run(
        "q.jsonl", "--columns", "{prompt: q, completion: a}", "--names", "names.txt", "--ignore-case",
        "--output", "q.jsonl", "--force",
    )  # fmt: skip
    assert code == 0
    assert "[high: Ana]." in out
    written = json.loads(Path("q.jsonl").read_text())
    assert written == {"q": "Who?", "a": "Ana.", "spans": [{"start": 0, "end": 3, "risk": "high"}]}


def test_spans_are_written_into_the_column_that_they_were_read_from(run):
    """Read again under the same names of columns, the old and the new spans are there."""
    old = [{"start": 0, "end": 2, "risk": "low"}]
    Path("q.jsonl").write_text(json.dumps({"q": "Who?", "a": "It is Ana.", "marks": old}) + "\n")
    columns = "{prompt: q, completion: a, spans: marks}"
    assert run("q.jsonl", "--columns", columns, "--name", "Ana", "--output", "r.jsonl")[0] == 0
    written = json.loads(Path("r.jsonl").read_text())
    assert written["marks"] == [*old, {"start": 6, "end": 9, "risk": "high"}]
    assert "spans" not in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.jsonl"], "nothing says what is risky; give --names FILE"),
        (["in.jsonl", "--name", "Ana", "--output", "in.jsonl"], "is the input itself; choose another"),
        (["in.jsonl", "--name", "Ana", "--output", "names.txt"], "must end in .jsonl"),
        (["in.jsonl", "--name", "Ana", "--risk", " "], "--risk is empty"),
        (["in.jsonl", "--label", "toxic", "--name", "Ana"], "--label and --threshold belong to a classifier"),
        (["in.jsonl", "--classifier", "m"], "--classifier needs --label"),
        (
            ["in.jsonl", "--classifier", "m", "--label", "t", "--threshold", "high"],
            "'high' is not a class and",
        ),
        (["in.jsonl", "--classifier", ".", "--label", "t"], "the classifier . cannot be loaded"),
        (["in.jsonl", "--pattern", "("], "regular expression '(' is malformed"),
        (["in.jsonl", "--call", "nowhere:f"], "the annotator 'nowhere:f' is not found"),
        (["in.jsonl", "--names", "nobody.txt"], "the file nobody.txt does not exist"),
        (["in.jsonl", "--name", "Ana", "--columns", "[a]"], "--columns '[a]' is no mapping"),
        (["im.jsonl", "--name", "Ana"], "im.jsonl does not exist; the folder holds in.jsonl"),
    ],
)
def test_the_users_mistakes(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert len(Path("in.jsonl").read_text().splitlines()) == 3


def test_a_preview_has_a_colour_for_each_class_and_begins_before_the_first_span():
    text = "x" * 1000 + " Ana and Bo " + "y" * 1000
    shown = marked(text, [Span(1001, 1004, "high"), Span(1009, 1011, "own")], {"high": "red", "own": "cyan"})
    assert shown.plain.startswith("…xxx")
    assert " [high: Ana] and [own: Bo] yyy" in shown.plain
    assert shown.plain.endswith("yyy…")
    assert len(shown.plain) < 700
    assert [str(part.style) for part in shown.spans] == ["bold red", "bold cyan"]
    cut = marked("a" * 2000, [Span(0, 2000, "high")], {"high": "red"})
    assert cut.plain == f"[high: {'a' * 600}…]"
