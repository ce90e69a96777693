"""lm-evaluation-harness as a suite: what a model can still do, in the same records as everything else.

Tasks are loaded, prompted and judged by lm-eval (https://github.com/EleutherAI/lm-evaluation-harness, the
`eval` extra) through its Python API; ours is what surrounds it. Each answer of the model is kept by content,
so that a second run, a larger `limit` or another task with the same prompts asks only what is new. Each
judged document becomes one record per metric, and the means of these records are lm-eval's own numbers.
Several processes share the tasks; where each holds a part of the weights only, all run every task at once.

A group's records name the way to them, `mmlu/mmlu_stem/mmlu_astronomy`; each part of it names a set of them.
Importing this module imports neither torch nor lm-eval.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from unlearnkit.errors import RecipeError, UserError
from unlearnkit.evaluation import harness, lm_tasks
from unlearnkit.evaluation.records import LM_EVAL
from unlearnkit.evaluation.share import processes
from unlearnkit.strict import did_you_mean

logger = logging.getLogger(__name__)

#: The first version with `TaskManager.load`.
OLDEST = "0.4.12"


@dataclass(frozen=True)
class TaskSpec:
    """A suite's section `lm_eval`: tasks of lm-evaluation-harness and how they are asked."""

    tasks: list[str] = field(
        default_factory=list, metadata={"help": "names of tasks, groups or tags of lm-evaluation-harness"}
    )
    include_path: str | None = field(default=None, metadata={"help": "a folder with tasks of your own"})
    num_fewshot: int | None = field(
        default=None,
        metadata={"least": 0, "help": "worked examples in a prompt; the task's own count by default"},
    )
    batch_size: int = field(default=8, metadata={"least": 1, "help": "prompts in one forward pass"})
    limit: int | None = field(
        default=None, metadata={"least": 1, "help": "only the first documents of each task (for trying out)"}
    )
    apply_chat_template: bool | str = field(
        default=False, metadata={"help": "write prompts as chats; a name picks one of several templates"}
    )
    fewshot_as_multiturn: bool = field(
        default=False, metadata={"help": "each worked example is a turn of the chat"}
    )
    system_instruction: str | None = field(default=None, metadata={"help": "stands before every prompt"})
    seed: int = field(default=0, metadata={"help": "for all of lm-eval's seeds"})
    gen_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "settings of generations, over the task's own"}
    )


def require() -> None:
    """Refuse at once where lm-evaluation-harness is not installed, or too old.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "this suite runs lm-evaluation-harness, which is not installed; pip install 'unlearnkit[eval]'"
        )
    found = importlib.metadata.version("lm_eval")
    if Version(found) < Version(OLDEST):
        raise UserError(
            f"this suite needs lm-evaluation-harness {OLDEST} or newer, found {found}; "
            "pip install -U 'unlearnkit[eval]'"
        )


def check(spec: TaskSpec) -> None:
    """Check all that can be checked without a model and without the tasks' data.

    Raises:
        UserError: lm-evaluation-harness is not installed.
        RecipeError: there are no tasks, a task is not known, or `include_path` is not a folder.
    """
    require()
    lm_tasks.task_manager(spec)


def metrics_for(tasks: Iterable[str], spec: TaskSpec) -> dict[str, dict[str, Any]]:
    """One score for each task, group or tag, as the suite's section `metrics` would list them."""
    shots = "" if spec.num_fewshot is None else f" ({spec.num_fewshot}-shot)"
    return {
        re.sub(r"\W+", "_", name): {
            "kind": "task_score", "dataset": name, "group": "capability", "title": f"{name}{shots}"
        }
        for name in tasks
    }  # fmt: skip


def run_tasks(
    model: Any, tokenizer: Any, spec: TaskSpec, *, suite: str = "", progress: bool = True, cache: bool = True
) -> list[dict[str, Any]]:
    """Records of all tasks: one per document and metric, in the order of the tasks.

    Called by all processes at once, each of which gets all records. Python's, NumPy's and torch's random
    numbers and the model's mode are left as they were.

    Args:
        model: a causal language model on its device, in any mode.
        tokenizer: its tokenizer; it is not changed.
        suite: name/version, as records carry it.
        cache: keep answers on disk by content, and reuse them.

    Raises:
        UserError: lm-evaluation-harness is not installed.
        RecipeError: a task is unknown, named twice, or cannot be run with these settings.
        UnreachableError, DataError: the data of a task cannot be downloaded or read.
        ModelError: an answer of the model is not a number, or its memory is too small for one prompt.
    """
    from unlearnkit.models.precision import own_precision

    require()
    if spec.apply_chat_template:
        _check_chat_template(tokenizer, spec.apply_chat_template)
    split = harness.is_split(model)
    was_training = model.training
    found: dict[int, list[dict[str, Any]]] = {}
    error: Exception | None = None
    try:
        with harness.own_randomness(), own_precision(model):
            found = _found(model, tokenizer, spec, suite, progress, cache, split)
    except Exception as raised:  # told to the other processes before it goes on
        if processes()[1] == 1:
            raise
        error = raised
    finally:
        model.train(was_training)
    found = harness.shared(found, error, split)
    return [row for place in sorted(found) for row in found[place]]


def _found(
    model: Any, tokenizer: Any, spec: TaskSpec, suite: str, progress: bool, cache: bool, split: bool
) -> dict[int, list[dict[str, Any]]]:
    """The rows of this process's share of the tasks, by their places among all tasks."""
    from tqdm import tqdm

    rank, world = processes()
    terminal = sys.stderr
    with harness.quiet():
        harness.seed_all(spec.seed)  # a task may draw its documents
        leaves = lm_tasks.load(spec, lm_tasks.task_manager(spec))
    for _, task in leaves:
        lm_tasks.configure(task, spec)
    largest_first = sorted(range(len(leaves)), key=lambda i: -len(leaves[i][1].eval_docs))
    mine = largest_first if split else largest_first[rank::world]
    answers = harness.kept_answers(model, copy.deepcopy(tokenizer), spec, cache=cache, together=split)
    found = {}
    with tqdm(
        total=len(mine), desc=f"{suite or 'lm-eval'}: tasks", file=terminal, leave=False,
        disable=not progress or rank > 0,
    ) as bar:  # fmt: skip
        for place in mine:
            path, task = leaves[place]
            bar.set_postfix_str(task.task_name)
            found[place] = list(_rows(path, task, _samples(task, answers, spec), suite))
            bar.update()
            while answers.notes:
                logger.warning(answers.notes.pop(0))
    return found


def _check_chat_template(tokenizer: Any, wanted: bool | str) -> None:
    own = tokenizer.chat_template
    names = list(own) if isinstance(own, dict) else []
    if not own:
        raise RecipeError(
            "lm_eval.apply_chat_template is set, but the tokenizer has no chat template; leave the key out"
        )
    if isinstance(wanted, str) and wanted not in names:
        raise RecipeError(
            f"the tokenizer has no chat template named {wanted!r}"
            + (did_you_mean(wanted, names) or "; write lm_eval.apply_chat_template: true for its only one")
        )


def _samples(task: Any, answers: harness.KeptAnswers, spec: TaskSpec) -> list[dict[str, Any]]:
    """Every document of a task with the model's answers and lm-eval's judgement."""
    from lm_eval.evaluator import evaluate

    with harness.quiet():
        harness.seed_all(spec.seed)
        task.set_fewshot_seed(seed=spec.seed)
        try:
            results = evaluate(
                answers, {task.task_name: task}, limit=spec.limit, bootstrap_iters=0, log_samples=True,
                system_instruction=spec.system_instruction, apply_chat_template=spec.apply_chat_template,
                fewshot_as_multiturn=spec.fewshot_as_multiturn,
            )  # fmt: skip
        except (AssertionError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RecipeError(f"lm-eval cannot run the task {task.task_name!r} ({first})") from error
    samples: list[dict[str, Any]] = results["samples"][task.task_name]
    return samples


def _rows(path: str, task: Any, samples: Sequence[dict[str, Any]], suite: str) -> Iterator[dict[str, Any]]:
    for sample in samples:
        prompt, reference, text = _told(sample)
        # A task may judge an answer read in several ways ("filters").
        way = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            score = sample[metric]
            count = 0
            if not lm_tasks.is_readable(task, metric):
                continue
            if metric in lm_tasks.PERPLEXITIES:
                total, count = score if isinstance(score, tuple) else (score, 1)
                score = -total / count if count else math.nan
            yield {
                "probe": LM_EVAL, "suite": suite, "dataset": path, "example_id": f"{sample['doc_id']:05d}",
                "field": f"{metric}{way}", "prompt": prompt, "reference_text": reference, "text": text,
                "value": float(score), "num_tokens": int(count),
            }  # fmt: skip


def _told(sample: dict[str, Any]) -> tuple[str, str, str | None]:
    """Prompt, true answer and the model's answer of one document, as texts."""
    asked, target = sample["arguments"], sample["target"]
    if len(asked[0]) == 1:  # a whole text's likelihood
        return "", str(asked[0][0]), None
    prompt = str(asked[0][0])
    if isinstance(answer := sample["resps"][0][0], str):
        truths = target if isinstance(target, list) else [target]
        return prompt, " | ".join(str(one) for one in truths), answer
    if len(asked) == 1:
        return prompt, str(asked[0][1]), None
    # Choices differ in what follows the prompt, or (as in Winogrande) in the prompt itself.
    choices = [str(one[1]).strip() for one in asked if one[0] == prompt]
    if len(choices) == 1:
        choices = [str(one[0]) for one in asked]
    logps = [answers[0][0] for answers in sample["resps"]][: len(choices)]
    known = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices)
    return prompt, choices[target] if known else str(target), choices[logps.index(max(logps))]
