"""Loading a model and its tokenizer with errors for people, and naming a model by its weights."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unlearnkit.errors import ModelError

#: `model_type` of networks that are served as one (see `models/combined`).
COMBINED = "unlearnkit_combined"


def _explain(what: str, path: str, error: Exception) -> ModelError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").exists() and not is_adapter(path):
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        return ModelError(
            f"{path} holds no {what} (no config.json; it holds {held}); name the folder of a saved model"
        )
    if folder.is_dir():
        return ModelError(
            f"the {what} in {path} cannot be loaded ({first}); the folder may be half-written: "
            "save or download it again"
        )
    if path.startswith((".", "/", "~")):
        return ModelError(f"{path} does not exist; check the path to the {what}")
    return ModelError(
        f"{path!r} is neither a folder nor a hub id of a {what} that can be reached ({first}); check the "
        "name, or give the folder of a saved model"
    )


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """The tokenizer saved at `path` (folder or hub id).

    Raises:
        ModelError: nothing there that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        if is_combined(path):
            know_combined()
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:
        raise _explain("tokenizer", path, error) from error


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides warnings that are not the user's to mend.

    peft 0.21 calls transformers 5.23 by an old name, and says that it saw how GPT-2 lays out its weights.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        yield


def to_device(model: Any) -> Any:
    """Move a model to this process's accelerator, where there is one; quantised models are there already."""
    import torch

    if not torch.accelerator.is_available() or getattr(model, "quantization_method", None) is not None:
        return model
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return model.to(torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0"))))


def keep_packed_weights(model: Any) -> Any:
    """Keep bitsandbytes 0.50 from rearranging 4-bit weights in place, as it does on some CPUs.

    After the first forward pass the weights would then be stored otherwise than they are read (`state_dict`
    and gradients come out wrong), and numbers would depend on the machine.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model


def is_adapter(path: str) -> bool:
    """Whether `path` is a folder with a PEFT adapter."""
    return (Path(path) / "adapter_config.json").exists()


def is_combined(path: str) -> bool:
    """Whether `path` is the folder of several networks that are served as one."""
    config = Path(path) / "config.json"
    return config.exists() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == COMBINED


def know_combined() -> None:
    """Let transformers' Auto classes open combined models with our code, not with that in their folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from unlearnkit.models.combined.configuration_combined import CombinedConfig
    from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM

    AutoConfig.register(COMBINED, CombinedConfig, exist_ok=True)
    AutoModelForCausalLM.register(CombinedConfig, CombinedForCausalLM, exist_ok=True)


def refuse_assistant(path: str) -> None:
    """Raise for an adapter that is one part of a pair: on the whole target model it would mean nothing.

    Raises:
        ModelError: names the folder of the pair.
    """
    if is_combined(str(Path(path).resolve().parent)):
        raise ModelError(
            f"{path} is only a part of the combined model around it; name {Path(path).resolve().parent}"
        )


def load_model(
    path: str, *, dtype: str = "auto", attn_implementation: str | None = None, revision: str | None = None
) -> Any:
    """A causal language model, or an adapter on its base model, in eval mode.

    Args:
        path: a folder or hub id; a folder with `adapter_config.json` is put on the base model that it names.
        dtype: "auto" keeps the saved one.
        revision: of the base model where `path` is an adapter, which by default names one itself.

    Raises:
        ModelError: nothing there that can be loaded, or a half-written folder.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        if is_combined(path):
            from unlearnkit.models.combined.folders import FolderError
            from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM

            try:
                with quiet_peft():
                    made = CombinedForCausalLM.from_pretrained(path, revision=revision, **options)
            except FolderError as error:
                raise ModelError(f"{path}: {error}") from error
            return keep_packed_weights(made.eval())
        if is_adapter(path):
            refuse_assistant(path)
            from peft import PeftModel

            adapter = json.loads((Path(path) / "adapter_config.json").read_text())
            base, of_base = adapter["base_model_name_or_path"], revision or adapter.get("revision")
            target = load_model(base, revision=of_base, **options)
            with quiet_peft():
                return PeftModel.from_pretrained(target, path).eval()
        model, info = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except Exception as error:
        raise _explain("model", path, error) from error
    # transformers fills in random values and only writes a note.
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights in {path} lack {len(missing)} tensor(s) of the model (such as {missing[0]}); the "
            "folder may be half-written: save or download it again"
        )
    from unlearnkit.models.combined.folders import weights_digest

    model.loaded_digest = weights_digest(model)  # tells later whether it is still what lies there
    return keep_packed_weights(model.eval())


#: Entries of a model's config that change no logit.
_IRRELEVANT = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "output_attentions",
    "output_hidden_states", "return_dict", "attention_dropout", "_attn_implementation", "sources", "auto_map",
}  # fmt: skip


def model_fingerprint(model: Any) -> str:
    """16 hexadecimal digits of everything that decides a model's logits.

    Names, shapes, dtypes and every byte of the weights (quantised ones included), the config's entries that
    matter, and the settings of an adapter. Where weights are split over processes, all of these must ask.
    """
    import torch
    import xxhash

    digest = xxhash.xxh3_64()
    own = getattr(model, "config", None)
    config = own.to_dict() if own is not None and hasattr(own, "to_dict") else {}
    settings: dict[str, Any] = {k: v for k, v in config.items() if k not in _IRRELEVANT}
    if networks := getattr(model, "networks", None):  # served as one, and which is the first matters
        settings["networks"] = list(networks)
    for role, network in (networks or {}).items():
        settings[f"network {role}"] = {
            k: v for k, v in network.config.to_dict().items() if k not in _IRRELEVANT
        }
    for name, adapter in getattr(model, "peft_config", {}).items():
        shown = ("r", "lora_alpha", "use_rslora", "use_dora", "peft_type")
        settings[f"adapter {name}"] = {k: str(getattr(adapter, k, None)) for k in shown}
    for name, module in model.named_modules():
        # What peft really multiplies by (alpha, patterns, later changes), and whether it does so at all.
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            active = [str(adapter) for adapter in getattr(module, "active_adapters", ())]
            settings[f"scaling {name}"] = [scaling, active, bool(getattr(module, "disable_adapters", False))]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        with gathered([tensor]):
            whole = tensor.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole  # FSDP2
            digest.update(f"{name}|{tuple(whole.shape)}|{whole.dtype}".encode())
            # In pieces, so that a large matrix on a GPU is never copied whole.
            for piece in whole.contiguous().reshape(-1).split(1 << 26):
                if piece.numel():
                    digest.update(piece.cpu().view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def is_named_by_weights(model: Any) -> bool:
    """Whether `model_fingerprint` names all that decides the model's answers.

    It does not where hooks may change them, or where the code is neither transformers' nor peft's: what such
    a model says is not kept on disk.
    """
    from peft import PeftModel
    from transformers import PreTrainedModel

    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return isinstance(model, PreTrainedModel | PeftModel) and not hooked


@contextlib.contextmanager
def gathered(parameters: Iterable[Any]) -> Iterator[None]:
    """Whole parameters where DeepSpeed ZeRO-3 has split them over the processes, all of which must ask."""
    split = [p for p in parameters if hasattr(p, "ds_id")]
    if not split:
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters(split):
        yield


def saved_fingerprint(path: str) -> str:
    """`model_fingerprint` of the weights in a folder, loaded whole on the CPU, also while ZeRO-3 is on."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else transformers would split what it loads over the processes
    return model_fingerprint(load_model(path))
