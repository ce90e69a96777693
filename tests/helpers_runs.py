"""Runs of tiny recipes, in this process or in one that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SFT = """\
# A tiny model from scratch learns 24 rows
method: sft
model:
  create: {hidden_size: 32, num_layers: 1, num_heads: 2, vocab_size: 384, seed: 0}
data:
  root: fictional
  train: {name: forget10, limit: 24}
training:
  num_train_epochs: 2
  per_device_train_batch_size: 8
  learning_rate: 0.01
  save_strategy: steps
  save_steps: 2
evaluation: null
"""
NPO = """\
# A tiny model forgets 12 rows
method: npo
model: {path: TARGET, lora: {r: 2, alpha: 4}}
data:
  root: fictional
  forget: {name: forget10, limit: 12}
  retain: {name: retain90, limit: 12}
training:
  num_train_epochs: 2
  per_device_train_batch_size: 4
  learning_rate: 0.01
  save_strategy: steps
  save_steps: 2
evaluation: {suite: forget, max_new_tokens: 8}
"""


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """`unlearnkit ARGUMENTS` in this process; its exit code."""
    from unlearnkit.cli import main

    with monkeypatch.context() as patch:
        patch.delenv("UNLEARNKIT_DEBUG", raising=False)
        patch.setattr(sys, "argv", ["unlearnkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        # `main` sets it for the processes that it starts.
        os.environ.pop("UNLEARNKIT_DEBUG", None)
    return int(left.value.code or 0)


def in_a_process(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; its exit code (-9: killed)."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die() -> None:
    """SIGKILL: no chance to tidy up."""
    os.kill(os.getpid(), signal.SIGKILL)


def files(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` by its relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
