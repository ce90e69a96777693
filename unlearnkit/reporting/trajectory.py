"""The evaluations during training, as the report shows them: forgetting against keeping over the steps."""

from __future__ import annotations

from typing import Any

from unlearnkit.reporting.numbers import number
from unlearnkit.reporting.tables import titles
from unlearnkit.reporting.views import RunView

FORGET = ("forget_rouge", "forget_probability", "forget_truth_ratio")
"""What shows forgetting during training, the first that was measured; no retain model is at hand there."""
KEEP = ("model_utility", "retain_rouge", "retain_probability")


def trajectory_of(run: RunView) -> dict[str, Any] | None:
    """Points, titles and which two metrics to draw; None where nothing was evaluated during training."""
    points = run.trajectory
    if not points:
        return None
    names = list(dict.fromkeys(name for point in points for name in point["metrics"]))
    known = titles(run)
    forget, keep = _first(FORGET, "forget", names), _first(KEEP, "retain", names)
    kept = run.selection.get("step") if run.is_selected else None
    return {
        "points": points,
        "titles": {name: known.get(name, name.replace("_", " ")) for name in names},
        "forget": forget,
        "keep": keep,
        "kept_step": kept,
        "sentence": _sentence(run, forget, keep, known),
    }


def _first(wanted: tuple[str, ...], part: str, names: list[str]) -> str | None:
    return next(
        (name for name in wanted if name in names), next((name for name in names if part in name), None)
    )


def _sentence(run: RunView, forget: str | None, keep: str | None, known: dict[str, str]) -> str:
    first, last = run.trajectory[0], run.trajectory[-1]
    changes = [
        f"{known.get(name, name.replace('_', ' '))} from {number(_value(first, name))} to "
        f"{number(_value(last, name))}"
        for name in (forget, keep)
        if name is not None
    ]
    went = f": {', '.join(changes)}" if changes else ""
    times = "once" if len(run.trajectory) == 1 else f"{len(run.trajectory)} times"
    return f"The model was evaluated {times}, from step {first['step']} to {last['step']}{went}."


def _value(point: dict[str, Any], name: str) -> float | None:
    entry = point["metrics"].get(name)
    value: float | None = entry["value"] if entry else None
    return value
