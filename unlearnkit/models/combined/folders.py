"""How a combined model lies on the disk.

Each role has a source in config.json, a base and a change:

    base    {"folder": "target"}                      an ordinary model folder, inside this one
            {"path": ID, "revision": R, "digest": D}  a model of its own, elsewhere; D names its weights
            {"of": "target", "layers": K}             the first K layers of another role, on its memory
    change  {"tensors": "assistant.safetensors"}      the tensors that differ from the base
            {"adapter": "assistant"}                  a PEFT adapter, inside this folder
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import cached_file

from .layers import first_layers, is_quantised, text_config

logger = logging.getLogger(__name__)

#: Numbers of each weight that name it.
_SAMPLED = 1024
#: Kind -> the class that opens it, where it has one of its own.
CLASSES = {"uld": "ULDForCausalLM"}
#: In the names of what an adapter adds.
_ADAPTERS = ("lora_", "modules_to_save.", "token_adapter.trainable_tokens")
#: How the hub is reached.
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
#: What belongs to loading a repository of one model, and not to its networks.
_NOT_FOR_NETWORKS = ("trust_remote_code", "adapter_kwargs", "_from_auto", "code_revision", "subfolder", *_HUB)


class FolderError(ValueError):
    """A folder that does not fit what it refers to, in a sentence that says how to mend it."""


def weights_digest(model: Any) -> str:
    """16 hexadecimal digits that name a model's weights by numbers drawn evenly from each of them.

    Numbers are rounded to bfloat16 first, so that the same weights read as float32 have the same name. Of a
    model with an adapter, the weights below the adapter are named. "" for weights in 4 or 8 bits, which can
    not be compared with others.
    """
    if is_quantised(model):
        return ""
    weights = _below_adapter(model)
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        # In whole numbers: float32 rounds the last place of 50 million beyond the end.
        count = min(_SAMPLED, len(flat))
        places = torch.arange(count, device=flat.device) * (len(flat) - 1) // max(count - 1, 1)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[places].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _below_adapter(model: Any) -> dict[str, Tensor]:
    """A model's weights under their own names, without those of an adapter on it."""
    adapted = hasattr(model, "peft_config")
    weights: dict[str, Tensor] = (model.get_base_model() if adapted else model).state_dict()
    if not adapted:
        return weights
    own = {name: t for name, t in weights.items() if not any(part in name for part in _ADAPTERS)}
    return {name.replace(".base_layer", "").replace(".original_module", ""): t for name, t in own.items()}


# ---- Writing -----------------------------------------------------------------------------------------------


def write_full(model: Any, folder: str | os.PathLike[str], **options: Any) -> None:
    """Everything in one folder; see `CombinedForCausalLM.save_pretrained`."""
    if unmerged := [role for role, network in model.networks.items() if hasattr(network, "peft_config")]:
        raise ValueError(
            f"the network {unmerged[0]!r} is an adapter on quantised weights, which cannot be merged without "
            "loss; open the model without quantisation to write it whole, or use save_light"
        )
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    sources: dict[str, dict[str, Any]] = {}
    for role, network in model.networks.items():
        base = _made_from(model.networks, role)
        if base is None:
            network.save_pretrained(root / role, **options)
            sources[role] = {"folder": role}
            continue
        own, known = network.state_dict(), model.networks[base].state_dict()
        changed = {name: t.contiguous().clone() for name, t in own.items() if not _same(t, known[name])}
        save_file(changed, root / f"{role}.safetensors", metadata={"format": "pt"})
        layers = text_config(network).num_hidden_layers
        sources[role] = {"of": base, "layers": layers, "tensors": f"{role}.safetensors"}
    write_config(root, model.config, model.generation_config, sources)


def write_light(model: Any, folder: str | os.PathLike[str], paths: Mapping[str, Mapping[str, Any]]) -> None:
    """Names and adapters; see `CombinedForCausalLM.save_light`."""
    root = Path(folder)
    sources: dict[str, dict[str, Any]] = {}
    for role, network in model.networks.items():
        base = None if role in paths else _made_from(model.networks, role)
        if role in paths:
            given = {key: value for key, value in paths[role].items() if value is not None}
            sources[role] = {**given, "digest": weights_digest(model.adapters.get(role, network))}
        elif base is not None and role in model.adapters:
            sources[role] = {"of": base, "layers": text_config(network).num_hidden_layers}
        else:
            raise ValueError(
                f"the network {role!r} is neither named by a path nor an adapter on another network; write "
                "everything into one folder with save_pretrained"
            )
        if role in model.adapters:
            sources[role]["adapter"] = role
    root.mkdir(parents=True, exist_ok=True)
    for role, adapter in model.adapters.items():
        # The vocabulary is the target's, so no embeddings belong to the adapter (peft would ask the hub).
        adapter.save_pretrained(root / role, save_embedding_layers=False)
    write_config(root, model.config, model.generation_config, sources)


def write_config(folder: str | os.PathLike[str], config: Any, generation_config: Any, sources: Any) -> None:
    """The configuration and the code that opens the folder; config.json last, because it makes it a model.

    Args:
        sources: role -> source, as described above.
    """
    root = Path(folder)
    for file in Path(__file__).parent.glob("*.py"):
        if file.name != "__init__.py":
            shutil.copyfile(file, root / file.name)
    generation_config.save_pretrained(root)
    model = CLASSES.get(config.kind, "CombinedForCausalLM")
    # Where it was opened is nobody's business; each network's own configuration says its precision.
    said = {
        **{key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "dtype")},
        "sources": sources,
        "architectures": [model],
        "auto_map": {
            "AutoConfig": "configuration_combined.CombinedConfig",
            "AutoModelForCausalLM": f"modeling_combined.{model}",
        },
    }
    part = root / "config.json.part"
    part.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(root / "config.json")


def _made_from(networks: Any, role: str) -> str | None:
    """The role of another network on whose memory this one stands in part; None where there is none."""
    own = _below_adapter(networks[role])
    for other, network in networks.items():
        if other == role:
            return None  # only an earlier one
        known = _below_adapter(network)
        covered = all(name in known and known[name].shape == t.shape for name, t in own.items())
        if covered and any(known[name].data_ptr() == t.data_ptr() for name, t in own.items()):
            return str(other)
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.dtype == b.dtype and torch.equal(a, b.to(a.device)))


# ---- Opening -----------------------------------------------------------------------------------------------


def open_networks(path: str | os.PathLike[str], config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The networks of a saved combination, by role, in the order of its weights."""
    hub = {key: options[key] for key in _HUB if key in options}
    own = {key: value for key, value in options.items() if key not in _NOT_FOR_NETWORKS}
    found: dict[str, Any] = {}
    for role in sorted(config.weights, key=lambda role: "of" in config.sources[role]):
        source = config.sources[role]
        if "of" in source:
            network = first_layers(found[source["of"]], source["layers"])
        elif "folder" in source:
            network = AutoModelForCausalLM.from_pretrained(
                str(path), subfolder=source["folder"], **hub, **own
            )
        else:
            network = _named(role, source, hub, own)
        if "tensors" in source:
            _replace(network, load_file(str(cached_file(str(path), source["tensors"], **hub))))
        if "adapter" in source:
            network = _adapted(network, str(path), source["adapter"], hub)
        found[role] = network.eval()
    return {role: found[role] for role in config.weights}


def _named(role: str, source: Mapping[str, Any], hub: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A model that lies elsewhere, and that must have the weights that the change was made for."""
    if Path(source["path"]).is_absolute() and not Path(source["path"]).is_dir():
        raise FolderError(
            f"the {role} model of this folder lay in {source['path']}, which does not exist; write its new "
            f"place into config.json under sources.{role}.path"
        )
    access = {key: value for key, value in hub.items() if key != "revision"}
    network = AutoModelForCausalLM.from_pretrained(
        source["path"], revision=source.get("revision"), **access, **own
    )
    comparable = network.dtype in (torch.float32, torch.bfloat16) and source["digest"]
    if is_quantised(network) or not comparable:
        logger.warning(
            "%s is read in a precision in which its weights cannot be compared, so it was not checked that "
            "this folder was made for it",
            source["path"],
        )
    elif (digest := weights_digest(network)) != source["digest"]:
        raise FolderError(
            f"{source['path']} is not the {role} model that this folder was made for (its weights have the "
            f"digest {digest}, expected {source['digest']}); name the right one in config.json under "
            f"sources.{role}.path"
        )
    return network


def _replace(network: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a network tensors of its own; the model whose memory it stands on keeps its own."""
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        module = network.get_submodule(place)
        old = getattr(module, leaf)
        new = tensor.to(device=old.device, dtype=old.dtype)
        setattr(
            module, leaf, torch.nn.Parameter(new, requires_grad=False) if leaf in module._parameters else new
        )


def _adapted(network: Any, path: str, name: str, hub: Mapping[str, Any]) -> Any:
    # By name, so that a folder without adapters opens where peft is not installed.
    peft = importlib.import_module("peft")
    if (Path(path) / name).is_dir():
        return peft.PeftModel.from_pretrained(network, str(Path(path) / name))
    return peft.PeftModel.from_pretrained(network, path, subfolder=name, **hub)
