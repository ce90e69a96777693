"""What the evaluation at several alphas says: a table over alpha, and what alpha does, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unlearnkit.reporting.numbers import MISSING, count
from unlearnkit.reporting.serving import Serving, serving
from unlearnkit.reporting.tables import Cell, cell, extra_cell
from unlearnkit.reporting.verdict import P_LIMIT
from unlearnkit.reporting.views import Metric, RunView

LOG10, DISTANCE = "log10_p", "statistic"
"""The logarithm of forget quality and the distance D, which stand in its `extra`."""
COLUMNS = (
    ("forget_quality", "Forget quality (p)"),
    (DISTANCE, "Distance D"),
    ("model_utility", "Model utility"),
    ("forget_rouge", "Forget ROUGE-L"),
    ("forget_probability", "Forget probability"),
    ("retain_rouge", "Retain ROUGE-L"),
    ("knowmem_forget", "KnowMem on the forget set"),
    ("verbmem_forget", "VerbMem on the forget set"),
    ("knowmem_retain", "KnowMem on the retain set"),
)
MOST_COLUMNS = 6
WHAT_IT_DOES = {
    "uld": "Alpha says how much of the assistant is taken away from the target model: at 0 the target model "
    "answers alone; with a larger alpha more is forgotten, and more may be lost or be pushed too far.",
    "offset": "Alpha says how much of the two small models' difference is added to the target model: at 0 "
    "the target model answers alone; with a larger alpha more is forgotten, and more may be lost.",
    "value": "The weight says how much of the small network is added to the base model: at 0 the base model "
    "answers alone.",
}
CHOSEN = (
    "Where {factor} was chosen by these numbers, they look better than the same numbers on new questions "
    "would."
)


@dataclass(frozen=True)
class Row:
    """One model in the table: the combination with one alpha, or a model to compare with.

    `numbers` has a cell for every metric of COLUMNS, and for LOG10.
    """

    title: str
    alpha: float | None
    role: str
    numbers: dict[str, Cell]
    served: bool = False


@dataclass(frozen=True)
class Sweep:
    """The section of a report; `columns` are (metric, title) of what was measured."""

    factor: str
    heading: str
    served: float | None
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]

    @property
    def tried(self) -> list[Row]:
        """The rows of the combination, smallest alpha first."""
        return [row for row in self.rows if row.role == "unlearned"]

    def count_of(self, name: str) -> str:
        """The number of examples behind a column, where it is the same in every row."""
        found = {row.numbers[name].n for row in self.rows} - {0}
        return count(found.pop()) if len(found) == 1 else ""

    def of(self, role: str) -> Row | None:
        """The row of the target or the retain model, where there is one."""
        return next((row for row in self.rows if row.role == role), None)


def sweep_of(run: RunView) -> Sweep | None:
    """The evaluations at several alphas; None where there is but one."""
    served = serving(run)
    if not run.alphas or served is None:
        return None
    factor = served.words.factor.removeprefix("the ")
    rows = [
        Row(
            f"{factor.capitalize()} {one.alpha:g}",
            one.alpha,
            "unlearned",
            _numbers(one.metrics),
            one.alpha == served.alpha,
        )
        for one in run.alphas
    ]
    if run.target is not None:
        title = f"{served.first.capitalize()} alone"
        rows.insert(0, Row(title, 0.0, "target", _numbers(run.target.metrics)))
    if run.retain is not None:
        rows.append(Row("Retain model", None, "retain", _numbers(run.retain.metrics)))
    made = Sweep(factor, f"What {served.words.factor} does", served.alpha, _columns(rows), tuple(rows), ())
    return replace(made, sentences=tuple(_sentences(made, served)))


def _numbers(metrics: Mapping[str, Metric]) -> dict[str, Cell]:
    quality = metrics.get("forget_quality")
    numbers = {key: extra_cell(quality, key) for key in (LOG10, DISTANCE)}
    return {name: cell(metrics.get(name)) for name, _ in COLUMNS if name not in numbers} | numbers


def _columns(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    """The first of COLUMNS that were measured at some alpha."""
    tried = [row for row in rows if row.role == "unlearned"]
    found = [pair for pair in COLUMNS if any(row.numbers[pair[0]].value is not None for row in tried)]
    return tuple(found[:MOST_COLUMNS])


def _sentences(sweep: Sweep, served: Serving) -> list[str]:
    return [
        *([WHAT_IT_DOES[served.kind]] if served.kind in WHAT_IT_DOES else []),
        f"Served is {served.value}. Choosing it needed no new training: all of these have the same weights.",
        *_passing(sweep),
        CHOSEN.format(factor=served.words.factor),
    ]


def _passing(sweep: Sweep) -> list[str]:
    """With which alphas forget quality passes its limit, and whether it is highest with the served one."""
    found = [(row, row.numbers["forget_quality"].value) for row in sweep.tried]
    known = [(row, value) for row, value in found if value is not None]
    if not known:
        return []
    above = [f"{row.alpha:g}" for row, value in known if value > P_LIMIT]
    amount = "all" if len(above) == len(known) else ", ".join(above) or "none"
    measured = f"Of the {len(known)} {sweep.factor}s that were measured"
    text = f"{measured}, forget quality is above {P_LIMIT} with {amount}"
    best, highest = max(known, key=lambda pair: pair[1])
    return [f"{text}, and highest with the served one." if best.served and highest > P_LIMIT else f"{text}."]


def in_words(sweep: Sweep) -> str:
    """The whole table in one line, for who cannot see the plot."""
    lines = []
    for row in sweep.rows:
        shown = [(title, row.numbers[name].text) for name, title in sweep.columns]
        told = ", ".join(f"{title} {text}" for title, text in shown if text != MISSING)
        lines.append(f"{row.title}{' (served)' if row.served else ''}: {told}")
    return "; ".join(lines)
