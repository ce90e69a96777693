"""Runs of other suites than TOFU's in one table: their own metrics, and what they say about keeping."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fabricated_attacks import base_meta
from fabricated_runs import SHAPES, records

from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.compare import MOST_OTHERS, comparison
from unlearnkit.reporting.kept import kept_ability
from unlearnkit.reporting.numbers import number
from unlearnkit.reporting.verdict import verdict_of

MUSE = {
    "verbmem_forget": ("VerbMem on the forget set", "memorization"),
    "knowmem_forget": ("KnowMem on the forget set", "forget"),
    "knowmem_retain": ("KnowMem on the retain set", "utility"),
    "privleak": ("PrivLeak", "membership"),
    "membership_min_k": ("Membership: Min-K", "membership"),
    "membership_loss": ("Membership: loss", "membership"),
    "raw_forget_verbmem": ("Raw forget texts: VerbMem", "memorization"),
    "raw_retain_verbmem": ("Raw retain texts: VerbMem", "memorization"),
}
TARGET = (0.58, 0.64, 0.55, -99.8, 0.99, 0.99, 0.4, 0.4)
UNLEARNED = (0.11, 0.32, 0.44, 12.5, 0.45, 0.4, 0.13, 0.35)


def muse_run(make: Any, folder: Path, values: tuple[float, ...] = UNLEARNED, retain: bool = False) -> Path:
    """A run with the metrics of the suite muse in place of TOFU's, NaN: not measured."""
    make(folder, name=folder.name, roles=("target", *(["retain"] if retain else [])))
    for place in (folder / "eval").iterdir():
        role = json.loads((place / "summary.json").read_text())["role"]
        found = {
            name: {
                "value": None if math.isnan(value) else value, "low": None, "high": None, "n": 100,
                "unscored": [], "variant": "", "note": "",
                "weaker": False, "extra": {}, "title": title, "group": group,
            }
            for (name, (title, group)), value in zip(
                MUSE.items(), values if role == "unlearned" else TARGET, strict=True
            )
        }  # fmt: skip
        frame = records(SHAPES[role], 3, {"forget": 10}, bare=True)
        meta = base_meta(role, "muse") | {"metrics": found}
        EvalRun(frame, meta).save(folder / "eval" / place.name.replace("tofu", "muse"))
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    return folder


def test_muse_runs_show_the_first_metrics_of_their_own(make: Any, tmp_path: Path) -> None:
    """In the order of the suite, each value in its column; the first that no run measured take no place."""
    folders = [
        muse_run(make, tmp_path / "one"),
        muse_run(make, tmp_path / "two", (0.2, 0.4, 0.5, math.nan, 0.6, 0.6, 0.2, 0.4)),
    ]
    content = comparison([load_run(folder) for folder in folders])
    names = list(MUSE)[:MOST_OTHERS]
    assert content["heads"] == [*(MUSE[name][0] for name in names), "Training"]
    first, second = ([cell.value for cell in row["cells"]][:-1] for row in content["rows"])
    assert first == list(UNLEARNED[:MOST_OTHERS])
    assert second == [0.2, 0.4, 0.5, None, 0.6, 0.6]
    written = write_report(folders, tmp_path / "out")
    markdown, html = written.markdown.read_text(), written.html.read_text()
    for name, value in zip(names, UNLEARNED, strict=False):
        assert MUSE[name][0] in markdown
        assert MUSE[name][0] in html
        assert number(value) in markdown
    assert "Forget quality (p)" not in content["heads"]
    assert "Distance D" not in content["heads"]
    (table,) = (table for table in content["side_tables"] if table["title"].startswith("Key metrics"))
    assert [row["title"] for row in table["rows"]] == [MUSE[name][0] for name in names]


def test_what_no_run_measured_has_no_column(make: Any, tmp_path: Path) -> None:
    values = (math.nan, *UNLEARNED[1:])
    runs = [load_run(muse_run(make, tmp_path / name, values)) for name in ("one", "two")]
    names = list(MUSE)[1 : MOST_OTHERS + 1]
    assert comparison(runs)["heads"] == [*(MUSE[name][0] for name in names), "Training"]


def test_runs_of_two_suites_show_the_metrics_of_both(make: Any, complete_run: Path, tmp_path: Path) -> None:
    content = comparison([load_run(complete_run), load_run(muse_run(make, tmp_path / "muse"))])
    tofu = ["Forget quality (p)", "Distance D", "Model utility", "Forget ROUGE-L", "Forget probability"]
    muse = [MUSE[name][0] for name in list(MUSE)[:MOST_OTHERS]]
    assert content["heads"] == [*tofu, "Retain ROUGE-L", *muse, "Training"]
    for row in content["rows"]:
        assert len(row["cells"]) == len(content["heads"])
    assert [cell.value for cell in content["rows"][1]["cells"]][:6] == [None] * 6
    assert [cell.value for cell in content["rows"][1]["cells"]][6:12] == list(UNLEARNED[:MOST_OTHERS])
    assert "the runs were evaluated with different suites" in content["cautions"]


def test_seeds_of_muse_runs_have_a_mean_in_the_same_columns(make: Any, tmp_path: Path) -> None:
    folders = [muse_run(make, tmp_path / "one"), muse_run(make, tmp_path / "two", (0.21, *UNLEARNED[1:]))]
    path = folders[1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 2}))
    content = comparison([load_run(folder) for folder in folders])
    (row,) = content["seed_rows"]
    assert len(row["cells"]) == len(content["heads"]) - 1  # no mean of the training time
    assert row["cells"][0].value == pytest.approx(0.16)
    assert row["cells"][0].interval == "0.110 to 0.210"


@pytest.mark.parametrize(("target", "before", "base"), [(True, 0.55, "target"), (False, 0.55, "retain")])
def test_what_a_muse_run_kept_is_its_knowledge_of_the_retain_texts(
    make: Any, tmp_path: Path, target: bool, before: float, base: str
) -> None:
    folder = muse_run(make, tmp_path / "run", retain=True)
    if not target:
        (folder / "eval" / "muse@target").rename(tmp_path / "away")
    run = load_run(folder)
    kept = kept_ability(run)
    assert kept is not None
    assert (kept.metric, kept.before, kept.after, kept.base) == ("knowmem_retain", before, 0.44, base)
    assert kept.share == pytest.approx(0.8)
    assert "knowledge (KnowMem) of the retain texts" in verdict_of(run).text
    assert "80 %" in verdict_of(run).text


def test_model_utility_comes_before_the_utility_of_muse(make: Any, tmp_path: Path) -> None:
    """And this before ROUGE-L on the retain set."""
    folder = make(tmp_path)
    for name, value in (("tofu", 0.3), ("tofu@target", 0.6)):
        path = folder / "eval" / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["metrics"]["knowmem_retain"] = summary["metrics"]["retain_rouge"] | {"value": value}
        path.write_text(json.dumps(summary))
    kept = kept_ability(load_run(folder))
    assert kept is not None
    assert kept.metric == "model_utility"
    for name in ("tofu", "tofu@target"):
        path = folder / "eval" / name / "summary.json"
        summary = json.loads(path.read_text())
        del summary["metrics"]["model_utility"]
        path.write_text(json.dumps(summary))
    kept = kept_ability(load_run(folder))
    assert kept is not None
    assert (kept.metric, kept.share) == ("knowmem_retain", 0.5)
