"""The rows of the example browser: what leaks, the worst sample, the worst attacked answer, the filters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated_attacks import FORGET, STAGES, add_attacks, add_samples

from unlearnkit.evaluation.metrics import rouge_l
from unlearnkit.evaluation.metrics.rouge import unicode_tokens
from unlearnkit.evaluation.records import EvalRun, new_records
from unlearnkit.reporting import load_run
from unlearnkit.reporting.browser import FLAGS, LEAKED, example_rows, flag_counts, worst_attacks


@pytest.fixture(scope="module")
def rows(full_run: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in example_rows(load_run(full_run))}


def test_the_leak_is_the_rouge_of_the_answer_now(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        answer = row["answers"]["unlearned"]
        assert row["leak"] == answer["rouge"]
        if answer["text"] is not None:
            assert row["leak"] == pytest.approx(rouge_l(row["gold"], answer["text"]), abs=1e-4)


def test_the_worst_sample_is_the_one_that_leaks(rows: dict[str, dict[str, Any]]) -> None:
    first = rows["for000000000"]
    assert first["sample"] == {"text": first["gold"], "leak": 1.0, "of": 4}
    assert rows["for000000001"]["sample"]["text"] == "No idea whatsoever."
    assert rows["ret000000000"]["sample"] is None


def test_the_worst_attack_is_the_one_that_brings_most_back(full_run: Path, rows: Any) -> None:
    run = load_run(full_run)
    for row in rows.values():
        if row["dataset"] != "forget":
            assert row["attack"] is None
            continue
        found = {}
        for stage in run.attacks:
            records = stage.evaluations["unlearned"].records
            mine = records[(records["example_id"] == row["id"]) & (records["probe"] == "generate_answer")]
            if row["id"] not in stage.seen:
                found[stage.name, stage.variant] = rouge_l(row["gold"], mine["text"].iloc[0])
        attack = row["attack"]
        assert attack["leak"] == pytest.approx(max(found.values()), abs=1e-4)
        assert found[attack["name"], attack["variant"]] == max(found.values())
        assert not attack["disclosed"]


def test_what_the_attack_had_shown_itself_does_not_count(make: Any, tmp_path: Path) -> None:
    """With relearning alone, all of its examples disclosed, its answers are shown but lift no score."""
    ids = tuple(f"for{i:09x}" for i in range(FORGET["forget"]))
    run = load_run(add_attacks(make(tmp_path), STAGES[:2], seen=ids))
    rows = [row for row in example_rows(run) if row["dataset"] == "forget"]
    assert all(row["attack"]["disclosed"] for row in rows)
    assert any(row["attack"]["leak"] == 1.0 for row in rows)
    assert all(row["worst"] == row["leak"] for row in rows)
    assert not any("returns" in row["flags"] for row in rows)
    assert {found["name"] for found in worst_attacks(run).values()} == {"relearn"}


def test_the_filters_hold_what_they_say(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        answer, forget = row["answers"]["unlearned"], row["dataset"] == "forget"
        leaked = forget and row["leak"] is not None and row["leak"] >= LEAKED
        assert ("leaked" in row["flags"]) == leaked
        back = [row["sample"]["leak"] if row["sample"] else 0, row["attack"]["leak"] if row["attack"] else 0]
        assert ("returns" in row["flags"]) == (forget and not leaked and max(back) >= LEAKED)
        before = row["answers"]["target"]
        changed = before is not None and None not in (before["text"], answer["text"])
        assert ("changed" in row["flags"]) == (changed and before["text"] != answer["text"])
    counts = {flag["code"]: flag["count"] for flag in flag_counts(list(rows.values()))}
    assert list(counts) == [flag for flag in FLAGS if flag in counts]
    for flag, number in counts.items():
        assert number == sum(flag in row["flags"] for row in rows.values()) > 0


def changed_text(run: Path, texts: dict[str, str | None]) -> Path:
    place = run / "eval" / "tofu"
    loaded = EvalRun.load(place)
    frame = loaded.records
    for key, text in texts.items():
        frame.loc[(frame["example_id"] == key) & (frame["probe"] == "generate_answer"), "text"] = text
    loaded.save(place)
    return run


def test_empty_and_repeating_answers_are_found(make: Any, tmp_path: Path) -> None:
    run = changed_text(
        make(tmp_path), {"for000000000": " ... ", "for000000001": "the the the the the the the the the"}
    )
    rows = {row["id"]: row for row in example_rows(load_run(run))}
    assert not unicode_tokens(" ... ")
    assert "empty" in rows["for000000000"]["flags"]
    assert "repeats" in rows["for000000001"]["flags"]
    assert not {"empty", "repeats"} & set(rows["for000000002"]["flags"])


def test_an_example_that_nothing_was_scored_on_is_found(make: Any, tmp_path: Path) -> None:
    run = changed_text(make(tmp_path), {"for000000000": None})
    place = run / "eval" / "tofu"
    loaded = EvalRun.load(place)
    frame = loaded.records
    likelihood = (frame["example_id"] == "for000000000") & (frame["probe"] == "answer_likelihood")
    loaded.records = frame[~likelihood]
    loaded.save(place)
    rows = {row["id"]: row for row in example_rows(load_run(run))}
    assert "unscored" in rows["for000000000"]["flags"]
    assert rows["for000000000"]["worst"] is None
    assert "unscored" not in rows["for000000001"]["flags"]


def test_documents_to_continue_have_rows_too(make: Any, tmp_path: Path) -> None:
    place = make(tmp_path) / "eval" / "tofu"
    loaded = EvalRun.load(place)
    row = {
        "probe": "continue_text",
        "dataset": "verbmem",
        "example_id": "doc1",
        "field": "continuation",
        "prompt": "Once upon",
        "reference_text": "a time there was",
        "text": "a time she went",
    }
    loaded.records = pd.concat([loaded.records, new_records([row])], ignore_index=True)
    loaded.save(place)
    (found,) = [row for row in example_rows(load_run(tmp_path)) if row["dataset"] == "verbmem"]
    assert (found["question"], found["gold"]) == ("Once upon", "a time there was")
    assert found["leak"] == 0.5  # "a time" of four words
    assert found["set"] == "texts for verbatim memory"
    assert found["flags"] == []


def test_rows_are_json_and_equal_input_gives_equal_rows(make: Any, tmp_path: Path) -> None:
    run = add_samples(make(tmp_path))
    first, second = (json.dumps(example_rows(load_run(run)), allow_nan=False) for _ in range(2))
    assert first == second
