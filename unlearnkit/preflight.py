"""What can be known to fail before a model is loaded; `check` prints it, `run` stops at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit import lookup
from unlearnkit.data.parts import streams_of
from unlearnkit.errors import DataError, ModelError, RecipeError, UnreachableError, UserError
from unlearnkit.models.load import is_adapter, is_combined
from unlearnkit.preflight_evaluation import Note as Note
from unlearnkit.preflight_evaluation import suite_of
from unlearnkit.recipe import AnnotateSpec, MixSpec, Recipe
from unlearnkit.run import resolve_path, shown_source
from unlearnkit.serving import refuse_serving
from unlearnkit.strict import did_you_mean


def training_args(recipe: Recipe, output_dir: str, *, on_cpu: bool = False) -> Any:
    """The method's config.

    Args:
        output_dir: where checkpoints go.
        on_cpu: leave out what only a GPU can do, so that a recipe is checked on any machine.

    Raises:
        RecipeError: a value that the config refuses.
    """
    data = recipe.data
    settings = {
        "max_length": data.max_length, "truncate": data.truncate, "allow_overlap": data.allow_overlap,
        **recipe.training,
    }  # fmt: skip
    if (documents := data.documents) is not None:
        settings |= {"pack_documents": documents.pack, "documents_on_disk": documents.on_disk}
    if on_cpu:
        settings = {k: v for k, v in settings.items() if k not in ("tf32", "fp16")} | {"use_cpu": True}
    source = shown_source(recipe.source)
    try:
        args = lookup.method(recipe.method).config(
            output_dir=output_dir, seed=recipe.seed, disable_tqdm=True, **settings
        )
        _try_optimizer(args, on_cpu=on_cpu)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "; pip install 'unlearnkit[quantization]'" if "bitsandbytes" in first else ""
        raise RecipeError(f"{source}: training cannot be set up: {first}{fix}") from error
    if args.eval_strategy != "no":
        raise RecipeError(
            f"{source}: training.eval_strategy is {args.eval_strategy.value!r}, but a recipe has no data "
            "to evaluate on while training; leave it out: `evaluation` measures the model at the end"
        )
    return args


def _try_optimizer(args: Any, *, on_cpu: bool) -> None:
    """Make the optimizer and the schedule of one parameter: else a mistake is met after the first work.

    Raises:
        ImportError, TypeError, ValueError: a package or an option of one of them is missing.
    """
    import torch
    from transformers import Trainer, get_scheduler

    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer: Any = torch.optim.SGD(parameters)
    # Some optimizers are made from the whole model, and some want a GPU.
    whole = args.optim_target_modules is not None or "lomo" in args.optim
    if not on_cpu and not whole and args.matrix_optimizer is None:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind(parameters, **options)
    get_scheduler(
        args.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=10,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )  # fmt: skip


def refuse_missing_model(path: str | None) -> None:
    """A path that can only be a local one must exist.

    Raises:
        ModelError: it does not.
    """
    if path is not None and path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
        raise ModelError(f"the model {path} does not exist; check the path")
    if path is not None and is_combined(path):
        raise ModelError(
            f"{path} is a combined model (a pair of ULD's, say), which is not trained as one; name its "
            "target model, or make one model of it first: unlearnkit export RUN --distill"
        )
    if path is not None and is_combined(str(Path(path).parent)) and is_adapter(path):
        raise ModelError(f"{path} is only a part of the combined model around it; name its target model")


def note_retain_term(recipe: Recipe, args: Any, note: Note) -> None:
    """Say so when nothing holds the rest of the model in place, or when a retain set is left out."""
    from unlearnkit.training.selective import SelectiveConfig

    if args.retain != "none" or recipe.method == "sft" or isinstance(args, SelectiveConfig):
        return
    given, read = recipe.data.streams, streams_read(recipe, args)
    left_out = [name for name in args.retain_streams if name in given and name not in read]
    if "forget" in given:
        what = "the retain set is not read" if left_out else "no retain set was given"
        note(f"{what} and training.retain is none: nothing holds the rest of the model in place")
    elif left_out:
        note(
            f"the retain set is not read (data.{left_out[0]}), because training.retain is none; set "
            "training.retain: nll to train on it, or leave it out"
        )


def bare_trainer(recipe: Recipe, args: Any) -> Any:
    """A method's trainer before it has a model: only its composition, which reads nothing but `args`."""
    trainer = object.__new__(lookup.method(recipe.method).trainer)
    trainer.args = args
    return trainer


def objective_of(recipe: Recipe, args: Any) -> Any:
    """What the method minimises, without a model.

    Raises:
        RecipeError: a stream that it reads is missing, or one is given that nothing reads, or a setting that
            cannot work with the alternate answers or the layers that there are.
    """
    trainer = bare_trainer(recipe, args)
    objective = trainer.build_objective()
    _refuse_other_streams(recipe, args, streams_of(objective.streams))
    if (spec := recipe.data.alternates) is not None:
        if "forget.alternate" not in objective.streams:
            raise RecipeError(
                f"{shown_source(recipe.source)}: data.alternates asks for alternate answers, which the "
                f"method {recipe.method} does not read; leave it out, or set training.preference: alternates"
            )
        from unlearnkit.data.alternates import refuse_settings

        refuse_settings(spec.temperature, spec.top_p, spec.prompt)
    refuse_serving(recipe)
    # A method that speaks of layers by their number says which of them there must be.
    if callable(choose := getattr(trainer, "choose_layers", None)) and (count := _num_layers(recipe)):
        choose(count)
    _refuse_small(recipe, args)
    return objective


def _num_layers(recipe: Recipe) -> int | None:
    """The decoder layers of a model that is made, or lies in a folder; None where that is not known yet."""
    if recipe.model.create is not None:
        return recipe.model.create.num_layers
    return getattr(model_config(recipe), "num_hidden_layers", None)


def model_config(recipe: Recipe) -> Any:
    """What is known of the model that is made, or lies in a folder; None where that is not known yet."""
    return recipe.model.create if recipe.model.create is not None else config_at(recipe.model.path)


def config_at(path: str | None) -> Any:
    """What is known of the model in a folder; None where that is not known yet."""
    from transformers import AutoConfig

    try:
        folder = Path(resolve_path(path) or "").expanduser()
        if not (folder / "config.json").is_file():
            return None
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (UserError, ValueError, OSError):
        return None  # the model of a run that is still to be made, or one that loading will refuse


def _refuse_small(recipe: Recipe, args: Any) -> None:
    """A small model whose logits are added to the target model's must have the same tokens.

    Raises:
        ModelError: it does not exist, or has another number of them.
    """
    small = getattr(args, "small", None)
    refuse_missing_model(small)
    if small is None or recipe.model.create is not None:
        return
    sizes = [getattr(config_at(path), "vocab_size", None) for path in (recipe.model.path, small)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ModelError(
            f"{shown_source(recipe.source)}: training.small has {sizes[1]} tokens and the target model "
            f"{sizes[0]}; take models of one family, with one tokenizer"
        )


def streams_read(recipe: Recipe, args: Any) -> tuple[str, ...]:
    """The streams that the method reads.

    Raises:
        RecipeError: as `objective_of`.
    """
    return streams_of(objective_of(recipe, args).streams)


def _refuse_other_streams(recipe: Recipe, args: Any, read: tuple[str, ...]) -> None:
    """A misspelt stream would otherwise be left out in silence."""
    from unlearnkit.training.selective import SelectiveConfig

    given, suite, source = recipe.data.streams, suite_of(recipe), shown_source(recipe.source)
    asked = suite.data if suite is not None else {}
    useful = {*read, *(name for name, sources in asked.items() if sources == given.get(name))}
    if recipe.model.create is not None:
        useful |= set(recipe.model.create.tokenizer_streams or ())
    if isinstance(args, SelectiveConfig):
        off: set[str] = set()  # there is no retain term
    elif args.retain == "none" or args.retain_weight == 0:
        off = {"retain", *args.retain_streams}
    elif not set(args.retain_streams) & set(read):
        off = set(args.retain_streams)  # switched off by a weight of the method's own
    else:
        off = set()
    useful |= off  # it can be switched on again
    for name in given:
        if name not in useful:
            raise RecipeError(
                f"{source}: the stream data.{name} is not read by the method {recipe.method}"
                f"{_preference_hint(args, name) or _augmentation_hint(args) or did_you_mean(name, read)}"
            )
    for name in read:
        if name not in given:
            way_out = ", or set training.retain: none" if name in args.retain_streams else ""
            raise RecipeError(
                f"{source}: the method {recipe.method} reads the stream {name!r}; give data.{name}{way_out}"
            )


def _preference_hint(args: Any, stream: str) -> str:
    """What somebody has to say who wants a forget set to go by a preference."""
    if stream != "forget" or getattr(args, "preference", None) != "pairs":
        return ""
    return (
        " while training.preference is 'pairs'; to make the model forget it, set training.preference: "
        "refusals (or alternates)"
    )


def _augmentation_hint(args: Any) -> str:
    """Where a stream is named that ULD's assistant is to learn from."""
    if not hasattr(args, "remember_streams"):
        return ""
    return "; name it in training.remember_streams, retain_streams or perturbed_streams"


def mix_of(recipe: Recipe, read: tuple[str, ...]) -> MixSpec:
    """The recipe's mix, without the shares of streams that the objective does not read.

    Raises:
        RecipeError: weights that leave out a stream which it reads.
    """
    mix = recipe.data.mix
    ratios = {name: ratio for name, ratio in mix.ratios.items() if name in read}
    weights = mix.weights and {name: weight for name, weight in mix.weights.items() if name in read}
    if weights is not None and (never := [name for name in read if weights.get(name, 0) == 0]):
        raise RecipeError(
            f"{shown_source(recipe.source)}: data.mix.weights gives the stream {never[0]!r} no share, so it "
            "would never be read; give it a weight above 0, or do not train on it"
        )
    return dataclasses.replace(mix, ratios=ratios, weights=weights)


def load_streams(
    recipe: Recipe, read: tuple[str, ...], note: Note | None = None, *, args: Any = None
) -> dict[str, Any]:
    """The recipe's streams as canonical data sets; `args` says which of them may ask the same.

    Raises:
        DataError: a missing file, an empty set, a wrong column, a row without an answer, sets that overlap,
            alternate answers that are both given and asked for, or risky stretches of two classes that
            overlap.
        RecipeError, ModelError: an annotator that cannot work.
    """
    from unlearnkit.data.overlap import refuse_contradictions
    from unlearnkit.data.streams import load_stream

    data, streams = recipe.data, {}
    on_disk = data.documents is not None and data.documents.on_disk
    for name, specs in data.streams.items():
        try:
            streams[name] = load_stream(specs, root=data.root, name=name, on_disk=on_disk)
        except UnreachableError as error:
            if note is None:
                raise
            note(str(error))
    if data.annotate is not None:
        if on_disk:
            raise RecipeError(
                "data.annotate keeps spans in memory, but data.documents.on_disk is true; write them to a "
                "file with `unlearnkit data annotate` and name that file, or leave out on_disk"
            )
        streams = _annotated(data.annotate, streams, read, data.root)
        if note is not None and not _may_read_spans(recipe):
            note(f"the method {recipe.method} reads no spans: what data.annotate finds changes no loss")
    if data.alternates is not None and "forget" in streams:
        from unlearnkit.data.alternates import refuse_given

        refuse_given(streams["forget"])
    if not data.allow_overlap:
        settings = () if args is None else (args.forgotten_streams, args.wrong_answer_streams)
        refuse_contradictions({name: streams[name] for name in read if name in streams}, *settings)
    return streams


def _annotated(
    specs: Sequence[AnnotateSpec], streams: Mapping[str, Any], read: tuple[str, ...], root: str | None
) -> dict[str, Any]:
    """The streams with their risky stretches; preference pairs have none unless an entry names them."""
    from unlearnkit.data.annotators import annotate, can_annotate
    from unlearnkit.recipe_annotate import annotators_for

    out = dict(streams)
    for name, table in streams.items():
        is_read = name in read and can_annotate(table)
        if chosen := annotators_for(specs, name, is_read=is_read, root=root):
            out[name] = annotate(table, chosen, where=f"data.{name}")
    return out


def _may_read_spans(recipe: Recipe) -> bool:
    """Whether the method, or one that goes with it, chooses tokens by the text."""
    names = [recipe.method, *(recipe.training.get("also") or {})]
    kinds = [getattr(lookup.method(name).config, "selector_type", None) for name in names]
    return any(getattr(kind, "reads_text", False) for kind in kinds)


def tokenizer_texts(recipe: Recipe, streams: Mapping[str, Any]) -> Iterator[str]:
    """All text that a tokenizer made from scratch learns from, one after the other.

    Raises:
        DataError: one of its streams could not be loaded.
    """
    create = recipe.model.create
    chosen = (create.tokenizer_streams if create is not None else None) or list(streams)
    if missing := [name for name in chosen if name not in streams]:
        raise DataError(f"the tokenizer learns from data.{missing[0]}, which could not be loaded")
    return (text for name in chosen for row in streams[name] for text in _texts_of(row))


def _texts_of(row: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    for key in ("prompt", "completion", "text", "messages", "chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, str):
            out.append(value)
        elif value:
            out += [str(m["content"]) for m in value]
    return out
