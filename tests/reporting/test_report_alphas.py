"""One pair, many alphas: the numbers beside each other, the served one marked, and what is read from disk."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_pairs import ALPHAS, change

from unlearnkit.errors import RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.reporting import load_run, write_report
from unlearnkit.reporting.alphas import LOG10, Sweep, sweep_of
from unlearnkit.reporting.alphas_plot import LOWEST_LOG10, alpha_plot, points
from unlearnkit.reporting.limits import ALPHA_CHOSEN, limits
from unlearnkit.reporting.numbers import number
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.views import AlphaView, Metric, RunView


@pytest.fixture(scope="module")
def run(pair_run: Path) -> RunView:
    return load_run(pair_run)


def swept(run: RunView) -> Sweep:
    found = sweep_of(run)
    assert found is not None
    return found


def test_every_alpha_has_the_numbers_of_its_own_records(pair_run: Path, run: RunView) -> None:
    """The served alpha is the evaluation itself; each other one has a folder of its own."""
    sweep = swept(run)
    assert [row.alpha for row in sweep.tried] == list(ALPHAS)
    for row in sweep.tried:
        folder = pair_run / "eval" / "tofu"
        records = EvalRun.load(folder if row.served else folder / "alphas" / str(row.alpha))
        for name, measure in (("forget_rouge", metrics.rouge), ("forget_probability", metrics.probability)):
            expected = measure(records, dataset="forget")
            cell = row.numbers[name]
            assert (cell.value, cell.low, cell.high) == pytest.approx(
                (expected.value, expected.low, expected.high)
            )
    assert [row.alpha for row in sweep.tried if row.served] == [0.75]


def test_models_to_compare_with_stand_at_both_ends(run: RunView) -> None:
    sweep = swept(run)
    assert [row.role for row in sweep.rows] == ["target", *["unlearned"] * len(ALPHAS), "retain"]
    assert run.target is not None
    assert sweep.rows[0].alpha == 0  # nothing is taken away: the target model by definition
    assert sweep.rows[0].numbers["forget_rouge"].value == run.target.value("forget_rouge")
    assert sweep.rows[-1].alpha is None


def test_the_sentences_say_what_alpha_does_which_is_served_and_that_no_training_was_needed(
    run: RunView,
) -> None:
    """In the made-up sweep p is above 0.05 at the served alpha alone."""
    text = " ".join(swept(run).sentences)
    assert "at 0 the target model answers alone" in text
    assert "Served is 0.75. Choosing it needed no new training" in text
    assert "Of the 3 alphas that were measured, forget quality is above 0.05 with 0.75, and highest" in text
    assert "look better than the same numbers on new questions would" in text
    assert ALPHA_CHOSEN in limits([run])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0.01, 0.04, 0.0), "is above 0.05 with none."),
        ((0.1, 0.3, 0.2), "is above 0.05 with all, and highest with the served one."),
        ((0.1, 0.3, 0.4), "is above 0.05 with all."),
        ((0.4, 0.3, 0.01), "is above 0.05 with 0.25, 0.75."),
    ],
)
def test_where_the_limit_is_passed(run: RunView, values: tuple[float, ...], says: str) -> None:
    changed = tuple(
        dataclasses.replace(
            view, metrics={**view.metrics, "forget_quality": _with(view.metrics["forget_quality"], value)}
        )
        for view, value in zip(run.alphas, values, strict=True)
    )
    assert says in " ".join(swept(dataclasses.replace(run, alphas=changed)).sentences)


def _with(metric: Any, value: float) -> Any:
    return dataclasses.replace(metric, value=value)


def test_what_was_not_measured_has_no_column_and_no_sentence(run: RunView) -> None:
    without = tuple(
        dataclasses.replace(
            view, metrics={name: one for name, one in view.metrics.items() if name != "forget_quality"}
        )
        for view in run.alphas
    )
    sweep = swept(dataclasses.replace(run, alphas=without))
    assert [name for name, _ in sweep.columns][:2] == ["model_utility", "forget_rouge"]
    assert "0.05" not in " ".join(sweep.sentences)
    assert "Forget quality" not in alpha_plot(sweep)
    own = {"mine": dataclasses.replace(run.main.metrics["forget_rouge"], name="mine", title="Mine")}
    other = swept(dataclasses.replace(run, alphas=tuple(_only(view, own) for view in run.alphas)))
    assert other.columns == (("mine", "Mine"),)
    assert other.rows[0].numbers["mine"].value is None  # the target model was not asked
    assert "Mine</text>" in alpha_plot(other)
    nothing = tuple(_only(view, {}) for view in run.alphas)
    assert alpha_plot(swept(dataclasses.replace(run, alphas=nothing))) == ""


def _only(view: AlphaView, found: dict[str, Metric]) -> AlphaView:
    return dataclasses.replace(view, metrics=found)


def test_the_points_of_the_plot_are_those_of_the_table(run: RunView) -> None:
    sweep = swept(run)
    found = points(sweep.tried, "forget_rouge")
    assert [(alpha, value) for alpha, value, _, _ in found] == [
        (row.alpha, row.numbers["forget_rouge"].value) for row in sweep.tried
    ]
    quality = points(sweep.tried, LOG10)
    for (_, value, _, _), row in zip(quality, sweep.tried, strict=True):
        assert 10**value == pytest.approx(row.numbers["forget_quality"].value)


def test_a_point_without_an_interval_is_its_own_and_the_smallest_p_has_a_place(run: RunView) -> None:
    row = swept(run).tried[0]
    low = dataclasses.replace(row, numbers={**row.numbers, LOG10: Cell("", -1e9), "forget_rouge": Cell("–")})
    assert points([low], LOG10) == [(0.25, LOWEST_LOG10, LOWEST_LOG10, LOWEST_LOG10)]
    assert points([low], "forget_rouge") == []


def test_the_plot_marks_the_served_alpha_and_reads_out_the_table(run: RunView) -> None:
    svg = alpha_plot(swept(run))
    for text in ("Forget quality (p)", "Distance D", "Model utility", "Forget ROUGE-L", "Forget probability"):
        assert f"{text}</text>" in svg
    for text in ("Served: alpha 0.75", "Target model alone", "Retain model"):
        assert f"{text}</text>" in svg
    label = re.search(r'aria-label="([^"]*)"', svg)
    assert label is not None
    assert "Alpha 0.75 (served): Forget quality (p)" in label.group(1)
    for view in run.alphas:
        assert f"Model utility {number(view.metrics['model_utility'].value)}" in label.group(1)
    assert alpha_plot(swept(run)) == svg


def test_the_page_the_markdown_and_the_summary_have_it(
    pair_run: Path, tmp_path: Path, schema: dict[str, Any]
) -> None:
    written = write_report(pair_run, tmp_path)
    html, markdown = written.html.read_text(), written.markdown.read_text()
    section = html.partition('<h2 id="alphas">')[2].partition("<h2")[0]
    assert section.count("<tr data-role") == len(ALPHAS) + 2
    assert section.count('<span class="badge">served</span>') == 1
    assert '<a href="#alphas">Alpha</a>' in html
    assert "| Alpha 0.75 (served) |" in markdown
    summary = json.loads(written.summary.read_text())
    jsonschema.validate(summary, schema)
    assert [entry["alpha"] for entry in summary["alphas"]] == list(ALPHAS)
    (served,) = (entry for entry in summary["alphas"] if entry["served"])
    assert served["metrics"]["forget_rouge"] == summary["metrics"]["forget_rouge"]["unlearned"]
    assert summary["models"]["unlearned"]["serving"]["kind"] == "uld"
    assert summary["models"]["target"]["serving"] is None
    text = (Path(__file__).parents[2] / "docs" / "summary.md").read_text()
    for key in (*summary["models"]["unlearned"]["serving"], *served, "alphas", "serving"):
        assert f"`{key}`" in text, key


def place(run: Path) -> Path:
    return run / "eval" / "tofu" / "alphas"


def test_one_model_has_no_such_section(complete_run: Path, tmp_path: Path) -> None:
    written = write_report(complete_run, tmp_path)
    assert "#alphas" not in written.html.read_text()
    assert "alpha" not in written.markdown.read_text().lower()
    assert json.loads(written.summary.read_text())["alphas"] == []


def test_one_alpha_alone_is_no_sweep(pair_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pair_run, tmp_path / "uld"))
    change(place(run) / "alphas.json", alphas=[0.75])
    assert sweep_of(load_run(run)) is None
    assert ALPHA_CHOSEN not in limits([load_run(run)])


def test_an_evaluation_folder_has_its_alphas_too(pair_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair_run / "eval" / "tofu", tmp_path / "tofu"))
    sweep = swept(load_run(folder))
    assert [row.role for row in sweep.rows] == ["unlearned"] * len(ALPHAS)
    assert "Retain model</text>" not in alpha_plot(sweep)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (place(run) / "alphas.json").unlink(),
        lambda run: change(place(run) / "alphas.json", "of", model="another"),
    ],
)
def test_what_was_not_finished_or_is_of_another_model_is_left_out(
    pair_run: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    run = Path(shutil.copytree(pair_run, tmp_path / "uld"))
    damage(run)
    view = load_run(run)
    assert view.alphas == ()
    assert any("tofu/alphas belongs to another model or was not finished" in one for one in view.cautions)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: shutil.rmtree(place(run) / "1.5"), "1.5/summary.json does not exist"),
        (lambda run: change(place(run) / "0.25" / "summary.json", metrics=None), "has no metrics"),
        (lambda run: (place(run) / "alphas.json").write_text("{"), "not readable as JSON"),
        (lambda run: change(place(run) / "alphas.json", alphas="0.5"), "does not list the alphas"),
        (lambda run: change(place(run) / "alphas.json", alphas=[0.5, math.nan]), "does not list the alphas"),
    ],
)
def test_a_broken_sweep_is_refused(
    pair_run: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    run = Path(shutil.copytree(pair_run, tmp_path / "uld"))
    damage(run)
    with pytest.raises(RecordsError) as error:
        load_run(run)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_own_alpha_is_never_read_from_an_older_folder(pair_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pair_run, tmp_path / "uld"))
    shutil.copytree(place(run) / "1.5", place(run) / "0.75")
    served = next(row for row in swept(load_run(run)).tried if row.served)
    assert served.numbers["forget_rouge"].value == load_run(pair_run).main.value("forget_rouge")
