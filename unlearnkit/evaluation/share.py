"""Questions shared out over the processes of a distributed run; all of them get all answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearnkit.evaluation.questions import Question
    from unlearnkit.evaluation.store import JointStore, ResultStore


def processes() -> tuple[int, int]:
    """(rank, number of processes)."""
    import torch.distributed as dist

    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return processes()[0] == 0


def ask_missing(
    store: ResultStore | JointStore, asked: Mapping[str, Question], title: str, progress: bool,
    probe: Callable[[list[Question], Callable[[int], Any]], Any],
) -> list[Question]:  # fmt: skip
    """Ask for what the store lacks, each process its share; return what was asked.

    Questions are dealt out by length, so that every process has as much to do as the others.
    """
    from tqdm import tqdm

    rank, world = processes()
    unknown = {name for name in asked if name not in store}
    if world > 1:
        # Each process has read the disk at a moment of its own: what one of them lacks, all ask for.
        unknown = set().union(*gathered(unknown))
    missing = [question for name, question in asked.items() if name in unknown]
    if not missing:
        return []
    dealt = sorted(missing, key=lambda q: -len(q.prompt_ids) - len(q.answer_ids)) if world > 1 else missing
    mine = dealt[rank::world]
    collected: list[Any] = []
    try:
        with tqdm(total=len(mine), desc=title, disable=not progress or rank > 0, leave=False) as bar:
            for results in probe(mine, bar.update):
                store.add(results)
                collected += results
    finally:
        store.flush()
    for other, part in enumerate(gathered(collected)) if world > 1 else ():
        if other != rank:
            store.remember(part)
    return missing


def gathered(value: Any) -> list[Any]:
    """Every process's value, by rank."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
