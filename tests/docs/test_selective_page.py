"""The worked example of docs/selective.md is a selector that trains, alone and beside another one."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import logs, make_trainer

from unlearnkit import lookup
from unlearnkit.data.encoding import encode_document
from unlearnkit.errors import RecipeError
from unlearnkit.training.selective import SelectiveConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "selective.md").read_text(encoding="utf-8")


@pytest.fixture
def skip_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The documented block, as a module of somebody else's package."""
    block = re.search(r"<!-- selector: skip_start -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None, "the worked example has lost its mark"
    package = tmp_path / "their_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "skip_start.py").write_text(block[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("their_pkg.skip_start")
    for name in ("their_pkg.skip_start", "their_pkg"):
        sys.modules.pop(name, None)


def _documents(tokenizer: Any, length: int, number: int) -> list[dict[str, str]]:
    """Texts that make examples of exactly `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, str]] = []
    while len(found) < number:
        text = "".join("abcdefgh"[i] for i in torch.randint(8, (length - 1,), generator=generator))
        if len(encode_document(tokenizer, text).ids) == length:
            found.append({"text": text})
    return found


def test_the_example_trains_on_six_tokens_of_nine(
    skip_start: Any, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """As the page says: of 10 tokens 9 are targets, and with n = 4 places 4 to 9 are learned."""
    from datasets import Dataset

    streams = {"train": Dataset.from_list(_documents(tiny_tokenizer, 10, 6))}
    trainer = make_trainer(
        "their_pkg.skip_start", tiny_model(), tiny_tokenizer, streams, tmp_path / "run", n=4
    )
    learned = {sum(label != -100 for label in row["labels"]) for row in trainer.tokenized["train"].rows}
    assert learned == {6}
    trainer.train()
    steps = logs(trainer)
    assert [step["train/kept"] for step in steps] == [pytest.approx(2 / 3)] * len(steps)
    assert steps[-1]["train/nll"] < steps[0]["train/nll"]


def test_the_example_is_checked_and_can_stand_beside_another(skip_start: Any, tmp_path: Path) -> None:
    entry = lookup.method("goldfish")
    args = entry.config(output_dir=str(tmp_path), use_cpu=True, also={"their_pkg.skip_start": {"n": 4}})
    assert [type(one).__name__ for one in args.selectors()] == ["Goldfish", "SkipStart"]
    assert args.selectors()[1] == skip_start.SkipStart(4)
    with pytest.raises(RecipeError, match=r"training\.n must be at least 0, found -1"):
        skip_start.SkipStart(-1)


def test_every_method_that_selects_is_on_the_page() -> None:
    selective = {name for name in lookup.methods() if issubclass(lookup.method(name).config, SelectiveConfig)}
    assert set(re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE)) == selective
