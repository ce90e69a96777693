"""The command line: thin commands over the library; everything heavy is imported inside them.

Exit codes: 0 done, 1 a fault of ours, 2 a mistake of the user's (one sentence, no traceback), 130
interrupted. `--debug` anywhere on the line shows the traceback.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from unlearnkit import __version__
from unlearnkit.annotating import annotate
from unlearnkit.augmenting import augment
from unlearnkit.errors import DataError, UserError
from unlearnkit.exporting import export as export_run
from unlearnkit.options import (
    Forget,
    Launch,
    Method,
    Model,
    Name,
    Overrides,
    Processes,
    RecipeName,
    Reference,
    Retain,
)

app = typer.Typer(
    name="unlearnkit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Make a language model forget what it must not know, keep the rest, and prove both.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Work with data sets.")
app.add_typer(data_app, name="data")
data_app.command("annotate")(annotate)
data_app.command("augment")(augment)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere on the line.")
    ] = False,
) -> None:
    """`main` takes --debug off the line before typer sees it; it stands here for `--help`."""


def _overrides(
    recipe: str, settings: list[str] | None, model: str | None, forget: str | None, retain: str | None,
    method: str | None, reference: str | None,
) -> list[str]:  # fmt: skip
    """Short options as the overrides that they stand for, then the settings, which may say more about them.

    A deletion request without anything to keep switches the retain term off.
    """
    import json

    short = {
        "model.path": model, "data.forget": forget, "data.retain": retain, "method": method,
        "evaluation.reference": reference,
    }  # fmt: skip
    out = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    out += settings or []
    if forget is not None and not any(o.startswith(("data.retain", "training.retain=")) for o in out):
        from unlearnkit import shipped
        from unlearnkit.yamlfile import read_document

        data = read_document(shipped.find("recipes", recipe)).values.get("data")
        if not isinstance(data, dict) or data.get("retain") is None:
            out.append("training.retain=none")
    return out


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
) -> None:
    """Make a small model that knows fictitious authors, let it forget some, and report. Minutes on a CPU."""
    os.environ["UNLEARNKIT_RUNS"] = str(out)
    from unlearnkit.quickstart import quickstart as start

    start()


@app.command()
def run(
    recipe: RecipeName,
    settings: Overrides = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    reference: Reference = None,
    name: Name = None,
    launch: Launch = None,
    processes: Processes = None,
) -> None:
    """Train, evaluate and report. The same command goes on where a killed run stopped."""
    overrides = _overrides(recipe, settings, model, forget, retain, method, reference)
    _relaunch(launch, processes, recipe, overrides)
    from unlearnkit.commands import run_recipe

    run_recipe(recipe, overrides, name)


@app.command()
def train(
    recipe: RecipeName,
    settings: Overrides = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    reference: Reference = None,
    name: Name = None,
    launch: Launch = None,
    processes: Processes = None,
) -> None:
    """Train only."""
    overrides = _overrides(recipe, settings, model, forget, retain, method, reference)
    _relaunch(launch, processes, recipe, overrides)
    from unlearnkit.commands import run_recipe

    run_recipe(recipe, overrides, name, stages=("train",))


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Any checkpoint: a folder, a run, an adapter or a hub id.")],
    suite: Annotated[
        str, typer.Option(help="A shipped suite (`unlearnkit ls suites`) or a YAML file.")
    ] = "tofu",
    split: Annotated[str | None, typer.Option(help="The suite's split, such as forget10.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The retain model, its run or its evaluation folder.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The model before unlearning, which judges how likely its answers are.")
    ] = None,
    role: Annotated[
        str, typer.Option(help="What the model is in a report: unlearned, target or retain.")
    ] = "unlearned",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Override the suite's data, such as root=FOLDER or forget=mine.jsonl."),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Attack first (`unlearnkit ls attacks`); options as 'relearn: {steps: [5, 10]}'."),
    ] = None,
    alphas: Annotated[
        str,
        typer.Option(help="Of a ULD run or another combined model: further alphas, such as 0.25,0.5,1.0."),
    ] = "",
    task: Annotated[
        list[str] | None, typer.Option(help="A task of lm-evaluation-harness, for the suite capability.")
    ] = None,
    task_path: Annotated[str | None, typer.Option(help="A folder with tasks of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first documents of each task.", min=1)] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for records and summary.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens in one forward pass.", min=1)] = 16384,
    template: Annotated[
        str | None,
        typer.Option(help="How prompts are written, such as '{kind: plain}' (default: as the run does)."),
    ] = None,
) -> None:
    """Evaluate a model with a suite and print its metrics."""
    from unlearnkit.commands import EvalRequest, evaluate_model

    if role not in ("unlearned", "target", "retain"):
        raise UserError(f"--role is {role!r}; it must be unlearned, target or retain")
    evaluate_model(
        EvalRequest(
            model, suite, split, reference, target, role, data or (), attack or (), alphas, task or (),
            task_path, limit, output, batch_tokens, template,
        )
    )  # fmt: skip


@app.command()
def compare(
    recipe: Annotated[
        str, typer.Argument(help="A benchmark (a folder of recipes, such as tofu_tiny), or one recipe.")
    ],
    settings: Overrides = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, such as npo,simnpo,rpo (default: the recipe's own, or all).")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0",
    grid: Annotated[
        list[str] | None,
        typer.Option(help="A setting and its values, such as training.learning_rate=1e-3,2e-3; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time.", min=1)] = 1,
    name: Annotated[str | None, typer.Option(help="The folder is runs/compare-NAME.")] = None,
    launch: Launch = None,
    processes: Processes = None,
) -> None:
    """Run methods, seeds and settings as a grid and write one report. The same command goes on."""
    from unlearnkit.grid import read_request, run_comparison

    request = read_request(recipe, methods, seeds, grid or (), settings or (), name)
    run_comparison(request, jobs=jobs, launch=launch, processes=processes)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run or evaluation folders; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    target: Annotated[
        Path | None, typer.Option(help="Evaluation of the model before unlearning, beside an evaluation.")
    ] = None,
    retain: Annotated[
        Path | None, typer.Option(help="Evaluation of the retain model, beside an evaluation.")
    ] = None,
) -> None:
    """Write report.html, report.md and summary.json from records alone: no model, no GPU."""
    from unlearnkit.reporting import write_report

    written = write_report([str(r) for r in runs], out, target=target, retain=retain)
    typer.echo(f"Wrote {written.html}, {written.markdown} and {written.summary}")


app.command("export")(export_run)


@app.command()
def ls(
    what: Annotated[
        str | None,
        typer.Argument(help="recipes, suites, attacks, methods or launch (default: all)."),
    ] = None,
) -> None:
    """List what is shipped, a line each."""
    from unlearnkit.listing import listing

    listing(what)


@app.command()
def cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe, suite or launch file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
) -> None:
    """Copy a shipped file, to be edited and run by its path."""
    from unlearnkit.listing import copy

    copy(name, target, force=force)


@app.command()
def check(
    recipe: RecipeName,
    settings: Overrides = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    method: Method = None,
    reference: Reference = None,
) -> None:
    """Validate a recipe and its data without loading a model, and say what would be trained."""
    from unlearnkit.check import check_recipe

    check_recipe(recipe, _overrides(recipe, settings, model, forget, retain, method, reference))


@data_app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="The built-in benchmark: fictional.")],
    folder: Annotated[Path, typer.Argument(help="Folder for one JSON-lines file per split.")],
) -> None:
    """Write a built-in benchmark out as JSON lines."""
    if name != "fictional":
        raise DataError(f"there is no built-in benchmark {name!r}; use fictional")
    from unlearnkit.data.fictional import export as write

    paths = write(folder)
    typer.echo(f"Wrote {len(paths)} files to {folder}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _relaunch(launch: str | None, processes: int | None, recipe: str, overrides: list[str]) -> None:
    """Start this very command again under accelerate, once."""
    if launch is None or os.environ.get("UNLEARNKIT_LAUNCHED"):
        return
    from unlearnkit.launcher import launch_command
    from unlearnkit.recipe import load_recipe

    command = launch_command(launch, processes, sys.argv[1:])
    load_recipe(recipe, overrides)  # a mistake in it is said once, here, and not by every process
    os.environ["UNLEARNKIT_LAUNCHED"] = "1"
    os.execvp(command[0], command)


def _fail(message: str, code: int) -> NoReturn:
    # Every process of a distributed run meets the same mistake; one of them says so.
    if os.environ.get("RANK", "0") == "0":
        for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
            bar.close()  # the message gets a line of its own
        typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def main() -> None:
    """The entry point: runs a command and turns errors into one sentence and an exit code."""
    if "--debug" in sys.argv:
        os.environ["UNLEARNKIT_DEBUG"] = "1"  # also for the processes that --launch starts
    debug = bool(os.environ.get("UNLEARNKIT_DEBUG"))
    sys.argv = [a for a in sys.argv if a != "--debug"]
    # No library that we use phones home on our account.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Says at every import that a faster kernel is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130  # which is also what newer versions of typer return at Ctrl-C
    except Exception as error:  # noqa: BLE001  # the last resort, which says what happened
        _other_error(error, debug)
    if code == 130:
        _fail("interrupted; the same command goes on where it stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _other_error(error: Exception, debug: bool) -> NoReturn:
    show = getattr(error, "show", None)
    if callable(show):  # a mistake on the command line
        show()
        sys.exit(getattr(error, "exit_code", 2))
    if debug:
        raise error
    from unlearnkit.files import no_space
    from unlearnkit.run import runs_folder

    if no_space(error, runs_folder()):
        _fail(
            "the disk is full; free some space and run the same command again: it goes on where it stopped", 2
        )
    report = "a fault of ours: please report it with the output of --debug"
    _fail(f"{type(error).__name__}: {error} ({report})", 1)
