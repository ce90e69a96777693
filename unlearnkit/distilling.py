"""`unlearnkit export RUN --distill`: one adapter of the target model in place of a pair.

The pair answers the prompts of the forget and retain sets once, an adapter is trained to match its
distribution on these and on the true answers (see `training/distill.py`), and it is evaluated as the run was.
All of it is an ordinary run in a folder of its own; after a kill the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit.distilling_answers import (
    MOST_ROWS,
    SETS,
    answers_file,
    evenly,
    load_rows,
    open_as_distilled,
    write_answers,
)
from unlearnkit.errors import DataError, UserError
from unlearnkit.files import fingerprint, read_json, write_json
from unlearnkit.recipe import Recipe, load_recipe
from unlearnkit.run import RunDir
from unlearnkit.terminal import quiet, say

#: The module that trains it, as a recipe names it.
METHOD = "unlearnkit.training.distill"
#: Says in the new run's folder which pair it is distilled from, and how many answers there are.
_ANSWERS = "answers.json"
#: Settings of the run that say how much fits and in which precision; what shaped its assistant stays behind.
_CARRIED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16", "tf32", "packing",
    "train_sampling_strategy", "pad_to_multiple_of", "activation_checkpointing",
    "dataloader_num_workers", "use_cpu",
)  # fmt: skip
#: Parts of an evaluation that only the pair's own run has.
_NOT_EVALUATED: dict[str, Any] = {"alphas": [], "every": None, "keep": None, "stop": None}


def distill(
    run: RunDir, out: Path | None, served: Mapping[str, float], settings: Sequence[str] = (),
    answers: int = MOST_ROWS,
) -> Path:  # fmt: skip
    """Distil a run's pair; returns the folder of the new run.

    Args:
        run: of ULD or a relative, trained.
        out: the new run's folder; by default the run's own name with "-distilled", and a short hash where the
            settings are not the usual ones.
        served: `alpha` and `top_logit_filter` where the pair is not served with its own.
        settings: overrides of the recipe that is made.
        answers: prompts of each set that the pair answers itself, at most.

    Raises:
        UserError: before a model is loaded where that is possible.
    """
    from unlearnkit.commands import run_one
    from unlearnkit.preflight import training_args
    from unlearnkit.preflight_evaluation import check_evaluation
    from unlearnkit.reporting import write_report
    from unlearnkit.serving import refuse_serving

    quiet()
    made = RunDir(out or default_folder(run, served, settings))
    recipe = distilled_recipe(run, made, served, settings)
    pair = _identity(run.model, served, answers)
    _refuse_other(made, pair)
    training_args(recipe, str(made.checkpoints))  # its settings, before the pair speaks
    refuse_serving(recipe)
    check_evaluation(recipe)
    with made.in_use():
        recipe = _with_answers(recipe, made, pair, answers)
    run_one(recipe, made, ("train",))
    _record(recipe, made, run)
    run_one(recipe, made)
    if recipe.evaluation.suite is not None and (run.root / "eval").is_dir():
        compared = write_report([run.root, made.root], made.root / "comparison")
        say(f"The pair and the adapter side by side: {compared.html}")
        if served:
            say(
                "There the pair is served as in its own run; to compare like with like, run that again with "
                "serving.alpha and serving.top_logit_filter (nothing is trained)"
            )
    return made.root


# ---- The recipe --------------------------------------------------------------------------------------------


def distilled_recipe(
    run: RunDir, made: RunDir, served: Mapping[str, float] | None = None, settings: Sequence[str] = ()
) -> Recipe:
    """The run's recipe with another method: its target, data and evaluation.

    Raises:
        UserError: the run has no recipe, its recipe has none of the sets, or a setting cannot be used.
    """
    if not run.recipe.is_file():
        raise UserError(
            f"{run.root} has no recipe.yaml, which names the data to distil on; give the folder of a whole "
            "run"
        )
    before = load_recipe(run.recipe, ["needs=[]"], check_training=False)
    given = {one.partition("=")[0].removeprefix("data.") for one in settings}
    sets = [name for name in SETS if name in before.data.streams or name in given]
    if not sets:
        raise DataError(
            f"{run.recipe} has neither data.forget nor data.retain, on whose prompts a pair is distilled; "
            "name one with --set data.retain=FILE"
        )
    answered = {name: f"{name}_answered" for name in sets}
    further = _further(before)
    training: dict[str, Any] = {key: value for key, value in before.training.items() if key in _CARRIED}
    training |= {"pair": str(run.model.resolve()), **(served or {})}
    for name in SETS:
        own = [name, answered[name]] if name in sets else []
        training[f"{name}_streams"] = [*own, *further[name]]
    read = [stream for name in SETS for stream in training[f"{name}_streams"]]
    first = sets[0]
    changes: dict[str, Any] = {
        "name": f"{before.name}-distilled", "method": METHOD, "output": None, "needs": [], "serving": None,
        "model.lora": {"r": 32, "alpha": 64}, "training": training, "data.alternates": None,
        "data.truncate": True,
        **{f"data.{name}": None for name in before.data.streams if name not in read},
        **{f"data.{answered[name]}": {"path": str(answers_file(made.root, name))} for name in sets},
        "data.mix": {"anchor": first, **{f"{name}_per_{first}": 1 for name in read if name != first}},
        **{f"evaluation.{key}": nothing for key, nothing in _NOT_EVALUATED.items()},
    }  # fmt: skip
    if before.method != "uld" and (path := _first_network(run.model)) is not None:
        changes["model.path"] = path  # which the run itself may not have trained on
    written = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_recipe(run.recipe, [*written, *settings])


def _further(before: Recipe) -> dict[str, list[str]]:
    """Set -> the other streams that the run read for it: ULD's paraphrases and wrong answers, say.

    What the pair says of these is as much a part of it as what it says of the sets themselves.
    """
    settings, streams = before.training, before.data.streams
    named = {
        "forget": [*settings.get("remember_streams", ()), *settings.get("perturbed_streams", ())],
        "retain": settings.get("retain_streams", ()),
    }
    return {key: [s for s in names if s in streams and s not in SETS] for key, names in named.items()}


def _first_network(model: Path) -> str | None:
    """Where a pair's unchanged network lies, if not in the pair's own folder."""
    from unlearnkit.models.combined.configuration_combined import SIGNS

    config = read_json(model / "config.json")
    path = config["sources"][next(iter(SIGNS[config["kind"]]))].get("path")
    return None if path is None else str(path)


def default_folder(run: RunDir, served: Mapping[str, float], settings: Sequence[str]) -> Path:
    """Beside the run, so that `run:NAME-distilled` is a model like any other."""
    root = run.root if run.root.name not in ("", "..") else run.root.resolve()
    changed = [*map(str, served.items()), *(one for one in settings if not one.startswith("evaluation."))]
    return root.with_name(f"{root.name}-distilled{f'-{fingerprint(sorted(changed))[:6]}' if changed else ''}")


def _identity(model: Path, served: Mapping[str, float], answers: int) -> str:
    """Names a pair by its files and by how it is served, without loading it, and how much it is asked."""
    config = read_json(model / "config.json")
    weights = sorted(model.rglob("*.safetensors"))
    return fingerprint(
        config["weights"], config.get("top_logit_filter"), dict(served), answers,
        [(str(p.relative_to(model)), p.stat().st_size, p.stat().st_mtime_ns) for p in weights],
    )  # fmt: skip


def _refuse_other(made: RunDir, pair: str) -> None:
    """Raise where the folder holds something else than an earlier attempt of this very distillation.

    Raises:
        UserError: says what it holds.
    """
    root, known = made.root, made.root / _ANSWERS
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; name a folder for the distilled run")
    if not known.is_file():
        # What an attempt leaves that was killed before the pair had answered everything.
        begun = (".lock", *(answers_file(made.root, name).name for name in SETS))
        if root.is_dir() and (others := sorted(p.name for p in root.iterdir() if p.name not in begun)):
            raise UserError(
                f"{root} is not empty and holds no distilled run (but {', '.join(others[:4])}); name another "
                "folder, or remove it"
            )
    elif read_json(known).get("pair") != pair:
        raise UserError(
            f"{root} was distilled from another pair (or this one trained again, served otherwise or "
            "asked more); name another folder, or remove it"
        )


def _with_answers(recipe: Recipe, made: RunDir, pair: str, most: int) -> Recipe:
    """The recipe once the pair's answers lie in the new run's folder, without streams that have none."""
    known = made.root / _ANSWERS
    if not known.is_file():
        write_json(known, {"pair": pair, "rows": write_answers(recipe, made.root, most)})
    rows = read_json(known)["rows"]
    gone = [f"{name}_answered" for name in SETS if not rows.get(name)]
    data, training = recipe.data, dict(recipe.training)
    for name in SETS:
        training[f"{name}_streams"] = [s for s in training[f"{name}_streams"] if s not in gone]
    ratios = {name: ratio for name, ratio in data.mix.ratios.items() if name not in gone}
    streams = {name: source for name, source in data.streams.items() if name not in gone}
    data = dataclasses.replace(data, streams=streams, mix=dataclasses.replace(data.mix, ratios=ratios))
    return dataclasses.replace(recipe, training=training, data=data)


# ---- How close it came -------------------------------------------------------------------------------------


def _record(recipe: Recipe, made: RunDir, run: RunDir) -> None:
    """Write into the manifest what was distilled, and how close the saved adapter is to it on each stream."""
    if (made.read_manifest() or {}).get("distilled_from"):
        return
    from peft import PeftModel

    from unlearnkit.data.formats import Template, tokenize_stream
    from unlearnkit.evaluation.serving import serving
    from unlearnkit.models.load import quiet_peft
    from unlearnkit.training.distill import closeness, target_of
    from unlearnkit.training.prepare import pad_id

    pair, tokenizer = open_as_distilled(recipe)
    with quiet_peft():
        model = PeftModel.from_pretrained(target_of(pair), str(made.model)).eval()
    template = Template.for_tokenizer(tokenizer, recipe.data.template)
    found: dict[str, dict[str, float]] = {}
    for name in (stream for key in SETS for stream in recipe.training[f"{key}_streams"]):
        tokens = tokenize_stream(
            load_rows(recipe.data, name), tokenizer, template, name=name, max_length=recipe.data.max_length,
            truncate=recipe.data.truncate,
        )  # fmt: skip
        one = found[name] = closeness(
            model,
            pair,
            evenly(tokens.rows),
            pad_id=pad_id(tokenizer),
            filtered=recipe.training.get("filtered", "neutral"),
        )
        say(
            f"{recipe.name}: {name}: KL from the pair {one['kl']:.4f} nats a token (the target's "
            f"{one['kl_before']:.4f}), the same likeliest token at {one['same']:.1%} of them (the target "
            f"{one['same_before']:.1%})"
        )
    made.update_manifest(
        distilled_from={"run": str(run.root), "name": run.root.name, "serving": serving(pair), "kl": found}
    )
