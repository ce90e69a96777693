"""Saving a model whose weights are split over processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_runs import SFT

from unlearnkit.models.load import model_fingerprint
from unlearnkit.pipeline import Pipeline
from unlearnkit.recipe import load_recipe
from unlearnkit.run import RunDir


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_split_model_is_named_by_what_was_saved(tmp_path: Path, tiny_model: Any, kind: str) -> None:
    """What the trainer holds then is a part of the weights, or nothing."""
    (tmp_path / "sft.yaml").write_text(SFT)
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    trainer: Any = SimpleNamespace(
        is_fsdp_enabled=False, is_deepspeed_enabled=False, model=None,
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None, unwrap_model=lambda model: model),
        save_model=lambda path: tiny_model().save_pretrained(path),
    )  # fmt: skip
    setattr(trainer, kind, True)
    entries: dict[str, Any] = {"status": "trained"}
    Pipeline(load_recipe(str(tmp_path / "sft.yaml"), []), run)._save(trainer, entries)
    assert entries["unlearned_model"] == {"fingerprint": model_fingerprint(tiny_model())}
    assert run.read_manifest() == entries
    assert run.model.is_dir()
