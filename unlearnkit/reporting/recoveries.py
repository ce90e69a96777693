"""How much came back under each attack: shares of what was forgotten, with a control, as plain data.

The share is (attacked - unlearned) / (target - unlearned), computed by `metrics.recovery` on the forget
examples that the attack did not disclose: 0 = nothing came back, 1 = as before unlearning. The control is the
same attack on a model that never saw the examples; what it gains there is no memory. Share less control is
what the attack brought back beyond what any model would learn from it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from unlearnkit.errors import RecordsError
from unlearnkit.reporting.numbers import MISSING, number, percent
from unlearnkit.reporting.tables import Cell
from unlearnkit.reporting.views import AttackView, EvalView, RunView

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["rouge", "probability"]
MEASURES: tuple[tuple[Measure, str], ...] = (("rouge", "ROUGE-L"), ("probability", "probability"))
DATASET = "forget"


@dataclass(frozen=True)
class Recovery:
    """What came back by one measure. `back`, `control` and `excess` are shares, the others plain means."""

    measure: str
    title: str
    back: Cell
    control: Cell
    excess: Cell
    unlearned: Cell
    attacked: Cell
    target: Cell

    @property
    def judged(self) -> Cell:
        """What the verdict goes by: the share beyond the control, or the share where there is no control."""
        return self.back if self.excess.value is None else self.excess


def recovery(view: AttackView, run: RunView, measure: Measure, title: str) -> Recovery:
    """What one stage of an attack on the unlearned model brought back, by one measure."""
    assert run.unlearned is not None  # who asks has an attacked unlearned model
    models = {"unlearned": run.unlearned, "target": run.target, "retain": run.retain}
    attacked, control = view.evaluations["unlearned"], view.evaluations.get("retain")
    back = _share(attacked, run.unlearned, run.target, measure, view.seen)
    other = (
        Cell(MISSING, note="the attack was not run on a retain model")
        if control is None or run.retain is None
        else _share(control, run.retain, run.target, measure, view.seen)
    )
    excess = Cell(MISSING, note=other.note or back.note)
    if back.value is not None and other.value is not None:
        of_models = {role: scores(one, measure) for role, one in models.items() if one is not None}
        low, high = _excess_interval(
            of_models, scores(attacked, measure), scores(control, measure), view.seen
        )
        excess = _points(back.value - other.value, low, high, min(back.n, other.n))
    plain = [_mean(one, measure, view.seen) for one in (run.unlearned, attacked, run.target)]
    return Recovery(measure, title, back, other, excess, *plain)


def _share(
    attacked: EvalView,
    unlearned: EvalView,
    target: EvalView | None,
    measure: Measure,
    seen: frozenset[str],
) -> Cell:
    from unlearnkit.evaluation.metrics.recovery import recovered_share

    if target is None:
        return Cell(MISSING, note="the model before unlearning was not evaluated")
    try:
        result = recovered_share(
            attacked.records,
            unlearned=unlearned.records,
            target=target.records,
            measure=measure,
            dataset=DATASET,
            leave_out=sorted(seen),
        )
    except RecordsError as error:
        return Cell(MISSING, note=str(error))
    if not result.measured:
        return Cell(MISSING, note=result.note.removeprefix("not measured:").strip())
    interval = (
        "" if result.low is None or result.high is None else f"{share(result.low)} to {share(result.high)}"
    )
    return Cell(
        share(result.value), result.value, interval, result.n, result.note, low=result.low, high=result.high
    )


def share(value: float) -> str:
    """A share as a whole per cent, with a real minus sign; below 0 where less is left than before."""
    return percent(value).replace("-", "−")


def _points(value: float, low: float | None, high: float | None, n: int) -> Cell:
    def text(x: float) -> str:
        return f"{round(100 * x)}".replace("-", "−")

    interval = "" if low is None or high is None else f"{text(low)} to {text(high)}"
    return Cell(f"{text(value)} points", value, interval, n, low=low, high=high)


def _mean(view: EvalView | None, measure: Measure, seen: frozenset[str]) -> Cell:
    from unlearnkit.evaluation.metrics.result import mean_result

    if view is None:
        return Cell(MISSING, note="not evaluated")
    found = scores(view, measure)
    result = mean_result(measure, found[~found.index.isin(seen)], variant="")
    if not result.measured:
        return Cell(MISSING, note="no example could be scored")
    interval = (
        "" if result.low is None or result.high is None else f"{number(result.low)} to {number(result.high)}"
    )
    unscored = f"{len(result.unscored)} not scored" if result.unscored else ""
    return Cell(
        number(result.value), result.value, interval, result.n, unscored, low=result.low, high=result.high
    )


def scores(view: EvalView | None, measure: Measure) -> pd.Series[float]:
    """Score of each forget example (index: example id); empty where the model was not asked."""
    import pandas as pd

    if view is None:
        return pd.Series(dtype="float64")
    return _cached_scores(_ByIdentity(view), measure)


class _ByIdentity:
    """A key for the cache: the view itself holds tables, which have no hash."""

    def __init__(self, view: EvalView) -> None:
        self.view = view

    def __hash__(self) -> int:
        return id(self.view)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.view is self.view


@functools.lru_cache(maxsize=64)
def _cached_scores(key: _ByIdentity, measure: Measure) -> pd.Series[float]:
    import pandas as pd

    from unlearnkit.evaluation import metrics

    compute = {"rouge": metrics.rouge, "probability": metrics.probability}[measure]
    scores = compute(key.view.records, dataset=DATASET).per_example
    return pd.Series(dtype="float64") if scores is None else scores


def _excess_interval(
    models: Mapping[str, pd.Series[float]],
    attacked: pd.Series[float],
    control: pd.Series[float],
    seen: frozenset[str],
) -> tuple[float | None, float | None]:
    """Percentile bootstrap of share less control over the examples that all five evaluations scored.

    Both shares are computed on the same resample, so that the examples' difficulty cancels.
    """
    from unlearnkit.evaluation.metrics.recovery import FORGOTTEN_AT_LEAST
    from unlearnkit.evaluation.metrics.result import LEVEL, interval, resample_counts, resampled_means

    series = [attacked, models["unlearned"], models["target"], control, models["retain"]]
    ids = sorted(set.intersection(*(set(one.dropna().index) for one in series)) - seen)
    if not ids:
        return None, None
    counts = resample_counts(len(ids), seed=0)
    after, before, target, trained, untrained = (
        resampled_means(np.asarray(one.reindex(ids), dtype=np.float64), counts) for one in series
    )
    known = np.minimum(target - before, target - untrained) > FORGOTTEN_AT_LEAST
    if 1 - known.mean() > (1 - LEVEL) / 2:
        return None, None  # as `recovered_share`: resamples without a share may not be left out in silence
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (after - before) / (target - before) - (trained - untrained) / (target - untrained)
    return interval(values[known])
