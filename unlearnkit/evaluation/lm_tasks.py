"""Finding, loading and setting up the tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import DataError, RecipeError, UnreachableError, UserError
from unlearnkit.evaluation.harness import quiet
from unlearnkit.strict import did_you_mean

if TYPE_CHECKING:
    from unlearnkit.evaluation.capability import TaskSpec

logger = logging.getLogger(__name__)

#: Metrics that are not means over documents, but functions of a mean over words or bytes.
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")


def task_manager(spec: TaskSpec) -> Any:
    """lm-eval's list of tasks, narrowed to the folders that our tasks are likely to be in.

    The whole list takes 5 to 20 seconds to make; it is made when a name is not found otherwise.
    """
    from lm_eval import tasks
    from lm_eval.tasks import TaskManager

    if not spec.tasks:
        raise RecipeError("lm_eval.tasks is empty; name tasks of lm-evaluation-harness, such as [mmlu]")
    own = [] if spec.include_path is None else [Path(spec.include_path).expanduser()]
    if own and not own[0].is_dir():
        raise RecipeError(f"lm_eval.include_path: there is no folder {spec.include_path}; check the path")
    parts = [name.split("_") for name in spec.tasks]
    stems = {"_".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
    likely = [folder for stem in sorted(stems) if (folder := Path(tasks.__file__).parent / stem).is_dir()]
    with quiet():
        manager = TaskManager(include_path=[*likely, *own], include_defaults=False)
        if not _is_whole(manager.task_index, spec.tasks):
            manager = TaskManager(include_path=own)
    for name in spec.tasks:
        if name not in manager.task_index:
            raise RecipeError(f"there is no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    return manager


def _is_whole(index: Any, names: Sequence[str]) -> bool:
    """Whether all of `names` and what they consist of are in the index; a tag may have members elsewhere."""
    if any(name in index and index[name].kind.name == "TAG" for name in names):
        return False
    waiting = list(names)
    while waiting:
        # A group may also list sections that define tasks: let the whole index deal with these.
        name = waiting.pop()
        if not isinstance(name, str) or name not in index:
            return False
        if index[name].kind.name == "GROUP":
            waiting += (index[name].cfg or {}).get("task") or []
    return True


def load(spec: TaskSpec, manager: Any) -> list[tuple[str, Any]]:
    """(path, task) of every leaf; reads the tasks' data."""
    leaves: dict[str, tuple[str, Any]] = {}
    for name in spec.tasks:
        try:
            built = manager.load([name])
        except Exception as error:  # lm-eval and datasets raise many types; all are the user's to mend
            raise _unloadable(name, error) from error
        for path, task in _paths(name, built):
            if task.task_name in leaves:
                raise RecipeError(
                    f"lm_eval.tasks gives the task {task.task_name!r} twice, as {leaves[task.task_name][0]} "
                    f"and as {path}; leave one of them out"
                )
            leaves[task.task_name] = (path, task)
    return list(leaves.values())


def _unloadable(name: str, error: Exception) -> UserError:
    from datasets.exceptions import DatasetNotFoundError

    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    away = isinstance(error, ConnectionError | TimeoutError | DatasetNotFoundError)
    if away or "Couldn't find cache" in first or "Couldn't reach" in first or "offline" in first.lower():
        return UnreachableError(
            f"the data of the task {name!r} cannot be reached ({first}); go online once, or give tasks with "
            "local data under lm_eval.include_path"
        )
    return DataError(f"the task {name!r} cannot be loaded ({first}); check its YAML file and its data")


def _paths(name: str, built: Any) -> Iterator[tuple[str, Any]]:
    if name in built["groups"]:
        yield from _members(built["groups"][name], "")
        return
    for task in built["tasks"].values():  # one, or those of a tag
        yield (name if task.task_name == name else f"{name}/{task.task_name}"), task


def _members(item: Any, above: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(item, "get_all_tasks"):
        yield f"{above}{item.task_name}", item
        return
    for child in item:
        yield from _members(child, f"{above}{item.name}/")


def configure(task: Any, spec: TaskSpec) -> None:
    """What lm-eval's `simple_evaluate` does with these settings."""
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(
            f"the task {name!r} runs code that the model writes, which is refused; leave it out"
        )
    if not any(is_readable(task, metric) for metric in task.aggregation()):
        listed = ", ".join(task.aggregation()) or "no metric"
        raise RecipeError(
            f"the task {name!r} has only {listed}, which is no mean over documents; leave it out"
        )
    if spec.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(spec.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if spec.num_fewshot is None:
        task.set_config(key="num_fewshot", value=own or 0)
    elif own == 0:
        if spec.num_fewshot:
            logger.warning(
                "the task %s is defined with 0 worked examples; num_fewshot is ignored for it", name
            )
    else:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)


def is_readable(task: Any, metric: str) -> bool:
    """Whether lm-eval's number can be made of one value per document."""
    from lm_eval.api import metrics

    aggregation = task.aggregation().get(metric, metrics.mean)
    return metric in PERPLEXITIES or aggregation in (metrics.mean, metrics.nanmean)
