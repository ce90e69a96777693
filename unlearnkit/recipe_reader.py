"""The checks behind `load_recipe`: from the values of a YAML file to a `Recipe`, with every mistake noted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit import lookup, shipped
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import DataSpec, MixSpec, ModelSpec, Recipe, StreamSpec
from unlearnkit.recipe_annotate import annotate_section
from unlearnkit.recipe_evaluation import evaluation_section, serving_section, suites_named
from unlearnkit.strict import Reader, did_you_mean, field_hints, nearest
from unlearnkit.yamlfile import Keys, read_document, show

_DATA_SETTINGS = [one.name for one in dataclasses.fields(DataSpec) if one.name != "streams"]
_ROWS = re.compile(r"\s*-?\d*\s*:\s*-?\d*\s*(:\s*(-?[1-9]\d*)?\s*)?$")
_LORA_SHORT = {"alpha": "lora_alpha", "dropout": "lora_dropout"}

# Names that people know from earlier versions of transformers or from other tools.
_FORMER = {
    "warmup_ratio": "write warmup_steps: 0.1 (a number below 1 is a share of all steps)",
    "evaluation_strategy": "write eval_strategy",
    "tokenizer": "write it in the model section, as model.tokenizer",
    "no_cuda": "write use_cpu: true",
    "overwrite_output_dir": "leave it out; a run goes on where it stopped",
    "logging_dir": "leave it out; the log is log.jsonl in the run's folder",
    "save_safetensors": "leave it out; weights are always saved as safetensors",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "adafactor": "write optim: adafactor",
    "per_gpu_train_batch_size": "write per_device_train_batch_size",
    "per_gpu_eval_batch_size": "write per_device_eval_batch_size",
    "push_to_hub_token": "write hub_token",
    "rpo_alpha": "write method: rpo with eta and sft_reduction: token_mean",
    "loss_type": "the method decides the loss: dpo is TRL's sigmoid, rpo its [sigmoid, sft]",
    "max_prompt_length": "write data.max_length, the length of prompt and answer together",
    "batch_size": "write per_device_train_batch_size",
    "epochs": "write num_train_epochs",
    "lr": "write learning_rate",
}
# Settings of transformers that a recipe writes once, elsewhere.
_ELSEWHERE = {
    "output_dir": "write output: FOLDER at the top of the recipe",
    "seed": "write seed: at the top of the recipe",
    "max_length": "write max_length in the section data",
    "truncate": "write truncate in the section data",
    "allow_overlap": "write allow_overlap in the section data",
    "pack_documents": "write documents: {pack: true} in the section data",
    "documents_on_disk": "write documents: {on_disk: true} in the section data",
}


@dataclasses.dataclass(frozen=True)
class _Head:
    """The top-level keys that are not sections."""

    method: str
    name: str | None = None
    needs: list[str] = dataclasses.field(default_factory=list)
    output: str | None = None
    seed: int = dataclasses.field(default=0, metadata={"least": 0})


def read_recipe(name_or_path: str | Path, overrides: Sequence[str], *, check_training: bool) -> Recipe:
    """See `load_recipe`."""
    path = shipped.find("recipes", name_or_path)
    document = read_document(path)
    for override in overrides:
        document.override(override)
    reader = Reader(document)
    values = document.values
    sections = ("model", "data", "training", "serving", "evaluation")
    head_values = {key: value for key, value in values.items() if key not in sections}
    head = reader.section(_Head, head_values, (), also=sections)
    model = _model(reader, values.get("model"))
    data = _data(reader, values.get("data"))
    training = values.get("training")
    if training is not None and not isinstance(training, dict):
        reader.problem(("training",), f"training must be a section of keys, found {show(training)}")
        training = None
    # Without a forget set there is nothing to say about forgetting, so nothing is measured unasked.
    unasked: dict[str, Any] | None = {} if data is None or "forget" in data.streams else None
    evaluation = evaluation_section(reader, values.get("evaluation", unasked))
    serving = serving_section(reader, values.get("serving"))
    if model and data and model.create:
        _create_streams(reader, model.create.tokenizer_streams, data)
    _names(reader, values)
    lora = _lora(reader, model, check=check_training)
    if isinstance(values.get("method"), str):
        _method(reader, values["method"], training or {}, check=check_training)
    document.raise_problems()
    assert head is not None
    assert model is not None
    assert data is not None
    assert evaluation is not None
    return Recipe(
        method=head.method,
        model=dataclasses.replace(model, lora=lora),
        data=data,
        name=head.name or shipped.name_of("recipes", path),
        training=dict(training or {}),
        evaluation=evaluation,
        serving=serving,
        needs=head.needs,
        output=head.output,
        seed=head.seed,
        source=path,
    )


def _model(reader: Reader, value: Any) -> ModelSpec | None:
    keys: Keys = ("model",)
    if value is None:
        reader.problem(keys, "model is missing; write model: {path: FOLDER OR HUB ID}")
        return None
    model = reader.section(ModelSpec, {"path": value} if isinstance(value, str) else value, keys)
    if isinstance(value, Mapping) and (value.get("path") is None) == (value.get("create") is None):
        found = (
            "has neither path nor create; give one"
            if value.get("path") is None
            else "has both path and create; keep one"
        )
        reader.problem(keys, f"model {found} (model.path=FOLDER OR HUB ID, or run:NAME)")
    if model and model.create and model.create.hidden_size % model.create.num_heads:
        size, heads = model.create.hidden_size, model.create.num_heads
        reader.problem(
            (*keys, "create", "num_heads"),
            f"model.create.hidden_size {size} is not a multiple of num_heads {heads}",
        )
    return model


def _lora(reader: Reader, model: ModelSpec | None, *, check: bool) -> dict[str, Any] | None:
    """`model.lora` with peft's own names; checked against peft when `check`."""
    if model is None or model.lora is None:
        return None
    result: dict[str, Any] = {}
    for key, value in model.lora.items():
        full = _LORA_SHORT.get(key, key)
        if full in result:
            reader.problem(
                ("model", "lora", key), f"model.lora has both {key} and another name for it; keep one"
            )
        result[full] = value
    if check:
        from peft import LoraConfig

        hints = field_hints(LoraConfig)
        for key, value in model.lora.items():
            _keyword(
                reader,
                hints | {short: hints[full] for short, full in _LORA_SHORT.items()},
                key,
                value,
                ("model", "lora"),
            )
    return result


def _data(reader: Reader, value: Any) -> DataSpec | None:
    keys: Keys = ("data",)
    if not isinstance(value, dict):
        found = "is missing" if value is None else f"must be a section of keys, found {show(value)}"
        reader.problem(keys, f"data {found}; write data: {{forget: FILE OR HUB ID}}")
        return None
    settings = {key: value[key] for key in _DATA_SETTINGS if key in value and key not in ("mix", "annotate")}
    if settings.get("template", ...) is None:
        del settings["template"]
    spec = reader.section(DataSpec, settings, keys)
    streams: dict[str, list[StreamSpec]] = {}
    for name, sources in value.items():
        if name not in _DATA_SETTINGS and sources is not None:
            streams[name] = _stream(reader, sources, (*keys, name), value.get("root"))
    unset = [name for name, sources in value.items() if name not in _DATA_SETTINGS and sources is None]
    mix = _mix(reader, value.get("mix") or {}, list(streams), unset)
    annotate = annotate_section(reader, value.get("annotate"), (*streams, *unset))
    return dataclasses.replace(spec, streams=streams, mix=mix, annotate=annotate) if spec and mix else None


def _stream(reader: Reader, value: Any, keys: Keys, root: Any) -> list[StreamSpec]:
    """The sources of one stream: a path, a mapping, or a list of these."""
    close = nearest(keys[-1], _DATA_SETTINGS, cutoff=0.8)
    if close or not isinstance(value, str | dict | list):
        # Everything that is not a setting is a stream, so a misspelt setting ends up here.
        if close:
            reader.unknown(keys, _DATA_SETTINGS)
        else:
            what = "must be a path, a section of keys, or a list of these (a stream of examples)"
            reader.problem(keys, f"{'.'.join(keys)} {what}, found {show(value)}")
        return []
    if "." in keys[-1]:
        what = "is no name for a stream: a dot separates a stream from its parts"
        reader.problem(keys, f"{keys[-1]!r} in data {what}; write {keys[-1].replace('.', '_')!r}")
    if value == []:
        reader.problem(keys, f"{'.'.join(keys)} is an empty list; name a source or write null")
    specs = []
    for index, source in enumerate(value if isinstance(value, list) else [value]):
        at = (*keys, str(index)) if isinstance(value, list) else keys
        spec = reader.section(StreamSpec, {"path": source} if isinstance(source, str) else source, at)
        if spec is None:
            continue
        if spec.rows is not None and not _ROWS.match(spec.rows):
            reader.problem(
                (*at, "rows"),
                f"{'.'.join(at)}.rows must be a slice such as '0:100' or '::2', found {spec.rows!r}",
            )
        if spec.path is None and (root is None or spec.name is None):
            needed = "a path" if spec.name is not None else "a path, or a name with data.root"
            reader.problem(at, f"{'.'.join(at)} needs {needed}")
        specs.append(spec)
    return specs


def _mix(reader: Reader, value: Any, streams: list[str], unset: list[str]) -> MixSpec | None:
    """The mix; `unset` are streams written as null: ratios and weights of theirs are no error."""
    keys: Keys = ("data", "mix")
    if not isinstance(value, dict):
        reader.problem(keys, f"data.mix must be a section of keys, found {show(value)}")
        return None
    anchor = value.get("anchor", _default_anchor(streams, unset, value))
    if not streams:
        hint = f"; data.{unset[0]} is null: write data.{unset[0]}=FILE OR HUB ID" if unset else ""
        reader.problem(("data",), f"data has no stream of examples{hint}")
    elif isinstance(anchor, str) and anchor not in streams:
        if anchor in unset:
            reader.problem(("data", anchor), f"data.{anchor} is null; write data.{anchor}=FILE OR HUB ID")
        else:
            guess = did_you_mean(anchor, streams)
            reader.problem(
                (*keys, "anchor"), f"data.mix.anchor {anchor!r} is not a stream of this recipe{guess}"
            )
    names = [f"{one}_per_{anchor}" for one in (*streams, *unset) if one != anchor] if anchor else []
    ratios: dict[str, float] = {}
    rest = {key: item for key, item in value.items() if key not in names}
    for key in names:
        if key in value and (ratio := reader.check(value[key], float, (*keys, key), least=0)) is not None:
            ratios[key.removesuffix(f"_per_{anchor}")] = ratio
    if "ratios" in rest:
        reader.unknown((*keys, "ratios"), (), hint=f"; write {names[0] if names else 'retain_per_forget'}: 1")
        del rest["ratios"]
    for stream in rest["weights"] if isinstance(rest.get("weights"), dict) else ():
        if stream not in (*streams, *unset):
            reader.unknown((*keys, "weights", stream), streams)
    mix = reader.section(MixSpec, rest, keys, also=names)
    if mix is None:
        return None
    weights = mix.weights and {stream: weight for stream, weight in mix.weights.items() if stream in streams}
    ratios = {stream: ratio for stream, ratio in ratios.items() if stream in streams}
    return dataclasses.replace(mix, anchor=anchor, ratios=ratios, weights=weights)


def _default_anchor(streams: list[str], unset: list[str], mix: Mapping[str, Any]) -> str | None:
    """`forget`; without such a stream, the only one there is or `pairs`, or none: then weights or a
    temperature say how to mix, or the first stream that the method reads is the anchor."""
    if "forget" in streams:
        return "forget"
    if len(streams) == 1:
        return streams[0]
    if mix.get("weights") or mix.get("temperature") is not None:
        return None
    if "pairs" in streams:
        return "pairs"
    # What was to be `forget`, and is misspelt or null, is said.
    return "forget" if "forget" in unset or nearest("forget", streams) else None


def _create_streams(reader: Reader, names: list[str] | None, data: DataSpec) -> None:
    for index, name in enumerate(names or ()):
        if name not in data.streams:
            keys = ("model", "create", "tokenizer_streams", str(index))
            guess = did_you_mean(name, data.streams)
            reader.problem(
                keys, f"model.create.tokenizer_streams: {name!r} is not a stream of this recipe{guess}"
            )


def _names(reader: Reader, values: Mapping[str, Any]) -> None:
    """The recipes and the suite that this recipe names exist; its own name is usable as a folder."""
    needs, evaluation, name = values.get("needs"), values.get("evaluation"), values.get("name")
    wanted: list[tuple[str, Keys, Any]] = [
        ("recipes", ("needs", str(i)), one) for i, one in enumerate(needs if isinstance(needs, list) else ())
    ]
    wanted += [("eval/suites", keys, one) for keys, one in suites_named(evaluation)]
    for kind, keys, target in wanted:
        if isinstance(target, str):
            try:
                shipped.find(kind, target)
            except RecipeError as error:
                reader.problem(keys, str(error))
    if isinstance(name, str) and not re.fullmatch(r"(?!/)(?!(.*/)?\.\.?(/|$))[\w.@+=/ -]+(?<!/)", name):
        reader.problem(("name",), f"name must be usable as a folder, such as tofu/npo, found {name!r}")


def _method(reader: Reader, name: str, training: Mapping[str, Any], *, check: bool) -> None:
    try:
        lookup.check_name(name)
        hints = field_hints(lookup.method(name).config) if check else None
    except RecipeError as error:
        reader.problem(("method",), str(error))
        hints = None
    for key, value in training.items():
        if key in _ELSEWHERE:
            reader.problem(("training", key), f"training.{key} is set by the run; {_ELSEWHERE[key]}")
        elif hints is not None:
            _keyword(reader, hints, key, value, ("training",))


def _keyword(reader: Reader, hints: Mapping[str, Any], key: str, value: Any, section: Keys) -> None:
    """Check one keyword of a Config: its name, and its type where YAML can write that type."""
    if key in hints:
        reader.check(value, hints[key], (*section, key))
    else:
        former = f"; {_FORMER[key]}" if key in _FORMER and section == ("training",) else ""
        reader.unknown((*section, key), hints, hint=former)
