"""Every shipped recipe and suite: it loads, it is described, it checks, and it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_training import _freeze

from unlearnkit import commands, shipped
from unlearnkit.check import check_recipe
from unlearnkit.evaluation.suite import load_suite
from unlearnkit.preflight_evaluation import suite_of
from unlearnkit.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = shipped.available("recipes")
#: One row is enough to see that a stream is read; the real-author and world-fact sets are small anyway.
FEW = 8
#: Rows that TOFU has and the built-in benchmark, with its 800, has not -> those that are taken instead.
ROWS = {"2000:4000": "400:800"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, chat_tokenizer: Any) -> Path:
    """A saved tiny chat model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def small(recipe: Recipe, model: Path, root: str = "fictional") -> list[str]:
    """Overrides that keep a recipe's shape and make it tiny and offline."""
    out = [f"data.root={root}", *elsewhere(recipe)]
    if recipe.model.create is not None:
        sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
        out += [f"model.create.{key}={value}" for key, value in sizes.items()]
        out.append("model.create.intermediate_size=null")
    else:
        out += [f"model.path={model}", "model.dtype=float32"]
    if recipe.data.alternates is not None:
        out.append("data.alternates.prompt=null")  # an instruction would fill the tiny model's positions
    if "layer" in recipe.training:
        out.append("training.layer=1")  # the tiny model has two
    if "num_layers" in recipe.training:
        out.append("training.num_layers=1")
    if "small" in recipe.training:
        out.append(f"training.small={model}")
    for name, specs in recipe.data.streams.items():
        several = len(specs) > 1
        out += [
            f"data.{name}{f'.{i}' if several else ''}.limit={FEW}"
            for i, one in enumerate(specs)
            if one.path is None
        ]
    return out


def elsewhere(recipe: Recipe) -> list[str]:
    """Overrides for what only TOFU has: its later rows, the names of its authors, files with augmentation."""
    out = ["data.annotate.0.names=[Zofia Corvalán]"] if recipe.data.annotate else []
    for name, specs in recipe.data.streams.items():
        places = [f"data.{name}.{i}" if len(specs) > 1 else f"data.{name}" for i in range(len(specs))]
        out += [
            f"{at}.rows={ROWS[one.rows]}" for at, one in zip(places, specs, strict=True) if one.rows in ROWS
        ]
    for name, specs in recipe.data.streams.items():
        if specs[0].header is not None:
            columns = "question: paraphrased_question, answer: paraphrased_answer"
            columns = columns if name == "paraphrase" else "answer: perturbed_answer"
            per_row = "" if name == "paraphrase" else ", per_row: 2"
            own = f"{{name: forget10_perturbed, columns: {{{columns}}}, limit: {FEW}{per_row}}}"
            out.append(f"data.{name}={own}")
    for name, source in recipe.evaluation.data.items():
        if isinstance(source, dict) and source.get("rows") in ROWS:
            out.append(f"evaluation.data.{name}.rows={ROWS[source['rows']]}")
    return out


def settings(name: str, tmp_path: Path, model: Path) -> list[str]:
    """What a recipe needs to be read: the deletion request names no files of its own."""
    if name != "forget":
        return small(load_recipe(name), model)
    from unlearnkit.data.fictional import rows
    from unlearnkit.files import write_json

    for number, split in enumerate(("forget", "retain")):
        write_json(tmp_path / f"{split}.json", rows("full")[number * FEW : (number + 1) * FEW])
    streams = [f"data.{split}={tmp_path / split}.json" for split in ("forget", "retain")]
    return [f"model.path={model}", *streams]


def test_all_are_there() -> None:
    assert {"forget", "fictional/target", "fictional/npo", "tofu/npo", "tofu/grad_diff"} <= set(RECIPES)
    assert {"tofu", "forget"} <= set(shipped.available("eval/suites"))


@pytest.mark.parametrize("name", RECIPES)
def test_header_and_round_trip(name: str, tmp_path: Path, model: Path) -> None:
    path = shipped.find("recipes", name)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(shipped.describe(path).split()) >= 6
    recipe = load_recipe(name, settings(name, tmp_path, model))
    assert recipe.name == name
    if recipe.model.create is None or recipe.evaluation.suite:
        assert suite_of(recipe) is not None
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(again).fingerprint == recipe.fingerprint
    for needed in recipe.needs:
        assert needed in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_checks_offline(
    name: str,
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is written, with its data on the hub or not; the deletion request with its two files."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    theirs = settings(name, tmp_path, model) if name == "forget" else elsewhere(load_recipe(name))
    check_recipe(name, theirs if name == "forget" else ["data.root=fictional", *theirs])
    shown = capsys.readouterr().out
    assert f"{name} is valid" in shown
    assert "training " in shown
    assert "evaluation " in shown


@pytest.mark.parametrize("name", RECIPES)
def test_trains_two_steps(name: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    _freeze()
    overrides = [
        *settings(name, tmp_path, model), "evaluation=null", "needs=[]", "training.max_steps=2",
        "training.gradient_accumulation_steps=1", "training.per_device_train_batch_size=2",
        "training.save_strategy=no", "training.logging_steps=1",
    ]  # fmt: skip
    folder = commands.run_recipe(name, overrides, "a", stages=("train",))
    assert list((folder / "model").rglob("*model.safetensors"))
    log = (folder / "log.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in log) == 2
    assert "NaN" not in log[0]


@pytest.mark.parametrize("name", shipped.available("eval/suites"))
def test_suites(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.version >= 1
    assert suite.metrics
    for metric in suite.metrics.values():
        assert metric.title


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("tofu")])
def test_real_tofu(name: str, tofu_folder: Path, tmp_path: Path) -> None:
    """Every split that a TOFU recipe names is in the real files, for training and for evaluation."""
    from unlearnkit.evaluation.runner import load_datasets
    from unlearnkit.preflight import load_streams, training_args

    augmented = {n: s[0] for n, s in load_recipe(name).data.streams.items() if s[0].header is not None}
    beside = tofu_folder.parent / "tofu_aug"
    if augmented and not beside.is_dir():
        pytest.skip(f"the augmentation files are not in {beside}")
    places = [f"data.{n}.path={beside / Path(str(one.path)).name}" for n, one in augmented.items()]
    recipe = load_recipe(name, [f"data.root={tofu_folder}", *places])
    args = training_args(recipe, str(tmp_path), on_cpu=True)
    streams = load_streams(recipe, tuple(recipe.data.streams), args=args)
    assert all(len(rows) >= 40 for rows in streams.values())
    suite = suite_of(recipe)
    assert suite is not None
    sizes = {key: len(rows) for key, rows in load_datasets(suite).items()}
    if suite.name == "tofu":
        assert sizes == {"forget": 400, "retain": 400, "real_authors": 100, "world_facts": 117}
    assert all(size >= 40 for size in sizes.values())
