"""Refusals and alternate answers: what is read, what is dropped, what is refused."""

from __future__ import annotations

import json
import logging
import re
import zipfile

import datasets
import pytest

from unlearnkit.data.answers import SHIPPED, AnswerColumn, Refusals
from unlearnkit.data.cells import levelled
from unlearnkit.data.columns import canonical
from unlearnkit.errors import DataError

ROW = {"prompt": "Who?", "completion": "Ana."}


def table(*rows):
    return canonical(datasets.Dataset.from_list(list(rows)))


def said(text):
    return [{"role": "assistant", "content": text}]


# Refusals


def test_the_shipped_list():
    """A hundred sentences, in the first person, none a question, written out as a tokenizer meets them."""
    texts = Refusals.load().texts
    lines = SHIPPED.read_text(encoding="ascii").splitlines()
    assert list(texts) == lines, "no blank line, no sentence twice"
    assert len(texts) == 100
    assert all(text[0].isupper() and text.endswith(".") and "?" not in text for text in texts)
    assert len({len(text.split()) for text in texts}) > 8, "short ones and long ones"
    assert len({" ".join(text.split()[:3]) for text in texts}) > 60, "many beginnings"


def test_the_shipped_list_is_not_tofus(tofu_folder):
    theirs = {levelled(line) for line in (tofu_folder / "idontknow.jsonl").read_text().splitlines()}
    assert len(theirs) == 100
    assert theirs.isdisjoint(map(levelled, Refusals.load().texts))
    assert len(Refusals.load(str(tofu_folder / "idontknow.jsonl")).texts) == 100


@pytest.mark.wheel
def test_the_list_is_in_the_wheel(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    root = SHIPPED.parents[2]
    wheel = next(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    assert "unlearnkit/data/refusals.txt" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.txt", "I pass.\n\n  i  PASS. \nNo idea.\n"),
        ("plain.jsonl", "I pass.\nNo idea.\n\nNO IDEA."),
        ("rows.jsonl", '{"text": "I pass."}\n\n{"text": " No idea. "}\n{"text": "I pass."}\n'),
        ("strings.jsonl", '"I pass."\n"No idea."\n'),
        ("list.json", '["I pass.", {"text": "No idea."}, " "]'),
        ("lines.json", '{"text": "I pass."}\n{"text": "No idea."}'),
        ("r.txt", "\ufeffI pass.\r\nNo idea.\r\n"),
    ],
)
def test_lists_of_any_kind(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert Refusals.load(str(path)).texts == ("I pass.", "No idea.")


def test_every_row_may_get_every_refusal(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("I pass.\nNo idea.\n")
    data = table(ROW, {"prompt": "When?", "completion": "1984."})
    assert Refusals.load(str(path)).candidates(data, "data.forget") == [["I pass.", "No idea."]] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "When?", "completion": "no  IDEA."},
        {"prompt": "When?", "completion": said("No idea.")},
        {"messages": [{"role": "user", "content": "When?"}, *said("No idea.")]},
    ],
)
def test_a_rows_own_answer_is_no_refusal_of_it(row):
    """Chosen and rejected would be one answer."""
    both = Refusals(("I pass.", "No idea."))
    other = {"messages": [{"role": "user", "content": "Who?"}, *said("Ana.")]} if "messages" in row else ROW
    if isinstance(row.get("completion"), list):
        other = {"prompt": "Who?", "completion": said("Ana.")}
    data = table(other, row)
    assert both.candidates(data, "data.forget") == [["I pass.", "No idea."], ["I pass."]]
    with pytest.raises(
        DataError, match=r"data\.forget: 1 row\(s\) have the only refusal as their own answer \(row 1, .*"
        r"give further refusals in training\.refusals, or remove the rows$",
    ):  # fmt: skip
        Refusals(("No idea.",)).candidates(data, "data.forget")


def test_the_built_in_benchmarks_list_can_be_read(tmp_path):
    from unlearnkit.data.fictional import rows

    path = tmp_path / "idontknow.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows("idontknow")))
    assert list(Refusals.load(str(path)).texts) == [row["text"] for row in rows("idontknow")]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("r.txt", "\n  \n", ["holds no refusal", "leave training.refusals out"]),
        ("r.json", "[]", ["holds no refusal"]),
        ("r.jsonl", '{"text": "a"}\n{"txt": "b"}', ["no text in row 1", "column `text`"]),
        ("r.jsonl", '{"text": "a"}\n{"text": 3}', ["no text in row 1"]),
        ("r.jsonl", '{"text": "a"\n', ["cannot be read", "one refusal a line"]),
        ("r.txt", b"\xff\xfe\xfa", ["cannot be read", "UTF-8"]),
    ],
)
def test_lists_that_are_none(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="training.refusals.*" + ".*".join(map(re.escape, parts))) as caught:
        Refusals.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there(tmp_path):
    (tmp_path / "refusals.txt").write_text("I pass.\n")
    with pytest.raises(DataError, match=r"refusal\.txt does not exist; the folder holds refusals\.txt"):
        Refusals.load(str(tmp_path / "refusal.txt"))
    with pytest.raises(DataError, match="is a folder, not a file"):
        Refusals.load(str(tmp_path))


@pytest.mark.parametrize("content", ["I pass.\n", "I pass.\ni pass.\n\n"])
def test_one_refusal_is_warned_of(tmp_path, caplog, content):
    path = tmp_path / "r.txt"
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert Refusals.load(str(path)).texts == ("I pass.",)
    assert re.search(
        r"one refusal only.*by heart.*utility.*give several.*leave training\.refusals out", caplog.text
    )
    caplog.clear()
    path.write_text("I pass.\nNo idea.\n")
    Refusals.load(str(path))
    assert caplog.text == ""


# A column


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("Bo.", ["Bo."]),
        (["Bo.", " ", "Cy."], ["Bo.", "Cy."]),
        (said("Bo."), [said("Bo.")]),
        ([said("Bo."), said("Cy.")], [said("Bo."), said("Cy.")]),
    ],
)
def test_cells_hold_one_answer_or_several(cell, answers):
    data = table({**ROW, "alternate_answer": cell})
    assert AnswerColumn("alternate_answer").candidates(data, "data.forget") == [answers]


def test_rows_without_an_answer_are_named():
    cells = [["Bo."], [], None, [" "]]
    data = table(*({**ROW, "alternate_answer": cell} for cell in cells))
    with pytest.raises(DataError) as caught:
        AnswerColumn("alternate_answer").candidates(data, "data.forget")
    assert str(caught.value) == (
        "data.forget: 3 row(s) have no alternate_answer (row 1, 2, 3, counted from 0); fill them in or "
        "remove the rows, or let the target model write them with `data.alternates: {}`"
    )


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": "Who?", "completion": said("Ana.")},
        {"messages": [{"role": "user", "content": "Who?"}, *said("Ana.")]},
    ],
)
@pytest.mark.parametrize("cell", [["Bo.", "  ana. "], "Ana."])
def test_the_rows_own_answer_is_no_other_one(row, cell):
    data = table({**row, "alternate_answer": "Bo." if isinstance(cell, str) else ["Bo."]})
    assert AnswerColumn("alternate_answer").candidates(data, "data.forget") == [["Bo."]]
    data = table({**row, "alternate_answer": cell})
    with pytest.raises(DataError, match=r"data\.forget: 1 row\(s\) have their own answer.*row 0.*another"):
        AnswerColumn("alternate_answer").candidates(data, "data.forget")


def test_a_missing_column_is_told_with_its_remedies():
    with pytest.raises(
        DataError, match=r"no column alternate_answer; .*\{alternate_answer: .*data\.alternates"
    ):
        AnswerColumn("alternate_answer").candidates(table(ROW), "data.forget")
    with pytest.raises(DataError, match=r"no column perturbed_answer.*") as caught:
        AnswerColumn("perturbed_answer").candidates(table(ROW), "data.forget")
    assert "alternates" not in str(caught.value)
