"""The run directory: where things lie, what decided them, and whether they can be used again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unlearnkit import shipped
from unlearnkit.errors import ModelError, RecipeError, UserError
from unlearnkit.files import fingerprint, read_json, write_atomic, write_json
from unlearnkit.recipe import CHOOSING, Recipe, load_recipe
from unlearnkit.yamlfile import parse_yaml

_FORMAT = 1


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Versions, seeds, fingerprints, costs."""
        return self.root / "manifest.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def log(self) -> Path:
        """One JSON object a logged step."""
        return self.root / "log.jsonl"

    @property
    def alternates(self) -> Path:
        """Alternate answers that the target model wrote."""
        return self.root / "alternates.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted training goes on from."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """Adapter or full weights, tokenizer, model card."""
        return self.root / "model"

    def evaluation(self, suite: str, role: str = "unlearned") -> Path:
        """Records and summary of one evaluation; the unlearned model's folder has the suite's bare name."""
        return self.root / "eval" / (suite if role == "unlearned" else f"{suite}@{role}")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder while a command works in it; the system lets go when the process dies.

        Raises:
            UserError: another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # not on this system
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"{self.root} is in use by process {file.read().strip() or '?'}; wait until it has "
                    "ended, or choose another folder with --name"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None before the first stage is done."""
        return dict(read_json(self.manifest)) if self.manifest.exists() else None

    def update_manifest(self, **entries: Any) -> dict[str, Any]:
        """Merge entries into the manifest; mappings are merged one level deep."""
        manifest = self.read_manifest() or {"format": _FORMAT}
        for key, value in entries.items():
            old = manifest.get(key)
            manifest[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        write_json(self.manifest, manifest)
        return manifest


def runs_folder() -> Path:
    """Where runs are put: $UNLEARNKIT_RUNS, else ./runs."""
    return Path(os.environ.get("UNLEARNKIT_RUNS") or "runs")


def run_dir(recipe: Recipe, overrides: tuple[str, ...] = (), name: str | None = None) -> RunDir:
    """The folder of a recipe's run: named after the recipe, with a short hash where overrides change it.

    What is measured changes nothing that was trained, so such overrides do not count, unless a rule over the
    measurements decides which weights are kept.
    """
    chosen = rf"(?!\.({'|'.join(CHOOSING)})\b)" if recipe.evaluation.chooses else ""
    overrides = tuple(o for o in overrides if not re.match(rf"(evaluation{chosen}|serving|needs)[.=]", o))
    if name is None and recipe.output is not None:
        return RunDir(Path(recipe.output))
    slug = (name or recipe.name).replace("/", "-")
    if name is None and overrides:
        slug += f"-{fingerprint(sorted(map(_spelt, overrides)))[:6]}"
    return RunDir(runs_folder() / slug)


def _spelt(override: str) -> str:
    """An override whose value is written in one way only: 1e-3 and 0.001 are one setting."""
    key, _, text = override.partition("=")
    value = parse_yaml(text, f"override {override!r}", numbered=False).values.get("")
    return f"{key.strip()}={json.dumps(value, sort_keys=True, default=str)}"


def own_settings(name: str | Path, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that make a run another one than the recipe's own; they name its folder.

    What the recipe says already (`seed=0` where the seed is 0) is left out, and so is where the data lie.
    """
    kept, whole = list(overrides), load_recipe(name, overrides, check_training=False)
    for override in overrides:
        fewer = list(kept)
        fewer.remove(override)
        with contextlib.suppress(RecipeError):
            if load_recipe(name, fewer, check_training=False) == whole:
                kept = fewer
    return tuple(o for o in kept if not is_place(o))


def is_place(override: str) -> bool:
    """Whether an override says where the data of a whole benchmark lie."""
    return override.startswith("data.root=")


def resolve_path(path: str | None) -> str | None:
    """`run:tofu_tiny/target` -> the model folder of that run; other paths stay.

    Raises:
        ModelError: that run has not been made.
    """
    if path is None or not path.startswith("run:"):
        return path
    name = path.removeprefix("run:")
    found = RunDir(runs_folder() / name.replace("/", "-"))
    if not (found.model / "config.json").exists() and not (found.model / "adapter_config.json").exists():
        raise ModelError(
            f"{path}: there is no model in {found.model}; make it first with `unlearnkit run {name}`"
        )
    return str(found.model)


def claim(run: RunDir, recipe: Recipe, inputs: dict[str, Any]) -> dict[str, Any]:
    """Start or continue a run in its folder; returns the manifest.

    `recipe.yaml` follows the recipe where only its evaluation changed.

    Args:
        inputs: names of the data and of the target model, by content.

    Raises:
        UserError: the folder holds a run of another recipe, of other data or of another target model.
    """
    identity = {"recipe": recipe.training_fingerprint, **inputs}
    manifest = run.read_manifest()
    if manifest is None and run.model.exists():
        raise UserError(
            f"{run.root} holds a model but no manifest.json that says what made it; "
            "choose another folder with --name, or remove it"
        )
    if manifest is not None:
        old = manifest.get("identity", {})
        changed = sorted(k for k in {*identity, *old} if identity.get(k) != old.get(k))
        if not changed:
            if not run.recipe.exists() or run.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
                if manifest.get("status") == "complete":  # until what is measured now has been measured
                    manifest = run.update_manifest(status="trained")
                write_atomic(run.recipe, recipe.to_yaml())
            return manifest
        if run.model.exists() or any(run.checkpoints.glob("checkpoint-*")):
            settings = changed_settings(run.recipe, recipe) or "the recipe or its settings"
            what = ", ".join({"recipe": settings}.get(k, k) for k in changed)
            raise UserError(
                f"{run.root} holds a run that was made with something else ({what} changed since); "
                "choose another folder with --name, or remove it"
            )
        run.manifest.unlink()  # nothing was trained under it, and none of its entries hold for this run
    write_atomic(run.recipe, recipe.to_yaml())
    return run.update_manifest(
        name=recipe.name, recipe=shown_source(recipe.source), method=recipe.method, identity=identity,
        seed=recipe.seed, status="started", started=time.strftime("%Y-%m-%dT%H:%M:%S%z"), git=git_state(),
    )  # fmt: skip


def changed_settings(path: Path, recipe: Recipe) -> str:
    """Where a run's recipe.yaml and a recipe differ, evaluation apart, as in "seed, training.beta"."""
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return ""
    before, after = _flat(old), _flat(yaml.safe_load(recipe.to_yaml()))
    ignored = ("evaluation", "serving", "name", "output", "needs")
    keys = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    return ", ".join(k for k in keys if k.split(".")[0] not in ignored)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def shown_source(source: Path | None) -> str | None:
    """A shipped recipe by its name, so that no report names a folder on somebody's disk; else its path."""
    if source is None:
        return None
    name = shipped.name_of("recipes", source)
    return name if name in shipped.available("recipes") else str(source)


def model_identity(path: str | None) -> str | None:
    """Names a model folder by names, sizes and times of its files, without reading them; else the path."""
    if path is None or not Path(path).is_dir():
        return path
    files = sorted(p for p in Path(path).iterdir() if p.suffix in (".safetensors", ".json", ".bin"))
    return fingerprint([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def git_state() -> dict[str, Any] | None:
    """Commit of the working folder, and whether it has changes; None outside a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}


def peak_memory_bytes() -> int:
    """The most memory that was in use: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str:
    """The accelerator's name, or the number of CPU threads."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"CPU, {torch.get_num_threads()} thread(s)"
