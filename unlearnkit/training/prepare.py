"""What is checked and made before a trainer exists: settings, streams, the adapter."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from unlearnkit.data.columns import canonical
from unlearnkit.data.mixing import StreamMix
from unlearnkit.data.overlap import refuse_contradictions
from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.models.load import load_tokenizer, quiet_peft
from unlearnkit.recipe import MixSpec
from unlearnkit.training import packing
from unlearnkit.training.hidden import truncated_copy

if TYPE_CHECKING:
    from datasets import Dataset

    from unlearnkit.training.config import UnlearnConfig

logger = logging.getLogger(__name__)

_STRATEGIES = ("random", "sequential", "group_by_length")


def refuse_settings(args: UnlearnConfig) -> None:
    """Raises RecipeError or ModelError: a setting that cannot work here."""
    if args.remove_unused_columns:
        raise RecipeError("training.remove_unused_columns must stay false: batches are nested by stream")
    if args.train_sampling_strategy not in _STRATEGIES:
        raise RecipeError(
            f"training.train_sampling_strategy is {args.train_sampling_strategy!r}; use one of "
            f"{', '.join(_STRATEGIES)}"
        )
    if args.matrix_optimizer not in (None, "muon"):
        raise RecipeError(f"training.matrix_optimizer is {args.matrix_optimizer!r}; use muon or leave it out")
    if args.packing not in packing.SETTINGS:
        raise RecipeError(f"training.packing is {args.packing!r}; use one of {', '.join(packing.SETTINGS)}")
    if args.n_gpu > 1:
        raise ModelError(
            f"one process sees {args.n_gpu} GPUs, but each needs a process of its own; start with "
            "--launch ddp (accelerate launch), or set CUDA_VISIBLE_DEVICES to one GPU"
        )


def chosen_streams(
    sets: Mapping[str, Dataset | None], streams: tuple[str, ...], args: UnlearnConfig
) -> dict[str, Dataset]:
    """The streams that an objective reads, in canonical columns.

    Raises:
        DataError: a stream that is missing, or rows that would be forgotten and kept at once.
    """
    given = {name: data for name, data in sets.items() if data is not None}
    missing = [s for s in streams if s not in given]
    if missing:
        way_out = ", or set training.retain: none" if missing[0] == "retain" else ""
        raise DataError(
            f"this objective reads the stream {missing[0]!r}, but there is none; give data.{missing[0]} in a "
            f"recipe ({missing[0]}_dataset in code){way_out}"
        )
    for unused in given.keys() - set(streams):
        logger.warning("the stream %r is not read by this objective and is left out", unused)
    chosen = {s: canonical(given[s], where=f"the {s} set", on_disk=args.documents_on_disk) for s in streams}
    if not args.allow_overlap:
        refuse_contradictions(chosen, args.forgotten_streams, args.wrong_answer_streams)
    return chosen


def planned_epochs(args: UnlearnConfig, streams: Mapping[str, Sized], mix: MixSpec | None) -> int:
    """Passes over the anchor that a training makes, rounded up."""
    if args.max_steps <= 0:
        return max(1, math.ceil(args.num_train_epochs))
    items = len(StreamMix({name: range(len(rows)) for name, rows in streams.items()}, mix, seed=args.seed))
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(1, math.ceil(int(args.max_steps * per_step) / items))


def with_adapter(model: Any, peft_config: Any, args: UnlearnConfig) -> Any:
    """The model to train: `model` itself, or with a new adapter on it.

    Raises:
        ModelError: the adapter does not fit, `model` is an adapter itself, or nothing would be trained.
    """
    if peft_config is not None:
        model = _add_adapter(model, peft_config, args.seed)
    if hasattr(model, "peft_config"):
        connect_checkpoints(model, args)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "no parameter of the model is trainable; train the weights, or set model.lora (peft_config) for "
            "a new adapter"
        )
    return model


def connect_checkpoints(model: Any, args: UnlearnConfig) -> None:
    """For a model with frozen embeddings: their outputs get a gradient, if there is activation checkpointing.

    A checkpoint whose inputs have none cuts off what is trained in it.
    """
    if getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing:
        model.enable_input_require_grads()


def _add_adapter(model: Any, peft_config: Any, seed: int) -> Any:
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ModelError(
            "the target model is an adapter itself, so a new one would be saved without it; merge it first "
            "(model.merge_and_unload() and save_pretrained) and name the merged folder"
        )
    # The adapter's initial values are part of the run, so they come from its seed.
    set_seed(seed)
    try:
        with quiet_peft():
            return get_peft_model(model, peft_config)
    except ValueError as error:
        raise ModelError(
            f"the adapter does not fit the model ({error}); check model.lora.target_modules"
        ) from error


def frozen_copy(model: Any, accelerator: Any, *, layers: int | None = None) -> Any:
    """A copy of `model` that is never trained, wrapped as the accelerator wants it.

    Args:
        layers: copy only that many layers, without the LM head; enough for hidden states.
    """
    return as_frozen(copy.deepcopy(model) if layers is None else truncated_copy(model, layers), accelerator)


def same_memory(model: Any) -> Any:
    """A second model whose parameters are the very objects of the first."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def as_frozen(frozen: Any, accelerator: Any) -> Any:
    """A model that is never trained, wrapped as the accelerator wants it."""
    frozen.eval().requires_grad_(False)
    if accelerator.distributed_type == "DEEPSPEED":
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(frozen, accelerator)
    if accelerator.distributed_type == "FSDP":
        from trl.models.utils import prepare_fsdp

        return prepare_fsdp(frozen, accelerator)
    return accelerator.prepare_model(frozen, evaluation_mode=True)


def load_tokenizer_of(model: Any) -> Any:
    """The tokenizer that was saved with a model, or at the path of one.

    Raises:
        ModelError: the model was never saved, or without a tokenizer.
    """
    path = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if not path:
        raise ModelError(
            "this model was not loaded from a folder that holds its tokenizer; give processing_class"
        )
    return load_tokenizer(path)


def pad_id(tokenizer: Any) -> int:
    """Any id will do, because masks come from lengths."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
