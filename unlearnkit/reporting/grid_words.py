"""What a comparison says in sentences: who forgot, who lies on the front, and what to keep in mind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from unlearnkit.reporting.compare import comparability
from unlearnkit.reporting.grid_groups import ENOUGH_SEEDS, QUALITY, Axis, Group
from unlearnkit.reporting.grid_read import Grid, GridCell
from unlearnkit.reporting.serving import Kind, serving

MOST_NAMED = 6
"""So many names stand in a sentence; the tables have all of them."""
CHOSEN = (
    "Methods and settings are compared by the very numbers that are shown, so the best group looks better "
    "than it is; confirm it with new seeds or on another forget set."
)
FRONT = (
    "the groups that no other group beats: none both forgets and keeps at least as well and one of the two "
    "better, by the means over seeds. That alone is no praise: a method that changes nothing may be on it."
)
TERMS = (
    ("group", "one method at one point of the grid of settings, with all its seeds."),
    ("Pareto front", FRONT),
    (
        "interval over seeds",
        "95 % interval of the mean over seeds (Student's t): where the mean of many more seeds would lie if "
        "they spread normally. It says nothing about other examples.",
    ),
)


def headline(grid: Grid, groups: Sequence[Group], columns: Iterable[str]) -> str:
    """Which groups forgot, for somebody who reads nothing else."""
    if not grid.runs:
        return "No cell of this comparison is finished yet, so there is nothing to compare."
    if QUALITY not in columns:
        return (
            "Forget quality was not measured, so no group can be said to have forgotten; the numbers are "
            "weaker evidence."
        )
    passing = [group.title for group in groups if group.passes]
    if not passing:
        return (
            "No group reaches a forget quality above 0.05 in all of its seeds: each can be told apart from a "
            "model that never saw the examples."
        )
    return (
        f"{len(passing)} of {_groups(len(groups))} cannot be told apart from a model that never saw the "
        f"examples (forget quality above 0.05 in every seed): {_listed(passing)}."
    )


def sentences(
    grid: Grid, groups: Sequence[Group], axes: tuple[Axis, Axis] | None, front: set[int]
) -> list[str]:
    """The sentences under the headline: the front, and how far the numbers carry."""
    found = []
    if axes is not None:
        names = [
            f"{group.title}{' (p above 0.05)' if group.passes else ''}"
            for group in groups
            if group.number in front
        ]
        found.append(
            f"On the Pareto front of forgetting ({_small(axes[0].title)}) and keeping "
            f"({_small(axes[1].title)}): {_listed(names)}."
        )
    elif grid.runs:
        found.append("Forgetting and keeping were not both measured, so there is no Pareto front.")
    found += _served(grid)
    if grid.runs and len(groups) > 1:
        found.append(CHOSEN)
    most = max((sum(cell.run is not None for cell in group.cells) for group in groups), default=0)
    if most == 1:
        found.append("Each group has one seed: how much the numbers change from seed to seed is not known.")
    elif most:
        found.append(
            f"Each group has {'at most ' if _uneven(groups) else ''}{most} seeds"
            f"{'' if most >= ENOUGH_SEEDS else ', too few for an interval over seeds'}; a difference within "
            f"the {'intervals' if most >= ENOUGH_SEEDS else 'ranges'} may be luck."
        )
    return found


def _served(grid: Grid) -> list[str]:
    """Which methods serve more than one model, and what that leaves in the weights."""
    by_kind: dict[Kind, dict[str, None]] = {}
    for cell in grid.cells:
        if cell.run is not None and (served := serving(cell.run)) is not None:
            by_kind.setdefault(served.words, {})[cell.method] = None
    return [
        f"Served by {', '.join(methods)} is a {words.noun} of networks and not one model. What is compared "
        f"is its behaviour as a whole; {words.still.format(them='the examples')}."
        for words, methods in by_kind.items()
    ]


def cautions(grid: Grid) -> list[str]:
    """What to keep in mind: cells that are missing, what each run warns of, and runs that do not compare."""
    found = []
    for status, what in (("failed", "failed"), ("pending", "not run yet"), ("skipped", "skipped")):
        number = sum(cell.status == status for cell in grid.cells)
        if number:
            verb = "is" if number == 1 else "are"
            said = what if status == "failed" else f"{verb} {what}"
            found.append(f"{number} of {len(grid.cells)} cells {said}")
    finished = [cell for cell in grid.cells if cell.run is not None]
    found += once([(cell, cell.run.cautions) for cell in finished if cell.run is not None])
    found += comparability(grid.runs)
    retain = {json.dumps(run.retain.fingerprint("model")) for run in grid.runs if run.retain}
    if len(retain) > 1:
        found.append("the runs were not compared with the same retain model")
    return found


def once(said: Sequence[tuple[GridCell, Iterable[str]]]) -> list[str]:
    """What several cells say, said once with the cells that say it; without them where all do."""
    by_text: dict[str, list[str]] = {}
    for cell, texts in said:
        for text in texts:
            by_text.setdefault(text, []).append(f"{cell.method} seed {cell.seed}")
    return [
        text if len(names) == len(said) else f"{_listed(list(dict.fromkeys(names)))}: {text}"
        for text, names in by_text.items()
    ]


def _uneven(groups: Sequence[Group]) -> bool:
    return len({sum(cell.run is not None for cell in group.cells) for group in groups}) > 1


def _groups(count: int) -> str:
    return f"{count} group{'' if count == 1 else 's'}"


def _small(title: str) -> str:
    """A title within a sentence; ROUGE-L and KnowMem keep their capitals."""
    return title[:1].lower() + title[1:] if title[1:2].islower() and not title.startswith("Know") else title


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        return f"{'; '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    return "; ".join(names)
