"""Records on disk: a round trip, every kind of damage, and joining by example id."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers_metrics import answer, example, generation

from unlearnkit.errors import RecordsError
from unlearnkit.evaluation.records import COLUMNS, EvalRun, answer_nll, join, new_records, validate


@pytest.fixture
def run() -> EvalRun:
    rows = example("a", [-0.5, -1.5], [[-1.0], []])
    rows += [generation("a", "gold", "said"), generation("b", "gold", None)]
    return EvalRun(new_records(rows), {"suite": "tofu", "metrics": {"x": None}})


def test_round_trip(run: EvalRun, tmp_path: Path) -> None:
    run.save(tmp_path / "a=b")
    back = EvalRun.load(tmp_path / "a=b")
    assert back.meta == run.meta
    assert list(back.records.columns) == list(COLUMNS)
    assert [list(map(float, row)) for row in back.records["logps"]] == list(run.records["logps"])
    assert back.records["text"].isna().tolist() == [True, True, True, False, True]
    assert back.records["ends_with_eos"].tolist() == run.records["ends_with_eos"].tolist()
    assert sorted(path.name for path in (tmp_path / "a=b").iterdir()) == ["records.parquet", "summary.json"]
    back.save(tmp_path / "again")
    assert (tmp_path / "again/records.parquet").read_bytes() == (
        tmp_path / "a=b/records.parquet"
    ).read_bytes()


def test_empty_run(tmp_path: Path) -> None:
    EvalRun(new_records([])).save(tmp_path)
    assert EvalRun.load(tmp_path).records.empty


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_half_written_records(run: EvalRun, tmp_path: Path, keep: int) -> None:
    run.save(tmp_path)
    path = tmp_path / "records.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecordsError, match=r"records\.parquet.*evaluate the model again") as caught:
        EvalRun.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_flipped_byte(run: EvalRun, tmp_path: Path) -> None:
    run.save(tmp_path)
    path = tmp_path / "records.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(RecordsError, match="again"):
        EvalRun.load(tmp_path)


def test_missing_files(run: EvalRun, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"records\.parquet does not exist; give the folder"):
        EvalRun.load(tmp_path)
    run.save(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RecordsError, match="is not complete"):
        EvalRun.load(tmp_path)
    (tmp_path / "summary.json").write_text('{"suite": "to')
    with pytest.raises(RecordsError, match="is not complete"):
        EvalRun.load(tmp_path)


def test_records_and_summary_of_different_runs(run: EvalRun, tmp_path: Path) -> None:
    """Killed between the two files of a second evaluation: new records beside the old summary."""
    run.save(tmp_path)
    EvalRun(new_records(example("z", [-1.0]))).save(tmp_path / "new")
    (tmp_path / "new/records.parquet").replace(tmp_path / "records.parquet")
    with pytest.raises(RecordsError, match="not from the same evaluation"):
        EvalRun.load(tmp_path)


def test_parquet_of_something_else(run: EvalRun, tmp_path: Path) -> None:
    run.save(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    pd.DataFrame({"question": ["a"]}).to_parquet(tmp_path / "records.parquet")
    with pytest.raises(RecordsError, match="lack the column"):
        EvalRun.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": "answer"}, "unknown probe 'answer'"),
        ({"field": "generation"}, "field 'generation' for answer_likelihood"),
        ({"num_tokens": 3}, "1 logps for the 3 tokens of example a"),
        ({"hits": []}, "0 hits for the 1 tokens"),
        ({"example_id": None}, "without a value for 'example_id'"),
        ({"nonsense": 1}, "unknown column 'nonsense'"),
    ],
)
def test_schema_faults(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordsError, match=message):
        new_records([{**answer("a", [-1.0]), **change}])


def test_duplicates_and_missing_columns() -> None:
    with pytest.raises(RecordsError, match=r"example a of 'forget' .* more than once"):
        new_records([answer("a", [-1.0]), answer("a", [-2.0])])
    frame = new_records([answer("a", [-1.0])])
    with pytest.raises(RecordsError, match=r"here lack the column\(s\) logps, hits"):
        validate(frame.drop(columns=["logps", "hits"]), "here")


def test_answer_nll() -> None:
    """Tokens -0.5 and -1.5: mean 1, sum 2; no tokens: NaN; an impossible token: infinite."""
    frame = new_records([answer("a", [-0.5, -1.5]), answer("b", []), answer("c", [float("-inf"), 0.0])])
    mean = answer_nll(frame).tolist()
    assert mean[0] == 1.0
    assert math.isnan(mean[1])
    assert mean[2] == math.inf
    assert answer_nll(frame, total=True).tolist()[0] == 2.0


def test_join_by_example_id() -> None:
    left = pd.Series([1.0, 2.0], index=["b", "a"])
    right = pd.Series([3.0, 4.0], index=["a", "b"])
    table = join(left, right)
    assert table.to_dict("list") == {"left": [2.0, 1.0], "right": [3.0, 4.0]}
    with pytest.raises(RecordsError, match=r"1 appear only in before \(such as b\); evaluate both"):
        join(left, right.iloc[:1], left_name="before", right_name="after")
