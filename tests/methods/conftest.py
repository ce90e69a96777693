"""What the tests of several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def texts(fictional_rows: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, str]]:
    """Plain preference pairs with answers of unequal length: the true one over that to another question."""
    rows = fictional_rows("full")[:9]
    return [
        {"prompt": f"{r['question']}\n", "chosen": r["answer"], "rejected": rows[i + 4]["answer"]}
        for i, r in enumerate(rows[:5])
    ]
