"""What the commands `run`, `train` and `eval` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnkit.errors import UserError
from unlearnkit.files import fingerprint, read_json
from unlearnkit.recipe import Recipe, TemplateSpec, load_recipe
from unlearnkit.run import RunDir, run_dir, runs_folder

console = Console(soft_wrap=True, highlight=False)
ALL = ("train", "evaluate", "report")


def say(text: str) -> None:
    """Print a line, from one process of several."""
    if os.environ.get("RANK", "0") == "0":
        console.print(text, markup=False)


def run_recipe(
    name: str, overrides: Sequence[str], run_name: str | None, *, stages: Sequence[str] = ALL
) -> Path:
    """Run a recipe, first of all the ones that it needs; returns the run's folder."""
    recipe = load_recipe(name, overrides)
    missing = [n for n in recipe.needs if not RunDir(runs_folder() / n.replace("/", "-")).model.is_dir()]
    if missing:
        _check_before(recipe)
    for needed in missing:
        if not RunDir(runs_folder() / needed.replace("/", "-")).model.is_dir():  # it may have run meanwhile
            say(f"{recipe.name} needs {needed}, which has not been run yet: running it first")
            run_recipe(needed, _passed_on(overrides), None, stages=("train",))
    own = tuple(o for o in overrides if not o.startswith("data.root="))
    return run_one(recipe, run_dir(recipe, own, run_name), stages)


def _check_before(recipe: Recipe) -> None:
    """A mistake in a recipe or its data is found before the recipes that it needs have run for hours."""
    import tempfile

    quiet()
    from unlearnkit.preflight import load_streams, objective_of, suite_of, training_args

    suite_of(recipe)
    load_streams(recipe, objective_of(recipe, training_args(recipe, tempfile.gettempdir())).streams)


def _passed_on(overrides: Sequence[str]) -> list[str]:
    """Where the data lie holds for every recipe of a benchmark; other settings are one recipe's own."""
    return [o for o in overrides if o.startswith("data.root=")]


def run_one(recipe: Recipe, run: RunDir, stages: Sequence[str] = ALL, *, progress: bool = True) -> Path:
    """The stages of one recipe in one folder."""
    quiet()
    from unlearnkit.pipeline import Pipeline
    from unlearnkit.preflight import check_evaluation

    pipeline = Pipeline(recipe, run, say, progress)
    if "evaluate" in stages:
        check_evaluation(recipe)
    # Of several processes the first one holds the folder for all.
    with run.in_use() if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        pipeline.train()
        if "evaluate" in stages and (found := pipeline.evaluate()):
            labels = {role: str(e.summary["label"]) for role, e in found.items()}
            print_metrics({role: e.metrics for role, e in found.items()}, labels)
        if "report" in stages and recipe.evaluation.suite is not None:
            _say_verdict(recipe, pipeline.report())
    if "report" not in stages:
        say(f"Model: {run.model}")
    return run.root


def _say_verdict(recipe: Recipe, report: Path | None) -> None:
    """The report's first sentences, and what to try where nothing was forgotten."""
    if report is None:
        return
    verdict = read_json(report.with_name("summary.json")).get("verdict", {})
    code = str(verdict.get("code", ""))
    if recipe.method != "sft" and verdict.get("text"):
        say(f"\n{verdict['text']}")
    if code.endswith("not_forgotten"):
        say("To push harder, raise training.learning_rate (a few times) or training.num_train_epochs.")
    say(f"Report: {report}")


def evaluate_model(
    model: str, suite: str, split: str | None, reference: str | None, data: Sequence[str],
    output: Path | None, batch_tokens: int, template: str | None = None,
) -> None:  # fmt: skip
    """Evaluate any model and print its metrics; `template` is YAML, by default that of the model's run."""
    quiet()
    from unlearnkit.evaluation.results import save_evaluation
    from unlearnkit.evaluation.runner import evaluate
    from unlearnkit.preflight import evaluation_or_model
    from unlearnkit.run import resolve_path
    from unlearnkit.yamlfile import parse_yaml

    overrides: dict[str, Any] = {}
    for item in data:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(
                f"--data {item!r} is not key=value; write --data root=FOLDER or --data forget=FILE"
            )
        overrides[key] = parse_yaml(value, f"--data {key}", numbered=False).values[""]
    if split is not None:
        overrides["split"] = split
    path = evaluation_or_model(str(resolve_path(model)))
    other = None if reference is None else evaluation_or_model(str(resolve_path(reference)))
    label = _label(model)
    spec = _template(path, template)
    found = evaluate(
        path, suite=suite, data=overrides, reference=other, batch_tokens=batch_tokens, label=label,
        template=spec,
    )  # fmt: skip
    print_metrics({label: found.metrics})
    if os.environ.get("RANK", "0") == "0":
        asked = (str(Path(path).resolve()) if Path(path).exists() else path, suite, overrides, vars(spec))
        parts = (label, Path(suite).stem, found.summary["split"], fingerprint(asked)[:6])
        folder = _kept(
            output, Path("evaluations") / "-".join(filter(None, parts)), found.summary["fingerprint"]
        )
        save_evaluation(found, folder)
        say(f"Records: {folder}")


def _template(model: str, text: str | None) -> TemplateSpec:
    """How the model is asked: as given, else as in the run whose model it is, else by its tokenizer."""
    from unlearnkit.strict import Reader
    from unlearnkit.yamlfile import parse_yaml, read_document

    folder = Path(model).resolve()
    recipe = RunDir(folder.parent).recipe
    if text is not None:
        document = parse_yaml(text, "--template", numbered=False)
        value = document.values[""]
    elif folder.is_dir() and folder == RunDir(folder.parent).model and recipe.is_file():
        document = read_document(recipe)
        value = (document.values.get("data") or {}).get("template") or {}
    else:
        return TemplateSpec()
    document.raise_problems()
    spec = Reader(document).section(TemplateSpec, value, ("template",))
    document.raise_problems()
    assert spec is not None
    return spec


def _kept(output: Path | None, own: Path, found: dict[str, str]) -> Path:
    """The folder for an evaluation, so that no other one is overwritten.

    Raises:
        UserError: the folder that was asked for holds another evaluation.
    """
    folder = output or own
    summary = folder / "summary.json"
    if not summary.exists() or read_json(summary).get("fingerprint") == found:
        return folder
    if output is not None:
        raise UserError(
            f"{output} holds the evaluation of another model, other data or another template; choose another "
            "--output, or remove it (the answers are kept: nothing is computed again)"
        )
    return own.with_name(f"{own.name}-{fingerprint(found)[:6]}")


def _label(model: str) -> str:
    """What a model is called: its folder's name, or its run's where the folder is a run's `model`."""
    path = Path(model.removeprefix("run:").rstrip("/"))
    path = path.resolve() if path.name in ("", ".", "..") else path
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def print_metrics(found: dict[str, Any], labels: dict[str, str] | None = None) -> None:
    """A table of metrics, a column per model; what there is to say about a number stands below."""
    if os.environ.get("RANK", "0") != "0":
        return
    roles: tuple[str, ...] = ("target", "unlearned", "retain")
    order = [role for role in roles if role in found] or list(found)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("metric")
    for role in order:
        table.add_column(escape((labels or {}).get(role, role)), justify="right")
    names = next(iter(found.values()))
    for name in names:
        cells = [found[role].get(name) for role in order]
        table.add_row(name, *("" if c is None else _number(c.value) if c.measured else "–" for c in cells))
    console.print(table)
    main = found.get("unlearned", next(iter(found.values())))
    for name, metric in main.items():
        if metric.note:
            console.print(f"{name}: {metric.note}", markup=False)


def _number(value: float) -> str:
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def quiet() -> None:
    """Libraries' own progress bars and notices are left out; ours say what matters."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
