"""The report of a comparison: groups, failed cells, front, cost, cautions and summary, from made-up runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_grid import cell, few, make_cell, write_comparison
from test_report_compare import muse_run

from unlearnkit.reporting import write_grid_report
from unlearnkit.reporting.grid_content import grid_content
from unlearnkit.reporting.grid_groups import groups_of
from unlearnkit.reporting.grid_read import load_grid

# method, learning rate -> (forget quality, D, utility) of seeds 0, 1, 2
RUNS = {
    ("npo", 1e-5): ((0.2, 0.10, 0.60), (0.4, 0.08, 0.62), (0.3, 0.09, 0.61)),
    ("npo", 2e-5): ((0.01, 0.30, 0.50), (0.3, 0.28, 0.52), (0.2, 0.29, 0.51)),
    ("rpo", 1e-5): ((1e-9, 0.60, 0.70), (1e-8, 0.58, 0.72), (1e-7, 0.59, 0.71)),
}
ERROR = "the loss is not finite at step 3; lower training.learning_rate."


@pytest.fixture(scope="module")
def comparison(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups of three seeds, one that failed in all seeds, one of a pending and a done cell."""
    folder = tmp_path_factory.mktemp("runs") / "compare-tofu_tiny"
    run = make(folder.parent / "npo")
    cells = [
        make_cell(folder, run, method, seed, rate, {"forget_quality": p, "statistic": d, "model_utility": u})
        for (method, rate), seeds in RUNS.items()
        for seed, (p, d, u) in enumerate(seeds)
    ]
    cells += [cell("rpo", seed, 2e-5, status="failed", error=ERROR, run="") for seed in (0, 1, 2)]
    one = {"forget_quality": 0.5, "statistic": 0.5, "model_utility": 0.4, "train": 300.0}
    cells.append(make_cell(folder, run, "rmu", 0, 2e-5, one))
    cells.append(cell("rmu", 1, 2e-5, status="pending", run="", seconds=None))
    write_comparison(folder, cells)
    (folder / "cells").mkdir()
    (folder / "cells" / "rpo-2e-05-0.log").write_text("loss nan")
    (folder.parent / "npo-1e-05-0" / "report.html").write_text("its own")
    return folder


@pytest.fixture(scope="module")
def written(comparison: Path) -> dict[str, Any]:
    paths = write_grid_report(comparison)
    return {
        "html": paths.html.read_text(),
        "markdown": paths.markdown.read_text(),
        "summary": json.loads(paths.summary.read_text()),
        "content": grid_content(load_grid(comparison)),
    }


def row(html: str, key: str, value: str) -> str:
    """The table row with an attribute."""
    found = re.search(rf'<tr data-{key}="{re.escape(value)}">.*?</tr>', html, re.DOTALL)
    assert found
    return found.group(0)


def test_seeds_of_one_method_and_setting_are_one_group(comparison: Path) -> None:
    groups = groups_of(load_grid(comparison), ["model_utility"])
    assert [(group.title, [one.seed for one in group.cells]) for group in groups] == [
        ("npo, learning_rate 1e-5", [0, 1, 2]),
        ("npo, learning_rate 2e-5", [0, 1, 2]),
        ("rmu, learning_rate 2e-5", [0, 1]),
        ("rpo, learning_rate 1e-5", [0, 1, 2]),
        ("rpo, learning_rate 2e-5", [0, 1, 2]),
    ]
    assert [group.mean("model_utility") for group in groups[:4]] == pytest.approx([0.61, 0.51, 0.4, 0.71])


def test_a_group_shows_mean_interval_and_range_and_p_its_median(written: dict[str, Any]) -> None:
    """Utility 0.60, 0.61, 0.62: s = 0.01, so 0.61 ± 4.302653 x 0.01 / sqrt(3) = 0.61 ± 0.02484."""
    shown = row(written["html"], "group", "1")
    for text in ("0.610", "0.585 to 0.635", "(0.600 to 0.620)", "(0.2 to 0.4)", "above 0.05 in 3 of 3"):
        assert text in shown
    assert "0.3 (range 0.2 to 0.4; above 0.05 in 3 of 3)" in written["markdown"]
    assert "0.610 (0.585 to 0.635; range 0.600 to 0.620)" in written["markdown"]
    assert 'data-metric="forget_quality" data-value="0.3"' in row(written["html"], "group", "1")
    assert "above 0.05 in 2 of 3" in row(written["html"], "group", "2")


def test_the_front_is_over_distance_and_utility(written: dict[str, Any]) -> None:
    """(D, utility): npo (0.09, 0.61) and rpo (0.59, 0.71) are not beaten; the others are, by npo."""
    assert [group["on_front"] for group in written["summary"]["groups"]] == [True, False, False, True, False]
    shown = ['class="badge front"' in row(written["html"], "group", str(i)) for i in range(1, 6)]
    assert shown == [True, False, False, True, False]
    assert written["summary"]["axes"] == {
        "forgetting": {"metric": "statistic", "better": "lower"},
        "keeping": {"metric": "model_utility", "better": "higher"},
    }
    figure = re.search(r'aria-label="(Distance D[^"]*against[^"]*)"', written["html"])
    assert figure
    assert "1 npo, learning_rate 1e-5: 0.090 and 0.610, on the Pareto front" in figure.group(1)
    assert "Retain model: 0.000" in figure.group(1)


def test_the_first_words_say_who_forgot_and_what_to_doubt(written: dict[str, Any]) -> None:
    """A group with a seed that is not finished has not passed in all seeds."""
    text = written["summary"]["text"]
    assert text.startswith("1 of 5 groups cannot be told apart from a model that never saw the examples")
    assert "(forget quality above 0.05 in every seed): npo, learning_rate 1e-5." in text
    assert "npo, learning_rate 1e-5 (p above 0.05); rpo, learning_rate 1e-5." in text
    assert "confirm it with new seeds" in text
    assert "at most 3 seeds" in text
    assert [group["passes"] for group in written["summary"]["groups"]] == [True, False, False, False, None]


def test_failed_and_pending_cells_are_named(written: dict[str, Any]) -> None:
    html = written["html"]
    group = row(html, "group", "5")
    assert "no seed finished, 3 failed" in group
    assert group.count(">–<") == len(written["content"]["columns"])
    assert "1 seed, 1 pending" in row(html, "group", "3")
    assert html.count(f'<span class="badge failed">failed</span> {ERROR}') == 3
    assert '<a href="cells/rpo-2e-05-0.log">' in html
    assert html.count('<span class="badge pending">') == 1
    said = written["markdown"].replace("\\_", "_")
    assert f"- rpo, learning_rate 2e-5, seed 0, failed: {ERROR} (log: cells/rpo-2e-05-0.log)" in said
    assert written["summary"]["cautions"][:2] == ["3 of 14 cells failed", "1 of 14 cells is not run yet"]


def test_a_cell_links_to_its_own_report_where_there_is_one(written: dict[str, Any]) -> None:
    assert '<a href="../npo-1e-05-0/report.html">npo, learning_rate 1e-5, seed 0</a>' in written["html"]
    assert "../npo-1e-05-1/report.html" not in written["html"]
    assert written["summary"]["cells"][1]["run"] == "../npo-1e-05-1"


def test_the_cost_of_a_method_is_over_all_its_runs(written: dict[str, Any]) -> None:
    """100, 101 and 102 seconds, twice for npo."""
    first = written["summary"]["costs"][0]
    assert (first["method"], first["runs"], first["reference"]) == ("npo", 6, "cached")
    assert first["train_seconds"] == {"mean": pytest.approx(101.0), "lowest": 100.0, "highest": 102.0}
    assert first["peak_memory_bytes"]["mean"] == 1_450_000_000
    shown = row(written["html"], "method", "npo")
    for text in ("101.0 s", "100.0 s to 102.0 s", "480\u202f000", "1.35 GiB", "3\u202f145\u202f728", "125"):
        assert text in shown


def test_settings_that_differ_leave_out_the_grid_and_the_seed(written: dict[str, Any]) -> None:
    assert written["summary"]["differences"] == [
        {"setting": "training.beta", "values": {"npo": "0.1", "rmu": "2.5", "rpo": "2.5"}}
    ]


def test_the_summary_is_valid_complete_and_documented(
    written: dict[str, Any], schema: dict[str, Any]
) -> None:
    summary = written["summary"]
    jsonschema.validate(summary, schema)
    for key in summary:
        assert not jsonschema.Draft7Validator(schema).is_valid({k: v for k, v in summary.items() if k != key})
    text = (Path(__file__).parents[2] / "docs" / "summary.md").read_text()
    group, one = summary["groups"][0], summary["cells"][0]
    for key in (*summary, *group, *group["metrics"]["forget_rouge"], *one, *summary["costs"][0]):
        assert f"`{key}`" in text, key


def test_the_order_of_the_cells_does_not_matter(comparison: Path, written: dict[str, Any]) -> None:
    path = comparison / "comparison.json"
    before = path.read_text()
    found = json.loads(before)
    found["cells"].reverse()
    path.write_text(json.dumps(found))
    again = write_grid_report(comparison)
    path.write_text(before)
    assert again.html.read_text() == written["html"]
    assert again.markdown.read_text() == written["markdown"]
    assert json.loads(again.summary.read_text()) == written["summary"]


def test_one_seed_has_its_interval_over_examples(make: Any, tmp_path: Path, schema: dict[str, Any]) -> None:
    written = write_grid_report(few(make, tmp_path, model_utility=0.5))
    summary = json.loads(written.summary.read_text())
    jsonschema.validate(summary, schema)
    (group,) = summary["groups"]
    spread = group["metrics"]["model_utility"]
    assert (spread["value"], spread["low"], spread["high"], spread["over"]) == (0.5, 0.45, 0.55, "examples")
    assert "how much the numbers change from seed to seed is not known" in summary["text"]
    assert "0.450 to 0.550" in row(written.html.read_text(), "group", "1")


def test_without_forget_quality_it_says_so(make: Any, tmp_path: Path, schema: dict[str, Any]) -> None:
    folder = few(make, tmp_path, cells=2)
    for path in tmp_path.glob("*/eval/*/summary.json"):
        found = json.loads(path.read_text())
        found["metrics"].pop("forget_quality", None)
        path.write_text(json.dumps(found))
    summary = json.loads(write_grid_report(folder).summary.read_text())
    jsonschema.validate(summary, schema)
    assert summary["headline"].startswith("Forget quality was not measured")
    assert summary["groups"][0]["passes"] is None
    assert summary["axes"]["forgetting"]["metric"] == "forget_rouge"


def test_a_suite_of_other_metrics_is_compared_by_its_own(make: Any, tmp_path: Path) -> None:
    muse_run(make, tmp_path / "npo-0")
    folder = write_comparison(tmp_path / "compare", [cell("npo", 0, run="../npo-0")])
    written = write_grid_report(folder)
    summary = json.loads(written.summary.read_text())
    assert summary["axes"]["forgetting"]["metric"] == "knowmem_forget"
    assert summary["axes"]["keeping"]["metric"] == "knowmem_retain"
    assert "PrivLeak" in written.html.read_text()


def test_what_was_not_measured_is_null_and_off_the_front(
    make: Any, tmp_path: Path, schema: dict[str, Any]
) -> None:
    folder = few(make, tmp_path, cells=3, model_utility=None, retain_rouge=None)
    written = write_grid_report(folder)
    assert not re.search(r"\b(NaN|Infinity|nan)\b", written.summary.read_text())
    assert not re.search(r">\s*-?(nan|inf)\b", written.html.read_text())
    summary = json.loads(written.summary.read_text())
    jsonschema.validate(summary, schema)
    (group,) = summary["groups"]
    assert group["metrics"]["model_utility"]["value"] is None
    assert (group["on_front"], summary["axes"]) == (None, None)
    assert "there is no Pareto front" in summary["text"]
    assert "Forgetting and keeping</h2>" not in written.html.read_text()
