"""The worked example in CONTRIBUTING.md is a method that trains."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def token_npo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The documented block, as a module of somebody else's package."""
    text = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- method: token_npo -->\n```python\n(.*?)```", text, re.DOTALL)
    assert block is not None, "the worked example has lost its mark"
    package = tmp_path / "their_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "token_npo.py").write_text(block[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("their_pkg.token_npo")
    for name in ("their_pkg.token_npo", "their_pkg"):
        sys.modules.pop(name, None)


def test_the_documented_number_holds(token_npo: Any) -> None:
    """(2 ln (1 + 3) + 2 ln (1 + 1)) / 2 = 3 ln 2 = 2.0794, as the text says."""
    ref = torch.tensor([0.25, 0.25]).log()
    losses = token_npo.token_npo_loss(torch.tensor([0.75, 0.25]).log(), ref, beta=1.0)
    assert float(losses.mean()) == pytest.approx(3 * math.log(2), abs=1e-6)


def test_the_example_is_found_by_name_and_trains(
    token_npo: Any, tiny_model: Any, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path
) -> None:
    """Found as `their_pkg.token_npo`, it trains: its metric is logged, every weight moves."""
    import datasets

    from unlearnkit import lookup

    entry = lookup.method("their_pkg.token_npo")
    args = entry.config(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    forget = datasets.Dataset.from_list(fictional_rows("forget05")[:8])
    retain = datasets.Dataset.from_list(fictional_rows("retain95")[:8])
    before = tiny_model()
    trainer = entry.trainer(
        model=tiny_model(),
        args=args,
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    losses = [entry_["forget/npo"] for entry_ in trainer.state.log_history if "forget/npo" in entry_]
    assert len(losses) == 3
    assert all(math.isfinite(x) for x in losses)
    changed = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.model.parameters(), strict=True)
    ]
    assert all(changed)
