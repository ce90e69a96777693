"""Results on disk by content: never stale, never lost, never a reason to stop."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from unlearnkit.errors import UserError
from unlearnkit.evaluation import store as store_module
from unlearnkit.evaluation.store import JointStore, ResultStore, Stores


def numbers(*logps):
    values = [float(np.float32(x)) for x in logps]
    return {"logps": values, "hits": [x > -1 for x in values], "means": values, "variances": values}


def test_what_was_written_is_read_back_exactly():
    one = ResultStore("model", "probe")
    results = {"a": numbers(-0.1, -2.7), "b": numbers(), "c": numbers(-1e-7)}
    one.add(results.items())
    one.flush()
    again = ResultStore("model", "probe")
    assert {name: again[name] for name in results} == results
    assert "d" not in again


def test_only_empty_results_and_only_missing_texts_can_be_written():
    """A part file whose columns hold nothing but nulls must be readable beside the others."""
    for results in ([("a", numbers())], [("b", numbers(-1.0))]):
        store = ResultStore("model")
        store.add(results)
        store.flush()
    assert ResultStore("model")["a"] == numbers()
    texts = ResultStore("texts")
    texts.add([("a", {"text": None, "num_new_tokens": 0})])
    texts.flush()
    texts.add([("b", {"text": "žluť", "num_new_tokens": 2})])
    texts.flush()
    again = ResultStore("texts")
    assert (again["a"]["text"], again["b"]["text"]) == (None, "žluť")


def test_every_part_of_the_key_counts():
    keys = [
        ("model", "probe", 200),
        ("other", "probe", 200),
        ("model", "other", 200),
        ("model", "probe", 100),
        ("model",),
    ]
    assert len({ResultStore(*key).folder for key in keys}) == len(keys)
    ResultStore(*keys[0]).folder.mkdir(parents=True)
    assert ResultStore(*keys[0]).folder == ResultStore(*keys[0]).folder


def test_results_are_written_while_they_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    store = ResultStore("model")
    store.add([("a", numbers(-1.0))])
    assert not store.folder.exists(), "not a file for every batch"
    now[0] = 11.0
    store.add([("b", numbers(-1.0))])
    assert "b" in ResultStore("model")
    monkeypatch.setattr(store_module, "_FLUSH_EVERY", 2)
    store.add([("c", numbers(-1.0))])
    assert "c" not in ResultStore("model")
    store.add([("d", numbers(-1.0))])
    assert "d" in ResultStore("model")
    assert sorted(store.folder.glob(".*")) == [], "no temporary file stays"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other columns"])
def test_a_damaged_file_counts_as_missing(damage):
    for name in ("a", "b"):
        store = ResultStore("model")
        store.add([(name, numbers(-1.0))])
        store.flush()
    bad, good = sorted(store.folder.iterdir())
    if damage == "other columns":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"x": [1]}), bad)
    else:
        bad.write_bytes({"cut": bad.read_bytes()[:-20], "empty": b"", "text": b"hello"}[damage])
    again = ResultStore("model")
    assert ("a" in again) + ("b" in again) == 1
    again.add([("a", numbers(-1.0)), ("b", numbers(-1.0))])
    again.flush()
    assert "a" in ResultStore("model")
    assert "b" in ResultStore("model")
    assert good.exists()


def test_a_store_that_is_switched_off_writes_nothing():
    store = ResultStore("model", enabled=False)
    store.add([("a", numbers(-1.0))])
    store.flush()
    assert store["a"] == numbers(-1.0)
    assert "a" not in ResultStore("model")
    assert list(Path(os.environ["UNLEARNKIT_CACHE"]).iterdir()) == []


def test_what_other_processes_found_is_not_written_twice():
    store = ResultStore("model")
    store.remember([("a", numbers(-1.0))])
    store.flush()
    assert "a" in store
    assert "a" not in ResultStore("model")


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "file"))
    store = ResultStore("model")
    store.add([("a", numbers(-1.0))])
    with pytest.raises(UserError, match="cannot write"):
        store.flush()


def test_a_store_is_opened_once_for_a_key():
    stores = Stores(enabled=False)
    stores("model", "probe").add([("a", numbers(-1.0))])
    assert "a" in stores("model", "probe")
    assert "a" not in stores("model", "other")
    assert "a" not in Stores(enabled=False)("model", "probe"), "nothing is on the disk"


def test_joint_stores_get_a_result_each_and_keep_what_they_know():
    one, two = ResultStore("one"), ResultStore("two")
    one.add([("a", numbers(-1.0))])
    joint = JointStore([one, two])
    assert "a" not in joint, "one of them lacks it"
    joint.add([("a", [numbers(-5.0), numbers(-2.0)]), ("b", [numbers(-3.0), numbers(-4.0)])])
    joint.remember([("c", [numbers(), numbers(-6.0)])])
    joint.flush()
    assert all(name in joint for name in "abc")
    assert (one["a"], one["b"], one["c"]) == (numbers(-1.0), numbers(-3.0), numbers())
    assert (two["a"], two["b"], two["c"]) == (numbers(-2.0), numbers(-4.0), numbers(-6.0))
    again = ResultStore("two")
    assert (again["a"], again["b"]) == (two["a"], two["b"])
    assert "c" not in again, "another process has written it"
