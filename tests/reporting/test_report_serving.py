"""What is served: a reader must not take a pair that behaves well for a model whose weights forgot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_grid import make_cell, write_comparison
from fabricated_pairs import change, make_distilled, serving

from unlearnkit.reporting import load_run, write_grid_report, write_report
from unlearnkit.reporting.compare import comparison
from unlearnkit.reporting.limits import limits
from unlearnkit.reporting.serving import KINDS, Serving, serving_of, with_serving
from unlearnkit.reporting.story import story
from unlearnkit.reporting.verdict import Verdict, verdict_of
from unlearnkit.reporting.views import RunView

HOLDS = "its weights still hold everything that was to be forgotten"


@pytest.fixture(scope="module")
def pair(pair_run: Path) -> RunView:
    return load_run(pair_run)


@pytest.fixture(scope="module")
def distilled(pair_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_distilled(tmp_path_factory.mktemp("runs") / "uld-distilled", pair_run)


def served(run: RunView, **entry: Any) -> RunView:
    """The run with its unlearned model served otherwise."""
    main = dataclasses.replace(run.main, summary=run.main.summary | {"serving": entry or None})
    return dataclasses.replace(run, main=main, evaluations=run.evaluations | {"unlearned": main}, alphas=())


def lines(run: RunView) -> str:
    return " ".join(dict(story(run)).get("What is served", []))


def test_the_verdict_on_a_pair_says_that_the_weights_forgot_nothing(pair: RunView) -> None:
    """First in the headline, then before every number; by behaviour alone it would be good."""
    verdict = verdict_of(pair)
    assert verdict.code == "forgotten"
    assert verdict.tone == "mixed"
    assert verdict.headline.startswith("The pair no longer shows")
    assert verdict.headline.endswith("; the target model's weights still hold them.")
    assert HOLDS in verdict.sentences[0]
    assert "must be served together, with alpha 0.75" in verdict.sentences[0]
    plain = verdict_of(served(pair))
    assert (plain.tone, plain.code) == ("good", "forgotten")
    assert "pair" not in plain.text


@pytest.mark.parametrize(
    ("kind", "noun", "first", "holds"),
    [
        ("uld", "pair", "target model", "the target model's weights still hold them"),
        ("offset", "combination", "target model", "the target model's weights still hold them"),
        ("value", "pair", "base model", "the base model's weights are as they were"),
        ("mine", "combination", "first network", "the first network's weights are as they were"),
    ],
)
def test_every_kind_in_its_own_words(pair: RunView, kind: str, noun: str, first: str, holds: str) -> None:
    """In the verdict, under "What is served" and first among the limits."""
    entry = serving(kind if kind in KINDS else "uld", 0.5) | {"kind": kind}
    run = served(pair, **entry)
    verdict, limit = verdict_of(run), limits([run])[0]
    assert verdict.headline.startswith(f"The {noun} no longer shows")
    assert holds in verdict.headline
    assert f"A {noun}: " in lines(run)
    assert "0.5" in lines(run)
    assert f"The {first} was not changed, and without" in lines(run)
    assert f"What was measured holds for the {noun} served as a whole. In the weights nothing" in limit
    assert f"can ask the {first} without" in limit
    assert "export RUN --distill" in lines(run)


def test_one_model_has_nothing_of_it(complete_run: Path) -> None:
    run = load_run(complete_run)
    assert serving_of(run.main) is None
    assert "What is served" not in dict(story(run))
    assert not any("as a whole" in line for line in limits([run]))


def test_the_treatment_of_filtered_tokens_is_told_with_its_mode(pair: RunView) -> None:
    text = lines(pair)
    assert "(filter rate 0.01) are never chosen in generated answers (mode removed)" in text
    assert "the other networks have no say about them" in text
    assert "(mode neutral)" in text
    without = lines(served(pair, **serving(rate=None)))
    assert "No filter" in without
    assert "(mode" not in without


def test_sizes_are_those_of_the_networks_and_of_what_was_trained(pair: RunView) -> None:
    """The manifest has the size of the network that was trained, which is not the target model's."""
    assert "Parameters: target 3\u202f145\u202f728, assistant 1\u202f376\u202f256." in lines(pair)
    told = dict(story(pair))
    assert told["What was asked"][0] == "Model: models/tofu_full."
    assert "stands beside the target model (98\u202f304 parameters)" in " ".join(told["What was done"])


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"term": "uniform", "weight": 6.5}, "term uniform, weight 6.5, to keep the assistant ignorant"),
        ({"term": "none", "weight": 0}, "nothing kept the assistant ignorant of the rest"),
    ],
)
def test_the_retain_term_is_the_assistants(pair: RunView, term: dict[str, Any], says: str) -> None:
    run = dataclasses.replace(pair, manifest=pair.manifest | {"retain": term})
    assert says in " ".join(dict(story(run))["What was done"])


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("over_forgotten", "a smaller alpha"),
        ("collapsed", "a smaller alpha"),
        ("forgotten_utility_lost", "a smaller alpha"),
        ("not_forgotten", "a larger alpha"),
        ("forgotten", None),
        ("inconclusive", None),
    ],
)
def test_what_alpha_can_mend_needs_no_training(pair: RunView, code: str, remedy: str | None) -> None:
    text = with_serving(Verdict(code, "bad", "The model does it.", ()), pair).text
    assert ("needs no training" in text) == (remedy is not None)
    assert remedy is None or remedy in text
    assert text.startswith("The pair does it")


@pytest.mark.parametrize(
    ("entry", "alpha"),
    [
        (serving("uld", 0.6), 0.6),
        ({"kind": "uld", "weights": {"target": 1.0, "assistant": -0.6}}, 0.6),
        ({"kind": "offset", "weights": {"base": 1.0, "tuned": 0.6, "untuned": -0.6}}, 0.6),
        ({"kind": "mine", "weights": {"a": 1.0, "b": 0.6}}, None),
        ({"kind": "uld"}, None),
    ],
)
def test_alpha_follows_from_the_weights_where_it_is_not_given(
    pair: RunView, entry: dict[str, Any], alpha: float | None
) -> None:
    found = serving_of(served(pair, **entry).main)
    assert isinstance(found, Serving)
    assert found.alpha == alpha
    assert found.value in lines(served(pair, **entry))


def test_a_distilled_model_says_what_it_is_without_its_adapter(distilled: Path, tmp_path: Path) -> None:
    run = load_run(distilled)
    assert "under an adapter, distilled from uld. Without the adapter the target model" in lines(run)
    assert "distilled from uld" in verdict_of(run).sentences[0]
    done = dict(story(run))["What was done"]
    assert done[0].startswith("Distilled from uld, 125 steps")
    assert "On the forget set it is 0.050 nats a token (KL) from uld, the target model 0.900" in done[1]
    assert "retain set, answered by uld" in done[2]
    assert "**distillation**" in write_report(distilled, tmp_path).markdown.read_text()


def test_a_pair_and_what_was_distilled_from_it_side_by_side(
    pair_run: Path, distilled: Path, tmp_path: Path, schema: dict[str, Any]
) -> None:
    runs = [load_run(pair_run), load_run(distilled)]
    table = comparison(runs)["side_tables"][0]
    shown = {row["title"]: [cell.text for cell in row["cells"]] for row in table["rows"]}
    assert table["title"] == "What is served"
    assert shown["Served"] == ["pair, alpha 0.75, filter 0.01", "one model under an adapter"]
    assert shown["Distilled from"] == ["–", "uld"]
    sizes = {row["title"]: [cell.value for cell in row["cells"]] for row in table["rows"]}
    assert sizes["Parameters in all"] == [3_145_728 + 1_376_256, 3_244_032]
    assert sizes["Parameters trained"] == [98_304, 98_304]
    assert sizes["KL to what was distilled, forget set (nats a token)"] == [None, 0.05]
    assert limits(runs)[0].startswith("uld: What was measured holds for the pair")
    written = write_report([pair_run, distilled], tmp_path)
    jsonschema.validate(json.loads(written.summary.read_text()), schema)
    for text in (written.html.read_text(), written.markdown.read_text()):
        assert "pair, alpha 0.75, filter 0.01" in text


def test_runs_that_serve_one_model_have_no_such_table(complete_run: Path, full_run: Path) -> None:
    tables = comparison([load_run(complete_run), load_run(full_run)])["side_tables"]
    assert "What is served" not in [table["title"] for table in tables]


def test_a_comparison_of_methods_says_which_serves_a_pair(
    complete_run: Path, pair_run: Path, tmp_path: Path, schema: dict[str, Any]
) -> None:
    folder = tmp_path / "compare"
    cells = [make_cell(folder, complete_run, "npo", 0, 1e-5, {})]
    cells += [make_cell(folder, pair_run, "uld", seed, 1e-5, {}) for seed in (0, 1)]
    written = write_grid_report(write_comparison(folder, cells))
    html, markdown = written.html.read_text(), written.markdown.read_text()
    for text in (html, markdown):
        assert "Served by uld is a pair of networks and not one model." in text
        assert "weights still hold the examples" in text
        assert "pair, alpha 0.75, filter 0.01" in text
        assert "uld: What was measured holds for the pair served as a whole." in text
    summary = json.loads(written.summary.read_text())
    jsonschema.validate(summary, schema)
    costs = {row["method"]: row for row in summary["costs"]}
    assert costs["npo"]["served"] == "one model"
    assert costs["uld"]["trainable"]["mean"] == 98_304
    assert costs["uld"]["served"] == "pair, alpha 0.75, filter 0.01"


def test_pairs_that_are_served_in_many_ways_are_counted(pair_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    cells = [make_cell(folder, pair_run, "uld", seed, 1e-5, {}) for seed in range(3)]
    for seed, alpha in enumerate((0.5, 0.75, 1.0)):
        place = tmp_path / f"uld-1e-05-{seed}" / "eval" / "tofu"
        shutil.rmtree(place / "alphas")
        change(place / "summary.json", serving=serving(alpha=alpha))
    written = write_grid_report(write_comparison(folder, cells))
    (row,) = json.loads(written.summary.read_text())["costs"]
    assert row["served"] == "pair, in 3 ways"


def test_a_comparison_of_single_models_has_no_column_for_it(complete_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    cells = [make_cell(folder, complete_run, "npo", 0, 1e-5, {})]
    assert "Served" not in write_grid_report(write_comparison(folder, cells)).html.read_text()
