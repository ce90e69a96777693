"""What the commands `run`, `train` and `eval` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnkit.errors import UserError
from unlearnkit.files import fingerprint, read_json
from unlearnkit.recipe import Recipe, TemplateSpec, load_recipe
from unlearnkit.run import RunDir, is_place, own_settings, run_dir
from unlearnkit.terminal import print_alphas, print_attacks, print_metrics, quiet, say

ALL = ("train", "evaluate", "report")


def run_recipe(
    name: str, overrides: Sequence[str], run_name: str | None, *, stages: Sequence[str] = ALL
) -> Path:
    """Run a recipe, first of all the ones that it needs; returns the run's folder."""
    recipe = load_recipe(name, overrides)
    missing = missing_needs(recipe)
    if missing:
        check_before(recipe)
    for needed in missing:
        if needed in missing_needs(recipe):  # it may have run meanwhile
            say(f"{recipe.name} needs {needed}, which has not been run yet: running it first")
            run_recipe(needed, passed_on(overrides), None, stages=("train",))
    return run_one(recipe, run_dir(recipe, own_settings(name, overrides), run_name), stages)


def missing_needs(recipe: Recipe) -> list[str]:
    """The recipes that must run before this one and have not been run."""
    found = {name: load_recipe(name, check_training=False) for name in recipe.needs}
    return [name for name, needed in found.items() if not run_dir(needed).model.is_dir()]


def check_before(recipe: Recipe, *, on_cpu: bool = False) -> None:
    """A mistake in a recipe or its data is found before the recipes that it needs have run for hours.

    Args:
        on_cpu: leave the GPU alone; another process trains.
    """
    import tempfile

    quiet()
    from unlearnkit.preflight import load_streams, streams_read, training_args
    from unlearnkit.preflight_evaluation import check_during, suite_of
    from unlearnkit.preflight_training import refuse_unfit

    suite_of(recipe)
    check_during(recipe)
    args = training_args(recipe, tempfile.gettempdir(), on_cpu=on_cpu)
    refuse_unfit(recipe, args, load_streams(recipe, streams_read(recipe, args), args=args))


def passed_on(overrides: Sequence[str]) -> list[str]:
    """Where the data lie holds for every recipe of a benchmark; other settings are one recipe's own."""
    return [o for o in overrides if is_place(o)]


def run_one(recipe: Recipe, run: RunDir, stages: Sequence[str] = ALL, *, progress: bool = True) -> Path:
    """The stages of one recipe in one folder."""
    quiet()
    from unlearnkit.pipeline import Pipeline
    from unlearnkit.preflight_evaluation import check_evaluation

    pipeline = Pipeline(recipe, run, say, progress)
    if "evaluate" in stages:
        check_evaluation(recipe)
    # Of several processes the first one holds the folder for all.
    with run.in_use() if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        pipeline.train()
        if "evaluate" in stages and (found := pipeline.evaluate()):
            labels = {role: str(e.summary["label"]) for role, e in found.items()}
            print_metrics({role: e.metrics for role, e in found.items()}, labels)
            if "unlearned" in found:
                print_alphas(found["unlearned"])
            print_attacks({labels[role]: e for role, e in found.items()})
        if "report" in stages and recipe.evaluation.suite is not None:
            _say_verdict(recipe, pipeline.report())
    if "report" not in stages or recipe.evaluation.suite is None:
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


@dataclass(frozen=True)
class EvalRequest:
    """What `unlearnkit eval` was asked for; texts as they stand on the command line.

    `data` are key=value pairs; `attacks` are names, or YAML such as "relearn: {steps: [5, 10]}"; `template`
    is YAML, by default that of the model's run. `alphas` are numbers with commas between them.
    """

    model: str
    suite: str = "tofu"
    split: str | None = None
    reference: str | None = None
    target: str | None = None
    role: str = "unlearned"
    data: Sequence[str] = ()
    attacks: Sequence[str] = ()
    alphas: str = ""
    tasks: Sequence[str] = ()
    task_path: str | None = None
    limit: int | None = None
    output: Path | None = None
    batch_tokens: int = 16384
    template: str | None = None


def evaluate_model(request: EvalRequest) -> None:
    """Evaluate any model, under attacks too, and print its metrics."""
    quiet()
    from unlearnkit.evaluation.runner import evaluate
    from unlearnkit.preflight_evaluation import evaluation_or_model
    from unlearnkit.run import resolve_path

    overrides = _data_overrides(request)
    attacks, alphas = _attacks(request.attacks), _alphas(request.alphas)
    path = evaluation_or_model(str(resolve_path(request.model)))
    reference, target = (
        None if one is None else evaluation_or_model(str(resolve_path(one)))
        for one in (request.reference, request.target)
    )
    label, spec = _label(request.model), _template(path, request.template)
    start_processes()
    place = str(Path(path).resolve()) if Path(path).exists() else path
    asked = fingerprint((place, request.suite, overrides, vars(spec)))[:6]
    folders: list[Path] = []

    def folder(found: Any) -> Path:
        parts = (label, Path(request.suite).stem, found.summary["split"], asked)
        own = Path("evaluations") / "-".join(filter(None, parts))
        folders.append(_kept(request.output, own, found.summary["fingerprint"]))
        return folders[0]

    found = evaluate(
        path, suite=request.suite, data=overrides, reference=reference, target=target, attacks=attacks,
        alphas=alphas, role=request.role, batch_tokens=request.batch_tokens, label=label, template=spec,
        output=folder,
    )  # fmt: skip
    print_metrics({label: found.metrics})
    print_alphas(found)
    print_attacks({label: found})
    say(f"Records: {folders[0]}")


def start_processes() -> None:
    """Meet the other processes of an `accelerate launch`, so that they share the questions."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState()


def _data_overrides(request: EvalRequest) -> dict[str, Any]:
    """`--data`, `--split` and the options for tasks as overrides of the suite.

    Raises:
        UserError: something that is no key=value.
    """
    from unlearnkit.yamlfile import parse_yaml

    overrides: dict[str, Any] = {}
    for item in request.data:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(
                f"--data {item!r} is not key=value; write --data root=FOLDER or --data forget=FILE"
            )
        overrides[key] = parse_yaml(value, f"--data {key}", numbered=False).values[""]
    if request.split is not None:
        overrides["split"] = request.split
    tasks = {"tasks": list(request.tasks), "include_path": request.task_path, "limit": request.limit}
    if given := {key: value for key, value in tasks.items() if value}:
        overrides["lm_eval"] = given
    return overrides


def _attacks(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Attacks with their options, from names or YAML.

    Raises:
        UserError: something that is neither.
    """
    from unlearnkit.yamlfile import parse_yaml

    attacks: dict[str, dict[str, Any]] = {}
    for text in texts:
        value = parse_yaml(text, "--attack", numbered=False).values[""]
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or not all(isinstance(v, dict | None) for v in value.values()):
            raise UserError(
                f"--attack {text!r} is neither a name nor a name with options; write --attack relearn or "
                "--attack 'relearn: {steps: [5, 10]}'"
            )
        for name, options in value.items():
            if name in attacks:
                raise UserError(
                    f"--attack {name} is given twice, and only one would be kept; evaluate twice, each time "
                    "with an --output of its own"
                )
            attacks[str(name)] = dict(options or {})
    return attacks


def _alphas(text: str) -> list[float]:
    """`--alphas 0.25,0.5` as numbers, each checked.

    Raises:
        UserError: something that is no list of numbers above 0.
    """
    from unlearnkit.evaluation.serving import check_alphas

    try:
        alphas = [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UserError(f"--alphas {text!r} is no list of numbers; write --alphas 0.25,0.5,1.0") from error
    return check_alphas(alphas, "--alphas")


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
            f"{output} holds another evaluation (of another model, suite, data or template); choose another "
            "--output, or remove it (the answers are kept: nothing is computed again)"
        )
    return own.with_name(f"{own.name}-{fingerprint(found)[:6]}")


def _label(model: str) -> str:
    """What a model is called: its folder's name, or its run's where the folder is a run's `model`."""
    path = Path(model.removeprefix("run:").rstrip("/"))
    path = path.resolve() if path.name in ("", ".", "..") else path
    return path.parent.name if path.name == "model" and path.parent.name else path.name
