"""What a comparison would run: pure, complete, every mistake named before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import NPO, SFT

from unlearnkit.errors import RecipeError
from unlearnkit.grid import Plan, Request, plan, read_request
from unlearnkit.grid.check import check_cells
from unlearnkit.recipe import load_recipe
from unlearnkit.run import own_settings, run_dir

GRAD_DIFF = NPO.replace("method: npo", "method: grad_diff")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of three recipes in a folder."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "target.yaml").write_text(SFT)
    (folder / "npo.yaml").write_text(
        NPO.replace("TARGET", "org/model").replace("training:", "training:\n  beta: 0.2")
    )
    (folder / "grad_diff.yaml").write_text(GRAD_DIFF.replace("TARGET", "org/model"))
    return folder


@pytest.fixture
def ask(bench: Path) -> Callable[..., Plan]:
    """`ask("npo", "0,1", "training.beta=0.1,0.2")`: the plan of the benchmark."""

    def ask(
        methods: str | None = None, seeds: str = "0", *grid: str, recipe: Path = bench, **more: Any
    ) -> Plan:
        return plan(read_request(str(recipe), methods, seeds, grid, **more))

    return ask


def keys(found: Plan) -> list[tuple[str, int, Any]]:
    return [(cell.method, cell.seed, *cell.settings.values()) for cell in found.cells]


def test_every_combination_is_a_cell_seed_by_seed(ask: Callable[..., Plan]) -> None:
    """2 seeds x 1 method x 2 x 2 values = 8 cells; seeds go round last, so that all methods have one soon."""
    found = ask("npo", "0,1", "training.learning_rate=1e-3,2e-3", "training.beta=1,2")
    assert keys(found) == [
        ("npo", seed, rate, beta) for seed in (0, 1) for rate in (0.001, 0.002) for beta in (1, 2)
    ]
    assert len({cell.run.root for cell in found.cells}) == len({cell.name for cell in found.cells}) == 8
    assert found.cells[0].recipe.training["learning_rate"] == 0.001
    assert [cell.recipe.seed for cell in found.cells] == [0] * 4 + [1] * 4


def test_a_value_written_twice_is_one_cell(ask: Callable[..., Plan]) -> None:
    assert keys(ask("npo,npo", "1,1", "training.learning_rate=1e-3,0.001")) == [("npo", 1, 0.001)]


def test_a_folder_means_all_that_unlearns_in_it(ask: Callable[..., Plan], bench: Path) -> None:
    """Which neither fine-tuning nor a model made from scratch by another loss does."""
    (bench / "goldfish.yaml").write_text(SFT.replace("method: sft", "method: goldfish"))
    assert "create" in SFT
    assert ask().methods == ("grad_diff", "npo")
    assert all(cell.left_out == () for cell in ask().cells)


def test_each_method_has_its_own_recipe(ask: Callable[..., Plan], bench: Path) -> None:
    """Asked with npo's recipe, grad_diff still comes with its own settings."""
    found = ask("npo,grad_diff", recipe=bench / "npo.yaml")
    assert [Path(cell.source).name for cell in found.cells] == ["npo.yaml", "grad_diff.yaml"]
    assert found.methods == ("npo", "grad_diff")
    assert ask(recipe=bench / "npo.yaml").methods == ("npo",)


def test_a_method_without_a_recipe_takes_the_given_one(ask: Callable[..., Plan], bench: Path) -> None:
    """grad_ascent has no beta: it is left out, and the rest of the settings stay."""
    (cell,) = ask("grad_ascent", recipe=bench / "npo.yaml").cells
    assert cell.left_out == ("training.beta",)
    assert cell.recipe.method == "grad_ascent"
    expected = dict(load_recipe(bench / "npo.yaml").training)
    del expected["beta"]
    assert cell.recipe.training == expected
    assert cell.run.root.name.startswith("npo-grad_ascent-")


def test_what_no_method_knows_is_not_left_out_in_silence(ask: Callable[..., Plan], bench: Path) -> None:
    text = (bench / "npo.yaml").read_text().replace("beta:", "bta:")
    (bench / "npo.yaml").write_text(text)
    found = ask("grad_ascent", recipe=bench / "npo.yaml")
    assert found.left_out == {}
    with pytest.raises(RecipeError, match="unknown key 'bta' in training"):
        check_cells(found.cells)


def test_cells_lie_where_run_puts_them(ask: Callable[..., Plan], bench: Path) -> None:
    """`unlearnkit run npo.yaml training.beta=0.5 seed=1` and the cell are one run; no change, no hash."""
    cells = ask("npo", "0,1", "training.beta=0.2,0.5").cells
    path = bench / "npo.yaml"
    for cell in cells:
        settings = [f"training.beta={cell.settings['training.beta']}", f"seed={cell.seed}"]
        recipe = load_recipe(path, settings)
        assert recipe == cell.recipe
        assert run_dir(recipe, own_settings(path, settings)) == cell.run
    assert cells[0].overrides == ()
    assert cells[0].run.root.name == "npo"
    assert run_dir(cells[0].recipe, ("training.beta=5e-1",)) == run_dir(
        cells[0].recipe, ("training.beta=0.5",)
    )


def test_where_the_data_lie_names_no_run(ask: Callable[..., Plan]) -> None:
    (cell,) = ask("npo", settings=["data.root=fictional"]).cells
    assert cell.run.root.name == "npo"
    assert cell.overrides == ("data.root=fictional",)


def test_planning_writes_nothing(ask: Callable[..., Plan], tmp_path: Path) -> None:
    ask(None, "0,1,2", "training.learning_rate=1,2")
    assert not (tmp_path / "runs").exists()


def test_the_folder_is_named_after_what_cannot_grow(ask: Callable[..., Plan], bench: Path) -> None:
    """More methods and seeds extend a comparison; another grid or setting makes another one."""
    plain, grown = ask("npo"), ask("npo,grad_diff", "0,1")
    assert plain.folder == grown.folder
    assert plain.folder.name.startswith("compare-")
    other = ask("npo", "0", "training.learning_rate=1").folder
    assert other != plain.folder
    assert other != ask("npo", settings=["training.learning_rate=1"]).folder
    assert ask("npo", name="mine").folder.name == "compare-mine"
    assert plan(Request("tofu_tiny", ("npo",))).folder.name == "compare-tofu_tiny"
    assert plan(Request("tofu_tiny/npo")).folder.name == "compare-tofu_tiny-npo"


def test_a_shipped_benchmark_knows_what_it_needs() -> None:
    found = plan(Request("tofu_tiny", ("npo", "grad_diff"), (0, 1)))
    assert found.needs == ["tofu_tiny/target", "tofu_tiny/retain90"]
    assert [cell.source for cell in found.cells[:2]] == ["tofu_tiny/npo", "tofu_tiny/grad_diff"]


# ---- Mistakes ------------------------------------------------------------------------------------------


def test_all_mistakes_are_listed_together(ask: Callable[..., Plan], bench: Path) -> None:
    """A method that does not exist and a key that only npo has: a line for each, not for each value."""
    with pytest.raises(RecipeError) as told:
        ask("npo,grad_diff,nop", "0,1", "training.beta=1,2", recipe=bench / "npo.yaml")
    lines = str(told.value).splitlines()
    assert any("unknown method 'nop'; did you mean 'npo'?" in line for line in lines)
    assert [line.partition(";")[0] for line in lines if line.startswith("grad_diff")] == [
        "grad_diff has no setting 'beta', and --grid training.beta varies it (npo can have it)"
    ]
    assert len(lines) == 2


def test_a_key_that_a_method_lacks_is_found_before_anything_runs(ask: Callable[..., Plan]) -> None:
    with pytest.raises(RecipeError) as told:
        check_cells(ask(None, "0,1,2", "training.learning_rat=1,x").cells)
    lines = str(told.value).splitlines()
    assert len(lines) == 2  # two methods; every seed and value would say the same
    assert all("--grid training.learning_rat: unknown key 'learning_rat' in training" in one for one in lines)
    assert all("did you mean 'learning_rate'?" in line for line in lines)


def test_a_setting_for_all_that_a_method_lacks(ask: Callable[..., Plan]) -> None:
    with pytest.raises(RecipeError) as told:
        ask("npo,grad_diff", "0,1", settings=["training.beta=3"])
    assert str(told.value).startswith(
        "grad_diff has no setting 'beta', and training.beta is set for all (npo"
    )
    assert len(str(told.value).splitlines()) == 1


def test_a_value_that_the_config_refuses_is_found_for_every_cell(ask: Callable[..., Plan]) -> None:
    """The second value is checked as well, though the data were read for the first."""
    with pytest.raises(RecipeError, match=r"training\.retain"):
        check_cells(ask("npo", "0", "training.retain=nll,everything").cells)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": ["training.beta"]}, "is not key=values"),
        ({"grid": ["training.beta="]}, "has no values"),
        ({"grid": ["a.b=1", "a.b=2"]}, "is given twice"),
        ({"grid": ["seed=1,2"]}, "write --seeds"),
        ({"grid": ["evaluation.suite=tofu,muse"]}, "varies what is measured"),
        ({"settings": ["method=npo"]}, "write --methods"),
        ({"grid": ["training.beta=1,2"], "settings": ["training.beta=3"]}, "keep one of them"),
        ({"seeds": "0,-1"}, "whole numbers from 0 on"),
        ({"seeds": "a"}, "whole numbers from 0 on"),
        ({"seeds": ""}, "has no values"),
        ({"methods": "npo,,rpo"}, "has an empty name"),
    ],
)
def test_what_cannot_be_asked_for(bench: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        read_request(str(bench), **arguments)


@pytest.mark.parametrize(
    ("recipe", "methods", "words"),
    [
        ("tofu_tinny", None, "did you mean 'tofu_tiny'?"),
        ("tofu_tiny", "simpno", "did you mean 'simnpo'?"),
        ("", None, "neither a recipe nor a benchmark"),
    ],
)
def test_names_that_do_not_exist(recipe: str, methods: str | None, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        plan(read_request(recipe, methods))


def test_a_method_without_a_recipe_in_the_folder(
    ask: Callable[..., Plan], bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong with its name, and the command that is named works."""
    with pytest.raises(RecipeError) as told:
        ask("wga")
    assert str(told.value) == (
        f"{bench} has no recipe for 'wga'; leave it out, or run it with another method's settings: "
        f"`unlearnkit compare {bench}/npo.yaml --methods wga`"
    )
    assert keys(ask("wga", recipe=bench / "npo.yaml")) == [("wga", 0)]
    monkeypatch.chdir(bench.parent)
    with pytest.raises(
        RecipeError, match=r"^bench has no .*`unlearnkit compare bench/npo\.yaml --methods wga`"
    ):
        plan(Request("bench", ("wga",)))
    with pytest.raises(
        RecipeError, match=r"^tofu_tiny has no .*`unlearnkit compare tofu_tiny/npo --methods grad"
    ):
        plan(Request("tofu_tiny", ("grad_ascent",)))


@pytest.mark.parametrize("method", ["sft", "target"])
def test_what_unlearns_nothing_is_refused(ask: Callable[..., Plan], bench: Path, method: str) -> None:
    words = f"{method} makes target and retain models and unlearns nothing; leave it out"
    for recipe in (bench, bench / "npo.yaml"):
        with pytest.raises(RecipeError) as told:
            ask(f"npo,{method}", recipe=recipe)
        assert str(told.value) == words


def test_a_folder_without_unlearning_recipes(bench: Path, ask: Callable[..., Plan]) -> None:
    (bench / "npo.yaml").unlink()
    (bench / "grad_diff.yaml").unlink()
    with pytest.raises(RecipeError, match="holds no recipe that unlearns"):
        ask()


def test_two_cells_in_one_folder_are_refused(bench: Path, ask: Callable[..., Plan]) -> None:
    path = bench / "npo.yaml"
    path.write_text(f"{path.read_text()}output: runs/one\n")
    with pytest.raises(RecipeError, match="would hold two runs, npo-seed0 and npo-seed1"):
        ask("npo", "0,1")


def test_the_folder_that_one_is_in(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench)
    found = plan(Request("."))
    assert found.methods == ("grad_diff", "npo")
    assert found.folder.name == "compare-bench"
