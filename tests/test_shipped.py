"""Names of shipped files resolve the same way in a checkout and in an installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unlearnkit import shipped
from unlearnkit.errors import RecipeError


def write(path: Path, text: str = "# One line.\nmethod: sft\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an empty package folder; the working directory is elsewhere."""
    write(tmp_path / "house/pyproject.toml", "")
    write(tmp_path / "house/recipes/tofu/npo.yaml")
    write(tmp_path / "house/recipes/forget.yaml")
    write(tmp_path / "house/recipes/README.md")
    write(tmp_path / "house/recipes/tofu/author_names.txt", "Jaime Vasquez\n")
    write(tmp_path / "house/eval/suites/tofu.yaml")
    write(tmp_path / "house/launch/slurm.sbatch")
    (tmp_path / "house/unlearnkit").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "house/unlearnkit")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "house"


def test_finds_by_name_in_a_checkout(house: Path) -> None:
    assert shipped.find("recipes", "tofu/npo") == house / "recipes/tofu/npo.yaml"
    assert shipped.find("recipes", "tofu/npo.yaml") == house / "recipes/tofu/npo.yaml"
    assert shipped.find("eval/suites", "tofu") == house / "eval/suites/tofu.yaml"
    assert shipped.find("launch", "slurm.sbatch") == house / "launch/slurm.sbatch"


def test_lists_names_without_extension_and_only_what_is_meant(house: Path) -> None:
    assert shipped.available("recipes") == ["forget", "tofu/npo"]
    assert shipped.available("launch") == ["slurm.sbatch"]
    assert shipped.available("nothing") == []


def test_finds_in_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pyproject.toml beside the package, a `recipes` folder there (site-packages) is not ours."""
    mine = write(tmp_path / "site/unlearnkit/recipes/tofu/npo.yaml")
    write(tmp_path / "site/recipes/other.yaml")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "site/unlearnkit")
    assert shipped.find("recipes", "tofu/npo") == mine
    assert shipped.available("recipes") == ["tofu/npo"]


def test_a_path_of_the_users_comes_first(house: Path) -> None:
    mine = write(Path("forget.yaml"))
    assert shipped.find("recipes", "forget.yaml") == mine
    # Without the extension it is a name, so a data file or folder called `forget` cannot get in the way.
    write(Path("forget"))
    assert shipped.find("recipes", "forget") == house / "recipes/forget.yaml"


@pytest.mark.parametrize("name", ["tofu/npoo", "TOFU/NPO", "tofu-npo"])
def test_unknown_name_suggests_the_nearest(house: Path, name: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"unknown recipe '{name}'; did you mean 'tofu/npo'\?.*`unlearnkit ls`"
    ):
        shipped.find("recipes", name)


def test_missing_path_says_so(house: Path) -> None:
    with pytest.raises(RecipeError, match=r"^mine/npo.yaml does not exist.*`unlearnkit ls`"):
        shipped.find("recipes", "mine/npo.yaml")


def test_unknown_name_of_another_kind(house: Path) -> None:
    with pytest.raises(RecipeError, match="unknown suite 'tofuu'; did you mean 'tofu'"):
        shipped.find("eval/suites", "tofuu")


def test_name_of_is_the_inverse_of_find(house: Path) -> None:
    for name in shipped.available("recipes"):
        assert shipped.name_of("recipes", shipped.find("recipes", name)) == name
    assert shipped.name_of("recipes", "somewhere/mine.yaml") == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# NPO on TOFU.\n# More.\nmethod: npo\n", "NPO on TOFU."),
        ("#\n\n#   NPO on TOFU.\nmethod: npo\n", "NPO on TOFU."),
        ("method: npo\n# not a header\n", ""),
        ("", ""),
    ],
)
def test_description_is_the_first_comment_line(tmp_path: Path, text: str, expected: str) -> None:
    assert shipped.describe(write(tmp_path / "a.yaml", text)) == expected


def test_light_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, unlearnkit.recipe, unlearnkit.recipe_reader, unlearnkit.shipped, unlearnkit.lookup\n"
        "unlearnkit.lookup.methods(); unlearnkit.shipped.available('recipes')\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'peft', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
