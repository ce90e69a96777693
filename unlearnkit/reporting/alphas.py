"""What the evaluation at several alphas says: a table over alpha, and what alpha does, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    "offset": "Alpha says how much of the two other models' difference is added to the target model: at 0 "
    "the target model answers alone; with a larger alpha more is forgotten, and more may be lost.",
    "value": "Alpha says how much of the value network is added to the base model: at 0 the base model "
    "answers alone.",
}
CHOSEN = (
    "Where alpha was chosen by these numbers, they look better than the same numbers on new questions would."
)


@dataclass(frozen=True)
class Row:
    """One model in the table: the combination with one alpha, or a model to compare with.

    `numbers` has a cell for LOG10, every metric of COLUMNS and every one of the suite.
    """

    title: str
    alpha: float | None
    role: str
    numbers: dict[str, Cell]
    served: bool = False


@dataclass(frozen=True)
class Sweep:
    """The section of a report; `columns` are (metric, title) of what was measured."""

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
    titles = [(name, metric.title) for name, metric in run.alphas[0].metrics.items()]
    names = [name for name, _ in (*COLUMNS, *titles)]
    rows = [
        Row(
            f"Alpha {one.alpha:g}",
            one.alpha,
            "unlearned",
            _numbers(one.metrics, names),
            one.alpha == served.alpha,
        )
        for one in run.alphas
    ]
    if run.target is not None:
        title = f"{served.first.capitalize()} alone"
        rows.insert(0, Row(title, 0.0, "target", _numbers(run.target.metrics, names)))
    if run.retain is not None:
        rows.append(Row("Retain model", None, "retain", _numbers(run.retain.metrics, names)))
    made = Sweep(served.alpha, _columns(rows, titles), tuple(rows), ())
    return replace(made, sentences=tuple(_sentences(made, served)))


def _numbers(metrics: Mapping[str, Metric], names: Iterable[str]) -> dict[str, Cell]:
    quality = metrics.get("forget_quality")
    numbers = {key: extra_cell(quality, key) for key in (LOG10, DISTANCE)}
    return {name: cell(metrics.get(name)) for name in names} | numbers


def _columns(rows: Sequence[Row], titles: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The first of COLUMNS that were measured at some alpha; of a suite without any, its own first ones."""
    measured = {
        name
        for row in rows
        for name, one in row.numbers.items()
        if row.role == "unlearned" and one.value is not None
    }
    known = [pair for pair in COLUMNS if pair[0] in measured]
    return tuple((known or [pair for pair in titles if pair[0] in measured])[:MOST_COLUMNS])


def _sentences(sweep: Sweep, served: Serving) -> list[str]:
    return [
        *([WHAT_IT_DOES[served.kind]] if served.kind in WHAT_IT_DOES else []),
        f"Served is {served.value}. Choosing it needed no new training: all of these have the same weights.",
        *_passing(sweep),
        CHOSEN,
    ]


def _passing(sweep: Sweep) -> list[str]:
    """With which alphas forget quality passes its limit, and whether it is highest with the served one."""
    found = [(row, row.numbers["forget_quality"].value) for row in sweep.tried]
    known = [(row, value) for row, value in found if value is not None]
    if not known:
        return []
    above = [f"{row.alpha:g}" for row, value in known if value > P_LIMIT]
    amount = "all" if len(above) == len(known) else ", ".join(above) or "none"
    measured = f"Of the {len(known)} alphas that were measured"
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
