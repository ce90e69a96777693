"""How much came back under each attack: shares of what was forgotten, with a control, as plain data.

The share is (attacked - unlearned) / (target - unlearned), computed by `metrics.recovery` on the forget
examples that the attack did not disclose: 0 = nothing came back, 1 = as before unlearning. The control is the
same attack on a model that never saw the examples. Their gains do not compare: a model that was pushed below
the retain model gains more on its way back to it, and still knows no more. So the levels under attack are
compared, as a share of what the target knew beyond the retain model; that share is the excess.
"""

from __future__ import annotations

import functools
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
RETURNS_LIMIT = 0.1
"""From this share back beyond the control on (and an interval above 0), forgotten answers count as returning:
a tenth is more than what the choice of examples moves in the usual 40 to 400 of them, and it is a number that
somebody who asked for deletion would want to know."""
MORE = {"rouge": "repeats more of them", "probability": "finds them likelier"}
NO_MORE = {"rouge": "repeats no more of them", "probability": "finds them no likelier"}
"""By measure: what a model does that knows more, or no more, of the answers than another."""
NO_CONTROL = "the attack was not run on a retain model"
OTHER_OPTIONS = "the retain model was attacked with other options"


@dataclass(frozen=True)
class Recovery:
    """What came back by one measure. `back`, `control` and `excess` are shares, the others plain means.

    `excess` is (attacked - control_attacked) / (target - retain): of what the target knew beyond a model that
    never saw the examples, what the attacked model shows beyond that model under the same attack.
    """

    measure: str
    title: str
    back: Cell
    control: Cell
    excess: Cell
    unlearned: Cell
    attacked: Cell
    control_attacked: Cell
    target: Cell

    @property
    def judged(self) -> Cell:
        """What the verdict goes by: the share beyond the control, or the share where there is no control."""
        return self.back if self.excess.value is None else self.excess

    @property
    def levels(self) -> str:
        """The attacked model's mean "against" that of the retain model under the same attack."""
        return f"{self.attacked.text} against {self.control_attacked.text}"


def returns(recovery: Recovery) -> bool:
    """Whether this much back is more than chance and at least RETURNS_LIMIT."""
    shown = recovery.judged
    return shown.value is not None and shown.value >= RETURNS_LIMIT and (shown.low is None or shown.low > 0)


def recovery(view: AttackView, run: RunView, measure: Measure, title: str) -> Recovery:
    """What one stage of an attack on the unlearned model brought back, by one measure."""
    assert run.unlearned is not None  # who asks has an attacked unlearned model
    attacked, control = view.evaluations["unlearned"], view.evaluations.get("retain")
    back = _share(attacked, run.unlearned, run.target, measure, view.seen)
    why = no_control(view)
    other = (
        Cell(MISSING, note=why)
        if control is None or run.retain is None
        else _share(control, run.retain, run.target, measure, view.seen)
    )
    excess = _excess(attacked, control, run, measure, view.seen, why)
    unlearned, after, trained, target = (
        _mean(one, measure, view.seen) for one in (run.unlearned, attacked, control, run.target)
    )
    return Recovery(measure, title, back, other, excess, unlearned, after, trained, target)


def no_control(view: AttackView) -> str:
    """Why a stage has no control, where it has none."""
    return OTHER_OPTIONS if "retain" in view.otherwise else NO_CONTROL


def not_changed(measure: str, title: str, why: str) -> Recovery:
    """A measure that an attack leaves alone."""
    return Recovery(measure, title, *[Cell(MISSING, note=why)] * 7)


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
    unit = "point" if abs(round(100 * value)) == 1 else "points"
    return Cell(f"{text(value)} {unit}", value, interval, n, low=low, high=high)


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


def _excess(
    attacked: EvalView,
    control: EvalView | None,
    run: RunView,
    measure: Measure,
    seen: frozenset[str],
    why: str,
) -> Cell:
    """(A - C) / (T - R) with its percentile bootstrap, over the examples that all four models were scored on.

    A, C: the unlearned and the retain model under the attack; T, R: the target and the retain model without
    it. All four means are taken of the same examples in each resample, so that the examples' difficulty
    cancels. `why` is the reason where there is no C.
    """
    from unlearnkit.evaluation.metrics.recovery import FORGOTTEN_AT_LEAST
    from unlearnkit.evaluation.metrics.result import LEVEL, interval, resample_counts, resampled_means

    if run.target is None:
        return Cell(MISSING, note="the model before unlearning was not evaluated")
    if control is None or run.retain is None:
        return Cell(MISSING, note=why)
    series = [scores(one, measure).dropna() for one in (attacked, control, run.target, run.retain)]
    ids = sorted(set.intersection(*(set(one.index) for one in series)) - seen)
    if not ids:
        return Cell(MISSING, note="no example is left that all four models were scored on")
    values = [np.asarray(one.reindex(ids), dtype=np.float64) for one in series]
    after, trained, target, retain = (float(one.mean()) for one in values)
    if not target - retain > FORGOTTEN_AT_LEAST:
        why = f"the target knew no more than a model that never saw them: {number(target)}, {number(retain)}"
        return Cell(MISSING, n=len(ids), note=why)
    counts = resample_counts(len(ids), seed=0)
    after_R, trained_R, target_R, retain_R = (resampled_means(one, counts) for one in values)
    known_R = target_R - retain_R > FORGOTTEN_AT_LEAST
    low, high = None, None
    # As `recovered_share`: resamples without a share may not be left out in silence.
    if 1 - known_R.mean() <= (1 - LEVEL) / 2:
        low, high = interval((after_R - trained_R)[known_R] / (target_R - retain_R)[known_R])
    return _points((after - trained) / (target - retain), low, high, len(ids))
