"""`unlearnkit export`: a trained model as one folder to hand on.

A pair becomes a folder that opens where UnlearnKit is not installed, or its light form with another alpha; an
adapter is copied or merged into its base model; whole weights are copied. A folder is written under a
temporary name and then gets its own, and one that holds anything else is never touched.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unlearnkit.errors import UserError
from unlearnkit.files import atomic_folder, fingerprint, read_json, write_json
from unlearnkit.run import RunDir, runs_folder
from unlearnkit.strict import did_you_mean

Kind = Literal["pair", "adapter", "weights"]
#: In an exported folder: what made it, so that the same command finds its work done.
_MADE = "export.json"
_DTYPES = ("float32", "bfloat16", "float16")
#: What an exported folder's card shows for opening it.
_OPENING = {
    "whole": "transformers.AutoModelForCausalLM.from_pretrained({path!r}, trust_remote_code=True)",
    "light": "unlearnkit.models.load.load_model({path!r})",
    "adapter": "peft.AutoPeftModelForCausalLM.from_pretrained({path!r})",
    "weights": "transformers.AutoModelForCausalLM.from_pretrained({path!r})",
}


def export(
    run: Annotated[str, typer.Argument(help="A run's name, its folder, or a model folder.")],
    out: Annotated[Path | None, typer.Argument(help="The folder to write (default: exports/NAME).")] = None,
    alpha: Annotated[float | None, typer.Option(help="Serve a pair with this alpha.")] = None,
    top_logit_filter: Annotated[
        float | None, typer.Option("--filter", help="Serve a pair with this rate of its filter; 0 for none.")
    ] = None,
    light: Annotated[
        bool, typer.Option("--light", help="A pair's small form, which refers to the target model.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base model's weights.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="Write weights as float32, bfloat16 or float16.")] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Train one adapter of the target to answer as the pair does.")
    ] = False,
    answers: Annotated[
        int | None,
        typer.Option(help="With --distill: prompts of each set that the pair answers (default 1000).", min=0),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --distill: a setting, such as training.learning_rate=5e-4."),
    ] = None,
) -> None:
    """Write a trained model as one folder: a pair, an adapter (--merge), weights; or --distill a pair."""
    source = find(run)
    given = {"alpha": alpha, "top_logit_filter": top_logit_filter}
    served = {name: value for name, value in given.items() if value is not None}
    request = Request(source, served, light=light, merge=merge, dtype=dtype)
    if not distill:
        if settings or answers is not None:
            said = "--set" if settings else "--answers"
            raise UserError(f"{said} changes how a pair is distilled; add --distill, or leave it out")
        write(request, out or Path("exports") / request.name)
        return
    if light or merge or dtype is not None:
        raise UserError("--distill trains an adapter; leave out --light, --merge and --dtype")
    if source.kind != "pair" or source.run is None:
        raise UserError(
            f"{source.model} is not the model of a run of ULD or a relative, so there is no pair to distil; "
            "name such a run"
        )
    from unlearnkit.distilling import distill as start
    from unlearnkit.distilling_answers import MOST_ROWS

    start(source.run, out, served, settings or (), MOST_ROWS if answers is None else answers)


# ---- What is exported --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A model folder, the run that made it, and what it holds."""

    model: Path
    run: RunDir | None
    kind: Kind

    @property
    def name(self) -> str:
        """What it is called: its run, else its folder."""
        return (self.model if self.run is None else self.run.root).resolve().name


def find(text: str) -> Source:
    """The model that is meant by a run's name, a run's folder or a model folder.

    Raises:
        UserError: there is none, or its training has not come to its end.
    """
    path = Path(text).expanduser()
    named = text.removeprefix("run:").replace("/", "-")
    if text.startswith("run:") or not path.exists():
        path = runs_folder() / named
    if not path.is_dir():
        known = sorted(p.name for p in runs_folder().glob("*") if (p / "manifest.json").is_file())
        raise UserError(
            f"there is no run {text!r} in {runs_folder()}, and no folder of that name"
            f"{did_you_mean(named, known) or '; make it with `unlearnkit run`, or name a model folder'}"
        )
    if (kind := _kind(path)) is not None:
        inside = path.resolve().name == "model" and (path.resolve().parent / "manifest.json").is_file()
        return Source(path, RunDir(path.resolve().parent) if inside else None, kind)
    run = RunDir(path)
    kind = _kind(run.model) if run.model.is_dir() else None
    if kind is None:
        status = (run.read_manifest() or {}).get("status")
        if status is None:
            raise UserError(f"{path} holds no model and is no run; name a run, its folder or a model folder")
        raise UserError(
            f"the training in {path} has not come to its end (it is {status}); give its `unlearnkit run` "
            "command again, which goes on where it stopped"
        )
    return Source(run.model, run, kind)


def _kind(folder: Path) -> Kind | None:
    from unlearnkit.models import load

    if load.is_combined(str(folder)):
        return "pair"
    if load.is_adapter(str(folder)):
        load.refuse_assistant(str(folder))
        return "adapter"
    return "weights" if (folder / "config.json").is_file() else None


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Args:
        served: `alpha` and `top_logit_filter` where a pair is not served with its own.

    Raises:
        UserError: options that do not go together, or not with this model.
    """

    source: Source
    served: dict[str, float]
    light: bool = False
    merge: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        kind, what = self.source.kind, self.source.model
        alpha, rate = self.served.get("alpha"), self.served.get("top_logit_filter")
        if kind != "pair" and (self.served or self.light):
            raise UserError(f"{what} is one model and no pair; leave out --alpha, --filter and --light")
        if alpha is not None and not 0 < alpha < float("inf"):
            raise UserError(
                f"--alpha is {alpha:g}; give a number above 0 (alpha 0 is the target model itself)"
            )
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"--filter is {rate:g}; give a number between 0 (no filter) and 1, such as 0.01")
        if self.merge and kind != "adapter":
            raise UserError(
                f"{what} is no adapter, so there is nothing to merge; leave out --merge"
                + (" (--distill makes one model of a pair)" if kind == "pair" else "")
            )
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UserError(f"--dtype is {self.dtype!r}; use one of {', '.join(_DTYPES)}")
        if self.dtype is not None and (self.light or (kind == "adapter" and not self.merge)):
            raise UserError("--dtype changes whole weights, and here an adapter is copied; leave it out")
        if self.light and _holds_target(what):
            raise UserError(
                f"{what} holds its target model itself, so there is no light form; leave out --light"
            )

    @property
    def form(self) -> str:
        """The form of what is written: whole, light, adapter or weights."""
        if self.source.kind == "pair":
            return "light" if self.light else "whole"
        return "adapter" if self.source.kind == "adapter" and not self.merge else "weights"

    @property
    def name(self) -> str:
        """The folder's name, where none is given."""
        said = [f"{key.removeprefix('top_logit_')}{value:g}" for key, value in self.served.items()]
        words = [*said, *(["light"] * self.light), *(["merged"] * self.merge), *filter(None, [self.dtype])]
        return "-".join([self.source.name, *words])

    @property
    def key(self) -> str:
        """Names the files that are read, and what is done with them."""
        files = sorted(p for p in self.source.model.rglob("*") if p.is_file())
        seen = [
            (str(p.relative_to(self.source.model)), p.stat().st_size, p.stat().st_mtime_ns) for p in files
        ]
        return fingerprint(seen, self.served, self.form, self.dtype)


def _holds_target(model: Path) -> bool:
    sources = read_json(model / "config.json").get("sources", {})
    return any("folder" in source for source in sources.values())


# ---- Writing -----------------------------------------------------------------------------------------------


def write(request: Request, out: Path) -> Path:
    """Write the folder, or find it written already, and say what it is.

    Raises:
        UserError: `out` holds something else.
    """
    if out.is_dir() and (out / _MADE).is_file() and read_json(out / _MADE).get("key") == request.key:
        typer.echo(f"{out} holds this very export already ({_size(out)})")
    else:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} exists and is not empty; name another folder, or remove it")
        with atomic_folder(out) as folder:
            _fill(folder, request)
            _readable(folder)
            write_json(
                folder / _MADE,
                {"format": 1, "key": request.key, "from": str(request.source.model), "form": request.form},
            )
        typer.echo(f"Wrote {out} ({_size(out)})")
    typer.echo(f"Open it with: {opening(request.form, out)}")
    return out


def _readable(folder: Path) -> None:
    """Files as anybody's new files are: safetensors writes for its owner's eyes alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


def opening(form: str, path: Path) -> str:
    """The Python line that opens an exported folder."""
    return _OPENING[form].format(path=str(path))


def _size(folder: Path) -> str:
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _fill(folder: Path, request: Request) -> None:
    source = request.source
    if request.form == "light" or (source.kind != "pair" and request.dtype is None and not request.merge):
        shutil.copytree(source.model, folder, dirs_exist_ok=True)
        if request.served:
            _serve(folder / "config.json", request.served)
    else:
        _write_loaded(folder, request)
    if source.kind == "pair":
        from unlearnkit.models.pair_card import write_pair_card

        config, line = read_json(folder / "config.json"), opening(request.form, Path("FOLDER"))
        write_pair_card(folder, source.name, config, line)


def _serve(config: Path, served: dict[str, float]) -> None:
    """Another alpha or filter in the configuration of a saved pair."""
    from unlearnkit.models.combined.configuration_combined import weights_for

    values: dict[str, Any] = read_json(config)
    if (alpha := served.get("alpha")) is not None:
        values["weights"] = weights_for(values["kind"], alpha)
    if (rate := served.get("top_logit_filter")) is not None:
        values["top_logit_filter"] = rate or None
    write_json(config, values)


def _write_loaded(folder: Path, request: Request) -> None:
    """What must be loaded to be written: a pair's whole form, merged weights, another precision."""
    from unlearnkit.models.load import load_model, load_tokenizer
    from unlearnkit.terminal import quiet

    quiet()
    source, path = request.source, str(request.source.model)
    model = load_model(path, dtype=request.dtype or "auto")
    if request.merge:
        model = model.merge_and_unload(safe_merge=True)
    model.save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)
    if request.served:
        _serve(folder / "config.json", request.served)
    if (source.model / "README.md").is_file():
        shutil.copy(source.model / "README.md", folder)
