"""Every kind of source becomes the same columns; every bad one is refused in one sentence that helps."""

from __future__ import annotations

import errno
import json
import os
import re

import datasets
import pytest

from unlearnkit.data.columns import canonical, content_id
from unlearnkit.data.documents import joined
from unlearnkit.data.streams import describe_source, load_stream
from unlearnkit.errors import DataError, UserError
from unlearnkit.recipe import StreamSpec

ROWS = [{"question": f"Who is {n}?", "answer": f"{n} is a writer."} for n in ("Ana", "Bo", "Cy", "Di")]
PAIRS = [(r["question"], r["answer"]) for r in ROWS]


def spec(path=None, **fields):
    return StreamSpec(path=None if path is None else str(path), **fields)


def write(path, rows):
    """Write rows in the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet":
        table.to_parquet(str(path))
    elif path.suffix in (".csv", ".tsv"):
        table.to_csv(str(path), index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def pairs(table):
    return list(zip(table["prompt"], table["completion"], strict=True))


def message(**kwargs):
    """A pattern for a message that has all the parts, in order."""
    return ".*".join(re.escape(part) for part in kwargs["parts"])


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_a_file_of_any_kind(tmp_path, ending):
    table = load_stream(spec(write(tmp_path / f"rows.{ending}", ROWS)))
    assert table.column_names == ["prompt", "completion", "example_id"]
    assert pairs(table) == PAIRS
    assert table["example_id"] == [content_id({"prompt": q, "completion": a}) for q, a in PAIRS]


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [
        ("line", ["One.", "Two.", "Three."]),
        ("paragraph", ["One.\nTwo.", "Three."]),
        ("document", ["One.\nTwo.\n\n\n\nThree.\n"]),
    ],
)
def test_text_files_by_line_paragraph_and_document(tmp_path, sample_by, texts):
    (tmp_path / "book.txt").write_text("One.\nTwo.\n\n\n\nThree.\n")
    for place in (tmp_path / "book.txt", tmp_path):
        table = load_stream(spec(place, sample_by=sample_by))
        assert [t.strip() for t in table["text"]] == [t.strip() for t in texts]


def test_a_folder_of_files_and_a_folder_saved_to_disk(tmp_path):
    write(tmp_path / "many" / "train-1.jsonl", ROWS[:2])
    write(tmp_path / "many" / "train-2.jsonl", ROWS[2:])
    assert pairs(load_stream(spec(tmp_path / "many"))) == PAIRS
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "splits"))
    assert pairs(load_stream(spec(tmp_path / "saved"))) == PAIRS
    assert pairs(load_stream(spec(tmp_path / "splits", split="test"))) == PAIRS[:1]
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        load_stream(spec(tmp_path / "splits", split="dev"))


def test_a_changed_file_is_read_anew(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert len(load_stream(spec(path))) == 4
    write(path, ROWS[:1])
    os.utime(path, (1, 1))
    assert pairs(load_stream(spec(path))) == PAIRS[:1]


def test_the_built_in_benchmark_by_path_and_by_root():
    table = load_stream(spec("fictional", name="forget01_perturbed"))
    again = load_stream(spec(name="forget01_perturbed"), root="fictional")
    assert table.column_names == again.column_names
    assert {"paraphrased_answer", "perturbed_answer", "paraphrased_question"} < set(table.column_names)
    assert table["example_id"] == again["example_id"]
    assert load_stream(spec("fictional", name="idontknow")).column_names == ["text", "example_id"]
    with pytest.raises(DataError, match="no split 'forget10_pertubed'; did you mean 'forget10_perturbed'"):
        load_stream(spec("fictional", name="forget10_pertubed"))


def test_root_and_path_and_name(tmp_path, monkeypatch):
    write(tmp_path / "root" / "forget10.json", ROWS)
    write(tmp_path / "root" / "sub" / "keep.jsonl", ROWS[:1])
    write(tmp_path / "other" / "forget10.csv", ROWS[:2])
    root = str(tmp_path / "root")
    assert len(load_stream(spec(name="forget10"), root=root)) == 4
    assert len(load_stream(spec("sub/keep.jsonl"), root=root)) == 1, "a relative path is tried under the root"
    assert len(load_stream(spec("sub", name="keep"), root=root)) == 1
    assert len(load_stream(spec(tmp_path / "other", name="forget10"), root=root)) == 2, (
        "a path beats the root"
    )
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sub" / "keep.jsonl", ROWS[:3])
    assert len(load_stream(spec("sub/keep.jsonl"), root=root)) == 3, "a path is taken as given first"
    assert describe_source(spec(name="forget10", rows="::2"), root) == f"{root}:forget10[::2]"


def test_several_sources_are_put_one_after_the_other(tmp_path):
    one = write(tmp_path / "one.jsonl", [{**r, "perturbed_answer": ["no"]} for r in ROWS[:3]])
    two = write(tmp_path / "two.csv", ROWS[2:])
    table = load_stream([spec(one), spec(two)])
    assert pairs(table) == PAIRS[:3] + PAIRS[2:]
    ids = table["example_id"]
    assert ids[3] == f"{ids[2]}-2", "the same row in both files"
    assert table.column_names == ["prompt", "completion", "example_id"], "only what all sources have"
    (tmp_path / "t.txt").write_text("a line\n")
    with pytest.raises(
        DataError, match=message(parts=["data.retain", "different columns", "text", "columns"])
    ):
        load_stream([spec(one), spec(tmp_path / "t.txt")], name="retain")
    chat = write(tmp_path / "c.jsonl", [{"prompt": [{"role": "user", "content": "q"}], "completion": "a"}])
    with pytest.raises(DataError, match="different types"):
        load_stream([spec(two), spec(chat)])
    with pytest.raises(DataError, match="lists no source"):
        load_stream([])


@pytest.mark.parametrize(
    ("rows", "limit", "kept"),
    [
        ("1:3", None, [1, 2]),
        ("::2", None, [0, 2]),
        ("-1:", None, [3]),
        ("::-1", 2, [3, 2]),
        (None, 9, [0, 1, 2, 3]),
    ],
)
def test_slices_and_limits(tmp_path, rows, limit, kept):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert pairs(load_stream(spec(path, rows=rows, limit=limit))) == [PAIRS[i] for i in kept]


@pytest.mark.parametrize("rows", ["5", "a:b", "1:2:3:4", "", "::0"])
def test_a_slice_that_is_none(tmp_path, rows):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"data\.forget\.rows is .*; write a slice such as 0:100"):
        load_stream(spec(path, rows=rows), name="forget")


@pytest.mark.parametrize(
    ("rows", "limit", "texts"),
    [
        (None, None, ["Ana is a writer. Bo is a writer. Cy is a writer.", "Di is a writer."]),
        (None, 1, ["Ana is a writer. Bo is a writer. Cy is a writer."]),
        ("::-1", None, ["Di is a writer. Cy is a writer. Bo is a writer.", "Ana is a writer."]),
        ("1:3", 5, ["Bo is a writer. Cy is a writer."]),
    ],
)
def test_answers_joined_to_documents(tmp_path, rows, limit, texts):
    """`rows` first, then `join`, then `limit`, which counts documents."""
    path = write(tmp_path / "rows.jsonl", ROWS)
    table = load_stream(spec(path, rows=rows, join=3, limit=limit))
    assert table.column_names == ["text", "example_id"]
    assert list(table["text"]) == texts
    assert list(table["example_id"]) == [content_id({"text": text}) for text in texts]


def test_documents_are_the_same_however_many_rows_are_read_at_a_time():
    table = canonical(datasets.Dataset.from_list([{"text": str(i)} for i in range(2500)]))
    for every in (1, 7, 999, 1001, 3000):
        texts = list(joined(table, every, "here")["text"])
        assert [text.split() for text in texts] == [
            [str(i) for i in range(start, min(start + every, 2500))] for start in range(0, 2500, every)
        ]


def test_messages_are_joined_by_what_the_assistant_says_last_and_spans_move_along():
    chats = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": c}] for c in ("One", "Two")]
    texts = joined(canonical(datasets.Dataset.from_list([{"messages": c} for c in chats])), 2, "here")
    assert list(texts["text"]) == ["One Two"]
    marked = datasets.Dataset.from_list(
        [
            {"text": "Ana is here.", "spans": [{"start": 0, "end": 3, "risk": "name"}]},
            {"text": "Is Bo?", "spans": [{"start": 3, "end": 5, "risk": "name"}]},
        ]
    )
    text, spans = (joined(marked, 2, "here")[0][c] for c in ("text", "spans"))
    assert [text[s["start"] : s["end"]] for s in spans] == ["Ana", "Bo"]


def test_pairs_are_not_joined(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        DataError, match=r"data\.pairs .*preference pairs.*completion: chosen.*leave out `join`"
    ):
        load_stream(spec(path, join=2), name="pairs")


# Columns


def table_of(*rows):
    return datasets.Dataset.from_list(list(rows))


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "q", "completion": "a"}, ["prompt", "completion"]),
        ({"question": "q", "answer": "a", "other": 1}, ["prompt", "completion"]),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ["prompt", "completion"]),
        ({"messages": CHAT}, ["messages"]),
        ({"text": "t"}, ["text"]),
        ({"prompt": "q", "completion": "a", "text": "t", "messages": CHAT}, ["prompt", "completion"]),
    ],
)
def test_shapes(row, columns):
    assert canonical(table_of(row)).column_names == [*columns, "example_id"]


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a", "paraphrased_answer": "p"},
    ],
)
def test_column_map(columns):
    table = canonical(table_of({"q": "Q", "a": "A", "p": "P", "prompt": "x", "answer": "y"}), columns)
    assert pairs(table) == [("Q", "A")]
    assert table["example_id"] == [content_id({"prompt": "Q", "completion": "A"})]
    assert ("paraphrased_answer" in table.column_names) == ("paraphrased_answer" in columns)


def test_column_map_may_swap_and_may_name_one_column_only():
    swapped = canonical(
        table_of({"prompt": "A", "completion": "Q"}), {"prompt": "completion", "completion": "prompt"}
    )
    assert pairs(swapped) == [("Q", "A")]
    assert pairs(canonical(table_of({"question": "Q", "reply": "A"}), {"completion": "reply"})) == [
        ("Q", "A")
    ]
    assert pairs(canonical(table_of({"prompt": "Q", "completion": "A"}), {"prompt": "prompt"})) == [
        ("Q", "A")
    ]


def test_numbers_and_words_for_nothing_are_answers(tmp_path):
    (tmp_path / "a.csv").write_text(
        "question,answer\nIn which year?,1984\nHow many?,007\nWhich award?,None\n"
    )
    assert load_stream(spec(tmp_path / "a.csv"))["completion"] == ["1984", "007", "None"]
    path = write(tmp_path / "a.jsonl", [{"question": "In which year?", "answer": 1984}])
    assert load_stream(spec(path))["completion"] == ["1984"]


# example_id


def test_ids_name_the_content_wherever_it_stands():
    by_pair = dict(zip(PAIRS, canonical(table_of(*ROWS))["example_id"], strict=True))
    assert all(re.fullmatch("[0-9a-f]{12}", i) for i in by_pair.values())
    assert len(set(by_pair.values())) == 4
    for order in ([3, 1], [2], [0, 3, 2, 1]):
        table = canonical(table_of(*[{**ROWS[i], "perturbed_answer": ["x"]} for i in order]))
        assert table["example_id"] == [by_pair[p] for p in pairs(table)]


def test_ids_are_those_of_the_first_release():
    """Records and caches on disk are joined by these: they must never change."""
    assert content_id({"prompt": "Who?", "completion": "Ana."}) == "6b66cdd10a44"
    assert content_id({"text": "Ana."}) == "e83f8d249dc1"


def test_ids_of_messages_do_not_depend_on_other_rows():
    named = [{"role": "user", "content": "Who?", "name": "Bo"}, *CHAT[1:]]
    alone = canonical(table_of({"messages": CHAT}))["example_id"]
    assert canonical(table_of({"messages": named}, {"messages": CHAT}))["example_id"][1:] == alone


@pytest.mark.parametrize("share", ["01", "10"])
def test_a_forget_split_and_its_perturbed_twin_have_the_same_ids(share):
    plain = load_stream(spec("fictional", name=f"forget{share}"))
    perturbed = load_stream(spec("fictional", name=f"forget{share}_perturbed"))
    full = load_stream(spec("fictional"))
    assert plain["example_id"] == perturbed["example_id"]
    assert set(plain["example_id"]) < set(full["example_id"])
    assert len(set(full["example_id"])) == len(full)


def test_duplicates_are_numbered():
    first, other = (canonical(table_of(r))["example_id"][0] for r in ROWS[:2])
    ids = canonical(table_of(ROWS[0], ROWS[1], ROWS[0], ROWS[0]))["example_id"]
    assert ids == [first, other, f"{first}-2", f"{first}-3"]


def test_a_files_own_ids_are_kept(tmp_path):
    rows = [{**r, "example_id": i} for r, i in zip(ROWS, ["a", "a-2", "a", ""], strict=True)]
    table = canonical(table_of(*rows))
    assert table["example_id"] == [
        "a",
        "a-2",
        "a-3",
        content_id({"prompt": PAIRS[3][0], "completion": PAIRS[3][1]}),
    ]
    assert canonical(table)["example_id"] == table["example_id"], "making canonical twice changes nothing"
    path = write(tmp_path / "own.jsonl", [{**ROWS[0], "example_id": 7}])
    assert load_stream([spec(path), spec(path)])["example_id"] == ["7", "7-2"]


# Bad input


def refused(parts, source, **options):
    with pytest.raises(DataError, match=message(parts=parts)) as caught:
        load_stream(source, name="forget", **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    write(tmp_path / "forget.jsonl", ROWS)
    write(tmp_path / "zebra.csv", ROWS)
    refused(["data.forget.path", "forgot.jsonl does not exist", "the folder holds forget.jsonl"],
            spec(tmp_path / "forgot.jsonl"))  # fmt: skip
    refused(
        ["does not exist", "the folder", "nowhere does not exist either"],
        spec(tmp_path / "nowhere" / "a.json"),
    )
    refused(["data.root", "nowhere does not exist"], spec(name="x"), root=str(tmp_path / "nowhere"))
    refused(["has no file for 'forget10'", "forget.jsonl"], spec(tmp_path, name="forget10"))
    refused(
        ["forget.jsonl is one file", "'x'", "leave out `name`"], spec(tmp_path / "forget.jsonl", name="x")
    )
    refused(["data.forget has no path", "data.forget.path or data.root"], spec(name="x"))


def test_a_hub_id_that_cannot_be_reached():
    refused(["data.forget: 'someone/nothing'", "neither a local path nor a hub data set", "data.root"],
            spec("someone/nothing"))  # fmt: skip
    refused(["'locuslab/TOFU'", "hub data set"], spec(name="forget10"), root="locuslab/TOFU")


def test_a_whole_setting_may_be_named():
    with pytest.raises(DataError, match=r"^evaluation\.data\.forget\.path: no\.json does not exist"):
        load_stream(spec("no.json"), name="evaluation.data.forget")


def test_an_empty_set(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "head.csv").write_text("question,answer\n")
    (tmp_path / "folder").mkdir()
    refused(["data.forget", "empty.jsonl is empty", "at least one row"], spec(tmp_path / "empty.jsonl"))
    refused(["blank.txt has no rows"], spec(tmp_path / "blank.txt"))
    refused(["head.csv has no rows"], spec(tmp_path / "head.csv"))
    refused(["data.forget", "folder"], spec(tmp_path / "folder"))
    refused(["has no rows", "`rows` and `limit`"], spec(write(tmp_path / "r.jsonl", ROWS), rows="9:"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "q", "ans'),
        ("half.json", b'[{"question": "q", "answer": "a"'),
        ("wide.csv", b"question,answer\nq,a\nq,a,b,c\n"),
        ("latin.txt", "Čapek žil".encode("cp1250")),
        ("half.parquet", b"PAR1abc"),
    ],
)
def test_a_broken_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(["data.forget", name, "cannot be read as", "mend the file"], spec(tmp_path / name))


def test_an_unknown_ending(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    refused(["rows.xlsx has an unknown ending", ".csv", ".jsonl"], spec(tmp_path / "rows.xlsx"))


def test_a_full_disk_is_not_called_a_broken_file(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(UserError, match="the disk is full"):
        load_stream(spec(write(tmp_path / "r.jsonl", ROWS)))


@pytest.mark.parametrize(
    ("rows", "columns", "parts"),
    [
        ([{"q": "x", "a": "y"}], None, ["set has the columns q, a", "prompt and completion", "`columns:"]),
        ([{"question": "x"}], None, ["columns question", "name yours"]),
        ([{"question": "x", "answer": "y"}], {"completion": "anser"},
         ["no column 'anser'", "did you mean answer?"]),
        ([{"q": "x", "a": "y"}], {"promt": "q"}, ["`columns` gives 'promt'", "prompt, completion"]),
        ([{"q": "x"}], {"prompt": "q", "completion": "q"}, ["column 'q' twice"]),
        ([*ROWS, {"question": "x", "answer": None}, {"question": "x", "answer": "  "}], None,
         ["2 row(s)", "empty answer", "row 4, 5, counted from 0"]),
        ([{"question": "", "answer": "y"}], None, ["1 row(s)", "empty question", "row 0"]),
        ([{"q": "x", "a": ""}], {"prompt": "q", "completion": "a"}, ["empty a", "row 0"]),
        ([{"prompt": "x", "completion": None}] * 7, None,
         ["7 row(s)", "empty completion", "row 0, 1, 2, 3, 4, ..."]),
        ([{"prompt": CHAT[:1], "completion": [{"role": "assistant", "content": ""}]}], None,
         ["empty completion"]),
        ([{"prompt": ["x"], "completion": "y"}], None,
         ["whose prompt is neither text nor a list of messages", "row 0"]),
        ([{"messages": []}, {"messages": CHAT}], None, ["empty messages", "row 0"]),
        ([{"text": "a"}, {"text": None}], None, ["empty text", "row 1"]),
    ],
)  # fmt: skip
def test_wrong_columns_and_rows_without_an_answer(rows, columns, parts):
    with pytest.raises(DataError, match=message(parts=parts)) as caught:
        canonical(table_of(*rows), columns, where="the set")
    assert "\n" not in str(caught.value)


def test_a_row_of_another_kind_is_named(tmp_path):
    (tmp_path / "mixed.jsonl").write_text(
        '{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": ["a"]}'
    )
    refused(
        ["mixed.jsonl", "completion is neither text nor a list of messages", "row 1"],
        spec(tmp_path / "mixed.jsonl"),
    )


def test_a_list_of_rows_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"is a list; give a datasets\.Dataset"):
        canonical(ROWS)
