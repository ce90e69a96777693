"""The trajectory: what each evaluation during training found, as JSON lines.

A line is {"step": optimizer steps, "epoch": a fraction inside of one, "metrics": {name: {"value", "low",
"high", "n"}}}; null stands for what could not be measured. Step 0 is the target. A line without any metric
has an "error" that says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnkit.errors import UserError

TRAJECTORY = "trajectory.jsonl"


def read_trajectory(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a trajectory; none where there is no file.

    Raises:
        UserError: a line is not JSON.
    """
    path = Path(path)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable as JSON lines ({error}); remove it and the checkpoints to train anew"
        ) from None


def numbers_of(result: Any) -> dict[str, Any]:
    """A metric's value, low, high and n, as a line holds them."""
    numbers = {"value": result.value, "low": result.low, "high": result.high}
    found: dict[str, Any] = {
        k: None if v is None or not math.isfinite(v) else float(v) for k, v in numbers.items()
    }
    return {**found, "n": int(result.n)}


def values_of(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The values of a line's metrics."""
    return {name: numbers["value"] for name, numbers in line["metrics"].items()}
