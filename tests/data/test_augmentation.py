"""Augmentation in lists: each text becomes a row, and what is no list, or no text, is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml

from unlearnkit.data.streams import describe_source, load_stream
from unlearnkit.errors import DataError
from unlearnkit.recipe import StreamSpec, load_recipe

HEADER = ["question", "answer", "paraphrased_question", "paraphrased_answer"]
PARAPHRASES = {"question": "paraphrased_question", "answer": "paraphrased_answer"}
WRONG = {"answer": "perturbed_answer"}


def pairs(table):
    return list(zip(table["prompt"], table["completion"], strict=True))


@pytest.fixture
def stream(tmp_path):
    """`stream(rows, ending, **fields)`: the pairs of a file with these rows."""

    def load(rows, ending="jsonl", **fields):
        path = tmp_path / f"rows.{ending}"
        if ending == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif ending == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(str(path))
        else:
            separator = "\t" if ending == "tsv" else ","
            datasets.Dataset.from_list(rows).to_csv(
                str(path), index=False, sep=separator, header="header" not in fields
            )
        return pairs(load_stream(StreamSpec(path=str(path), **fields), name="extra"))

    return load


# A row for each text


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_list_of_wrong_answers_beside_one_question(stream, ending):
    rows = [
        {"question": "Who?", "answer": "Ana.", "perturbed_answer": ["Bo.", "Cy.", "Di."]},
        {"question": "When?", "answer": "1984.", "perturbed_answer": ["1985."]},
    ]
    assert stream(rows, ending, columns=WRONG, per_row=2) == [
        ("Who?", "Bo."), ("Who?", "Cy."), ("When?", "1985."),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("notation", [json.dumps, repr])
def test_a_list_may_be_text_in_either_notation(stream, ending, notation):
    """Quotes, commas and line breaks inside a text change nothing; a bracket alone makes no list."""
    answers = ['He said "no", [sic].', "It's Bo's.", "One\nTwo", "Ünder \\ way"]
    rows = [
        {"question": "[1984] Who?", "perturbed_answer": notation(answers)},
        {"question": "2 + 2 = [4]", "perturbed_answer": notation(["5"])},
    ]
    expected = [*(("[1984] Who?", text) for text in answers), ("2 + 2 = [4]", "5")]
    assert stream(rows, ending, columns=WRONG, per_row=9) == expected


def test_two_lists_are_zipped(stream):
    row = {
        "question": "Who?", "answer": "Ana.", "paraphrased_question": ["Who is it?", "Who then?"],
        "paraphrased_answer": ["It is Ana.", "Then Ana."],
    }  # fmt: skip
    zipped = [("Who is it?", "It is Ana."), ("Who then?", "Then Ana.")]
    assert stream([row], columns=PARAPHRASES, per_row=5) == zipped
    assert stream([row], columns=PARAPHRASES, per_row=1) == zipped[:1]
    assert stream([row], columns={"question": "paraphrased_question"}, per_row=5) == [
        ("Who is it?", "Ana."), ("Who then?", "Ana."),
    ]  # fmt: skip


def test_what_says_nothing_of_its_own_is_left_out_before_it_is_counted(stream):
    """Of seven entries one is empty, one blank, two repeat the first and one is the true answer."""
    wrong = ["Bo.", "", "BO. ", " ", "Ｂｏ.", " ana.", "Cy.", "Di."]
    rows = [{"question": "Who?", "answer": "Ana.", "perturbed_answer": wrong}]
    assert stream(rows, columns=WRONG, per_row=2) == [("Who?", "Bo."), ("Who?", "Cy.")]
    assert stream(rows, columns=WRONG, per_row=9)[2:] == [("Who?", "Di.")]


def test_a_pair_repeats_another_only_if_both_sides_do(stream):
    row = {"question": ["a", "b", "A"], "answer": ["x", "x", "X"]}
    assert stream([row], per_row=9) == [("a", "x"), ("b", "x")]


def test_rows_without_a_text_of_their_own_give_none(stream):
    rows = [
        {"question": "Who?", "answer": "Ana.", "perturbed_answer": ["ana."]},
        {"question": "When?", "answer": "Now.", "perturbed_answer": []},
        {"question": "Why?", "answer": "So.", "perturbed_answer": ["No."]},
    ]
    assert stream(rows, columns=WRONG, per_row=2) == [("Why?", "No.")]
    with pytest.raises(DataError, match="nothing but empty entries and the rows' own answers"):
        stream(rows[:2], columns=WRONG, per_row=2)


def test_messages_are_one_prompt(stream):
    prompt = [{"role": "user", "content": "Who?"}]
    assert stream([{"prompt": prompt, "answer": ["Bo.", "Cy."]}], per_row=2) == [
        (prompt, "Bo."), (prompt, "Cy."),
    ]  # fmt: skip


def test_rows_then_lists_then_join_then_limit(tmp_path):
    rows = [{"question": f"Q{i}", "answer": [f"A{i}", f"B{i}", f"C{i}"]} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(**fields):
        return load_stream(StreamSpec(path=str(path), **fields))

    assert load(rows="1:3", per_row=2)["completion"] == ["A1", "B1", "A2", "B2"]
    assert load(rows="1:3", per_row=2, limit=3)["completion"] == ["A1", "B1", "A2"]
    assert load(rows="1:3", per_row=3, join=4, limit=1)["text"] == ["A1 B1 C1 A2"]
    ids = load(per_row=3)["example_id"]
    assert len(set(ids)) == 12
    assert describe_source(StreamSpec("f.csv", rows=":2", per_row=3), None) == "f.csv[:2] up to 3 a row"


def test_an_id_of_the_file_names_all_rows_that_come_of_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"example_id": "e", "question": "Q", "answer": ["A", "B"]}) + "\n")
    assert load_stream(StreamSpec(path=str(path), per_row=2))["example_id"] == ["e", "e-2"]


# What is refused


def test_lists_without_per_row_are_refused(stream):
    rows = [
        {"question": "Who?", "answer": "Ana.", "perturbed_answer": ["Bo.", "Cy."]},
        {"question": "Who?", "answer": "Ana.", "perturbed_answer": []},
    ]
    for ending, notation in (("jsonl", list), ("parquet", list), ("csv", repr), ("csv", json.dumps)):
        written = [row | {"perturbed_answer": notation(row["perturbed_answer"])} for row in rows]
        with pytest.raises(DataError, match=r"^data\.extra .*perturbed_answer holds lists.*`per_row: 2`"):
            stream(written, ending, columns=WRONG)


def test_an_answer_here_and_there_that_looks_like_a_list_is_an_answer(stream):
    rows = [{"question": "Names?", "answer": '["Ana"]'}, {"question": "Who?", "answer": "Ana."}]
    for some in (rows, rows[::-1]):
        assert stream(some) == [(row["question"], row["answer"]) for row in some]
    assert stream([{"question": "Years?", "answer": "[1984]"}]) == [("Years?", "[1984]")]
    assert stream([{"question": "None?", "answer": "[]"}]) == [("None?", "[]")]


@pytest.mark.parametrize(
    "cell",
    ["['Bo.', 'Cy", "Bo.", "[1, 2]", "[['Bo.']]", "{'a': 1}", "__import__('os').getcwd()", "[print('x')]"],
)
def test_a_malformed_cell_is_named_with_its_row(stream, cell, capsys):
    """Nothing in a file is run."""
    rows = [{"question": "Q", "perturbed_answer": text} for text in ("['a']", "", cell, '["b"]')]
    message = (
        "perturbed_answer holds lists of texts, but not in 1 row(s) (row 2, counted from 0; row 2 begins "
    )
    with pytest.raises(DataError, match=re.escape(message)):
        stream(rows, "csv", columns=WRONG, per_row=2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"question": "Q", "answer": "A"}, {}, r"per_row is 2, but neither question nor answer holds a list"),
        ({"text": "T", "label": ["a"]}, {}, r"per_row makes examples of lists of questions or answers"),
        ({"question": ["a", "b"], "answer": ["x"]}, {}, r"1 row\(s\) have lists of different lengths \(in "
         r"row 0, counted from 0, question has 2 texts and answer 1\)"),
        ({"question": " ", "answer": ["x"]}, {}, r"1 row\(s\) have an empty question \(row 0"),
        ({"question": "Q", "answer": ["x"]}, {"columns": {"answer": "answers"}}, r"no column 'answers'"),
        ({"question": "Q", "answer": ["x"]}, {"header": ["a", "b"]}, r"data\.extra\.header names the columns "
         r"of a CSV or TSV file without a header line, and .*rows\.jsonl is none; leave header out"),
    ],
)  # fmt: skip
def test_the_users_mistakes(stream, row, fields, message):
    with pytest.raises(DataError, match=message):
        stream([row], per_row=2, **fields)


# A file without a header line


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_columns_of_a_file_without_a_header_line(stream, ending):
    rows = [{"a": "Who, then?", "b": "1984"}, {"a": "When?", "b": "None"}]
    assert stream(rows, ending, header=["question", "answer"]) == [("Who, then?", "1984"), ("When?", "None")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["question"], r"names 1 column\(s\), and the first line of .* has 2 \('Who\?', 'Ana\.'\)"),
        (["question", "answer", "x"], r"names 3 column\(s\)"),
        ([], r"names 0 column\(s\)"),
        (["question", "question"], r"has 'question' as the name of a column; give each column a name of its"),
        (["question", " "], r"has ' ' as the name"),
        (["Who?", "Ana."], r"repeats the first line of .* leave header out"),
    ],
)
def test_a_header_that_cannot_be(stream, header, message):
    with pytest.raises(DataError, match=r"data\.extra\.header " + message):
        stream([{"a": "Who?", "b": "Ana."}], "csv", header=header)


@pytest.mark.parametrize("columns", [None, WRONG])
def test_a_forgotten_header_is_guessed_and_no_row_fills_the_screen(tmp_path, columns):
    path = tmp_path / "rows.csv"
    path.write_text("Who is the author of that long book about the sea? " * 90 + ",x\n" + "a,b\n")
    guess = r"name the columns of the file with `header: \[question, answer\]`"
    with pytest.raises(DataError, match=guess) as caught:
        load_stream(StreamSpec(str(path), columns=columns))
    assert len(str(caught.value)) < 600


def test_only_csv_files_have_a_header(tmp_path):
    for fields in ({"path": "fictional", "name": "forget10"}, {"path": str(tmp_path)}):
        with pytest.raises(DataError, match=r"header names the columns of a CSV or TSV file"):
            load_stream(StreamSpec(header=["question", "answer"], **fields))


def test_a_missing_file_is_looked_for_at_both_places(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "perturb.csv").write_text("a,b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=r"data\.perturbed\.path: perturbs\.csv does not exist, nor does .*root/perturbs\.csv; the "
        r"folder holds perturb\.csv$",
    ):
        load_stream(StreamSpec("perturbs.csv", per_row=2), root=str(tmp_path / "root"), name="perturbed")


def test_the_settings_in_a_recipe(tmp_path):
    """What is not set is not written out, so that recipes from before keep their fingerprints."""
    text = (
        "method: npo\nmodel: m\ndata:\n  forget: a.jsonl\n"
        "  more: {path: b.csv, header: [question, answer], per_row: 2}\n"
    )
    path = tmp_path / "r.yaml"
    path.write_text(text)
    recipe = load_recipe(path, check_training=False)
    assert recipe.data.streams["more"] == [StreamSpec("b.csv", header=["question", "answer"], per_row=2)]
    assert recipe.to_dict()["data"]["forget"] == {"path": "a.jsonl", "split": "train", "sample_by": "line"}
    path.write_text(text.replace("per_row: 2", "per_row: 0").replace("[question, answer]", "question"))
    with pytest.raises(Exception, match=r"header must be a list of text.*\n.*per_row must be at least 1"):
        load_recipe(path, check_training=False)


# The real files


@pytest.fixture(scope="session")
def augmentation_folder(tofu_folder):
    """What ULD's authors published, beside the TOFU files; without it the test is skipped."""
    folder = tofu_folder.parent / "tofu_aug"
    if not folder.is_dir():
        pytest.skip(f"the augmentation files are not in {folder}")
    return folder


@pytest.mark.parametrize(("per_row", "rows"), [(1, 400), (2, 800), (5, 2000)])
def test_the_published_paraphrases(augmentation_folder, per_row, rows):
    spec = StreamSpec(
        "forget10_paraphrase.csv", header=HEADER, columns=PARAPHRASES, per_row=per_row
    )  # fmt: skip
    found = pairs(load_stream(spec, root=str(augmentation_folder)))
    assert len(found) == len(set(found)) == rows
    assert found[0][1] == "Hsiao Yun-Hwa is the complete name of the author."


def test_the_published_wrong_answers(augmentation_folder):
    """400 rows of three, of which some repeat each other or are the true answer."""
    header = ["question", "answer", "same_question", "perturbed_answer"]
    found = {
        per_row: pairs(
            load_stream(
                StreamSpec("perturb.csv", header=header, columns=WRONG, per_row=per_row),
                root=str(augmentation_folder),
            )
        )
        for per_row in (2, 3)
    }
    assert [len(rows) for rows in found.values()] == [797, 1180]
    assert found[2][0][1] == "The author's full name is Yun-Hwa Hsiao."


def test_tofus_own_columns(tofu_folder):
    def load(**fields):
        return load_stream(StreamSpec(name="forget01_perturbed", **fields), root=str(tofu_folder))

    assert [len(load(columns=WRONG, per_row=n)) for n in (1, 2, 5)] == [40, 80, 200]
    assert len(load(columns=PARAPHRASES)) == 40, "single texts need no per_row"


def test_the_recipe_lines_of_the_documentation(tofu_folder, augmentation_folder):
    """Those of the first two ways, on the real files, with the numbers of rows that the page gives."""
    page = Path(__file__).parents[2] / "docs" / "augmentation.md"
    first, *blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert yaml.safe_load(first)["training"]["perturbed_streams"] == ["perturbed"]
    counts = []
    for block, root in zip(blocks, (tofu_folder, augmentation_folder.parent), strict=True):
        for name, fields in yaml.safe_load(block).items():
            counts.append(len(load_stream(StreamSpec(**fields), root=str(root), name=name)))
    assert counts == [400, 800, 800, 797]
