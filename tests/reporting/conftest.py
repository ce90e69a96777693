"""Fixtures: a complete run made once, and the generator for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fabricated_attacks import add_everything
from fabricated_pairs import make_pair
from fabricated_runs import SHAPES, Shape, make_run


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forgotten run with all three models; tests must not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "npo")


@pytest.fixture(scope="session")
def make() -> Any:
    """The generator itself."""
    return make_run


@pytest.fixture(scope="session")
def shapes() -> dict[str, Shape]:
    """How the three models answer by default; `dataclasses.replace` makes another."""
    return SHAPES


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with attacks, membership tests, samples, a second suite and a trajectory; not to be "
    "changed."""
    return add_everything(make_run(tmp_path_factory.mktemp("runs") / "npo_full", name="npo_full"))


@pytest.fixture(scope="session")
def pair_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ULD: a pair that forgot, measured with three alphas; not to be changed."""
    return make_pair(tmp_path_factory.mktemp("runs") / "uld")


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    """The schema of summary.json, itself a valid one."""
    path = Path(__file__).parents[2] / "docs" / "summary.schema.json"
    found: dict[str, Any] = json.loads(path.read_text())
    jsonschema.Draft7Validator.check_schema(found)
    return found
