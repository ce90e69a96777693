"""What the pages say: the numbers of the summaries, every text escaped, nothing loaded from outside."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.numbers import number, p_value
from unlearnkit.reporting.tables import PARTS

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> | `a` \u2028 <!-- &amp;"


class Page(HTMLParser):
    """Collects every start tag and the cells that carry a metric."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @property
    def values(self) -> dict[tuple[str, str], float]:
        found = {}
        for tag, attributes in self.tags:
            if tag == "td" and "data-metric" in attributes and "data-value" in attributes:
                found[str(attributes["data-metric"]), str(attributes["data-role"])] = float(
                    str(attributes["data-value"])
                )
        return found


def examples(html: str) -> dict[str, Any]:
    match = re.search(r'id="examples-data">(.*?)</script>', html, re.DOTALL)
    assert match
    return json.loads(match.group(1))


@pytest.fixture(scope="module")
def written(complete_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_report(complete_run, tmp_path_factory.mktemp("report"))


def test_every_metric_of_every_summary_is_in_the_html_in_full(complete_run: Path, written: Any) -> None:
    values = Page(written.html.read_text()).values
    folders = {"unlearned": "tofu", "target": "tofu@target", "retain": "tofu@retain"}
    checked = 0
    for role, folder in folders.items():
        summary = json.loads((complete_run / "eval" / folder / "summary.json").read_text())
        for name, entry in summary["metrics"].items():
            if entry["value"] is None:
                assert (name, role) not in values
            else:
                assert values[name, role] == entry["value"]
                checked += 1
        log10 = summary["metrics"]["forget_quality"]["extra"].get("log10_p")
        assert values.get(("log10_p", role)) == log10
    assert checked > 40


def test_markdown_and_json_hold_the_same_numbers(complete_run: Path, written: Any) -> None:
    run = load_run(complete_run)
    markdown = written.markdown.read_text()
    rows = {line.split("|")[1].strip(): line for line in markdown.splitlines() if line.startswith("|")}
    result = json.loads(written.summary.read_text())
    for name, metric in run.main.metrics.items():
        write = p_value if name == "forget_quality" else number
        cells = [cell.strip() for cell in rows[metric.title].split("|")]
        for place, role in enumerate(("target", "unlearned", "retain"), start=2):
            entry = run.evaluations[role].summary["metrics"][name]
            assert result["metrics"][name][role] == entry
            shown = "–" if entry["value"] is None else write(entry["value"])
            assert cells[place].split(" ")[0] == shown
            if entry["value"] is not None:
                assert f"n = {entry['n']}" in cells[place]


def test_all_nine_parts_are_shown_for_all_three_models(written: Any) -> None:
    values = Page(written.html.read_text()).values
    assert len(PARTS) == 9
    assert {(name, role) for name, _ in PARTS for role in ("target", "unlearned", "retain")} <= set(values)


def test_the_page_is_self_contained_and_has_all_its_plots(written: Any) -> None:
    html = written.html.read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 4  # plane, truth ratios, nine parts, curves
    assert not {"link", "img", "iframe", "object", "embed"} & set(tags)
    assert all("src" not in attributes for _, attributes in page.tags)
    for label in ("Target: TOFU full", "Unlearned: NPO", "Retain: retain90", "forget/npo", "retain/nll"):
        assert label in html


def test_the_example_table_has_the_answers_of_all_three_models(complete_run: Path, written: Any) -> None:
    data = examples(written.html.read_text())
    records = load_run(complete_run).main.records
    assert len(data["rows"]) == records["example_id"].nunique()
    row = data["rows"][0]
    assert set(row["answers"]) == {"target", "unlearned", "retain"}
    generated = records[(records["probe"] == "generate_answer") & (records["example_id"] == row["id"])].iloc[
        0
    ]
    assert row["answers"]["unlearned"]["text"] == generated["text"]
    assert row["gold"] == generated["reference_text"]
    assert row["change"] == pytest.approx(
        row["answers"]["unlearned"]["rouge"] - row["answers"]["target"]["rouge"], abs=1e-3
    )


def test_means_of_the_example_table_are_the_metrics(complete_run: Path, written: Any) -> None:
    rows = [row for row in examples(written.html.read_text())["rows"] if row["set"] == "forget set"]
    run = load_run(complete_run)
    for role, view in run.evaluations.items():
        for key in ("rouge", "probability"):
            mean = sum(row["answers"][role][key] for row in rows) / len(rows)
            assert mean == pytest.approx(view.value(f"forget_{key}"), abs=1e-4)


def hostile_run(make: Any, folder: Path) -> Path:
    run = make(folder, name=HOSTILE.replace("/", "_"), recipe={"method": HOSTILE})
    for role in ("tofu", "tofu@target"):
        loaded = EvalRun.load(run / "eval" / role)
        frame = loaded.records.copy()
        for column in ("prompt", "reference_text"):
            frame[column] = HOSTILE
        frame.loc[frame["probe"] == "generate_answer", "text"] = HOSTILE
        loaded.meta["label"] = HOSTILE
        EvalRun(frame, loaded.meta).save(run / "eval" / role)
    return run


def test_hostile_text_stays_text(make: Any, tmp_path: Path) -> None:
    written = write_report(hostile_run(make, tmp_path / "run"), tmp_path / "out")
    html = written.html.read_text()
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]
    assert examples(html)["rows"][0]["answers"]["unlearned"]["text"] == HOSTILE
    assert "innerHTML" not in html
    assert "document.write" not in html
    body = written.markdown.read_text().split("## Resolved recipe")[0]
    assert "<script" not in body
    assert "<img" not in body


def test_equal_input_gives_equal_bytes(complete_run: Path, written: Any, tmp_path: Path) -> None:
    again = write_report(complete_run, tmp_path)
    for first, second in zip(dataclasses.astuple(written), dataclasses.astuple(again), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_unscored_examples_are_counted_and_named(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    path = run / "eval" / "tofu" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["forget_rouge"]["unscored"] = ["lost-one", "lost-two"]
    path.write_text(json.dumps(summary))
    written = write_report(run)
    for text in (written.html.read_text(), written.markdown.read_text()):
        assert "2 example(s) could not be scored" in text
        assert "lost-one, lost-two" in text
        assert "2 not scored" in text


def test_models_measured_on_different_data_are_pointed_out(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    path = run / "eval" / "tofu@target" / "summary.json"
    summary = json.loads(path.read_text())
    summary["fingerprint"]["data"] = "another"
    path.write_text(json.dumps(summary))
    assert any("not evaluated with the same data" in caution for caution in load_run(run).cautions)


def test_several_runs_are_compared_in_one_page(make: Any, complete_run: Path, tmp_path: Path) -> None:
    recipe = {"method": "grad_diff", "training": {"learning_rate": 2e-5}}
    other = make(tmp_path / "grad_diff", name="grad_diff", recipe=recipe)
    written = write_report([complete_run, other], tmp_path / "out")
    html, markdown = written.html.read_text(), written.markdown.read_text()
    assert html.count("<svg") == 1
    for name in ("npo", "grad_diff"):
        assert name in html
        assert f"| {name}".replace("_", "\\_") in markdown
    assert "training.learning_rate" in html
    assert "training.learning\\_rate" in markdown
    result = json.loads(written.summary.read_text())
    assert [run["name"] for run in result["runs"]] == ["npo", "grad_diff"]
    for run in result["runs"]:
        value = run["metrics"]["model_utility"]["unlearned"]["value"]
        assert f'data-value="{value}"' in html
        assert number(value) in markdown


def test_a_bare_evaluation_folder_gets_a_report_of_its_own(complete_run: Path, tmp_path: Path) -> None:
    written = write_report(complete_run / "eval" / "tofu", tmp_path / "out")
    result = json.loads(written.summary.read_text())
    assert set(result["models"]) == {"unlearned"}
    assert any("before unlearning" in gap for gap in result["not_measured"])
    assert result["metrics"]["forget_quality"]["unlearned"]["value"] > 0


def test_runs_that_differ_in_the_seed_only_get_a_mean_and_a_range(
    make: Any, complete_run: Path, shapes: Any, tmp_path: Path
) -> None:
    other = make(
        tmp_path / "again", name="again", unlearned=dataclasses.replace(shapes["unlearned"], repeats={})
    )
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "seed": 2}))
    written = write_report([complete_run, other], tmp_path / "out")
    values = [load_run(run).main.value("forget_rouge") for run in (complete_run, other)]
    assert values[0] != values[1]
    for text in (written.html.read_text(), written.markdown.read_text()):
        assert "Mean of 2 seeds" in text
        assert number(sum(values) / 2) in text
        assert f"{number(min(values))} to {number(max(values))}" in text


def test_one_seed_twice_is_no_sample_of_seeds(make: Any, complete_run: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "again", name="again")
    assert "seeds" not in write_report([complete_run, other], tmp_path / "out").markdown.read_text()
