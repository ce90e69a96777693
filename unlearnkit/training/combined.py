"""Training one network of a combination: what the methods `offset` and `value` share.

The policy *is* the combination: its logits are the combined ones, so that every objective applies to the
combined distribution. One of its networks is trained; the others stand beside it, frozen, and keep no
activations. The combination begins as the base alone, so the base itself is the reference model.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file

from unlearnkit.errors import ModelError
from unlearnkit.models.combined.configuration_combined import (
    config_of,
    refuse_other_vocabularies,
    weights_for,
)
from unlearnkit.models.combined.folders import weights_digest, write_config
from unlearnkit.models.combined.layers import text_config
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM, CombinedOutput
from unlearnkit.models.load import load_model, load_tokenizer
from unlearnkit.run import resolve_path
from unlearnkit.training.documents import refuse_beyond_positions
from unlearnkit.training.prepare import with_adapter
from unlearnkit.training.trainer import UnlearnTrainer


class CombinedPolicy(CombinedForCausalLM):
    """A combination in training: an adapter is not merged, and a checkpoint holds what is trained.

    Args:
        networks: role -> network, the base first.
        alpha: strength of the others.
        kind: "offset" or "value".
        trained: the role of the network that is trained; the others are frozen here.
    """

    def __init__(self, networks: Mapping[str, Any], alpha: float, *, kind: str, trained: str) -> None:
        for role, network in networks.items():
            if role != trained:
                network.requires_grad_(False)
        weights = weights_for(kind, alpha)
        super().__init__(config_of(networks, weights, kind, None), {role: networks[role] for role in weights})
        self.trained = trained
        self.generation_config = copy.deepcopy(networks["base"].generation_config)
        self.eval()

    @property
    def network(self) -> Any:
        """The network that is trained."""
        return self.networks[self.trained]

    def forward(self, *args: Any, **options: Any) -> CombinedOutput:
        """As in serving; each network's own logits come along, for terms that ask for them."""
        output = super().forward(*args, **{**options, "return_networks": True})
        if not options.get("return_networks"):
            assert output.network_logits is not None
            output.logits = self.combine(output.network_logits, filtered=options.get("filtered", "neutral"))
        return output

    def enable_input_require_grads(self) -> None:
        """Of the trained network alone: the others would keep activations for nothing."""
        self.network.enable_input_require_grads()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write what is trained, for a training to go on from; `ServedPolicy` writes models."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        save_file(
            {name: p.cpu().contiguous() for name, p in trained.items()}, folder / "model.safetensors",
            metadata={"format": "pt"},
        )  # fmt: skip

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The reverse: what is frozen is as it was."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        frozen = {name: t for name, t in self.state_dict().items() if name not in trained}
        return super().load_state_dict({**frozen, **state_dict}, strict, assign)


class ServedPolicy:
    """What comes out of a training of one network: the combination, its adapter merged in.

    Args:
        alpha: the strength that it is served with; it may be set until it is saved.
        small: where the small model lies; None where the base is its own.
    """

    def __init__(self, *, alpha: float, small: str | None) -> None:
        self.alpha = alpha
        self.top_logit_filter: float | None = None
        self.revision: str | None = None
        self.small = small

    def model(self, trainer: Any) -> CombinedForCausalLM:
        """The combination as it is now; the policy stays as it is."""
        policy = trainer.accelerator.unwrap_model(trainer.model)
        kind = policy.config.kind
        return CombinedForCausalLM.of(
            dict(policy.networks.items()), weights_for(kind, self.alpha), kind=kind,
            top_logit_filter=self.top_logit_filter,
        )  # fmt: skip

    def save(self, trainer: Any, folder: Path) -> None:
        """Write what was trained, and the names of the others; everything, if the base has no name."""
        if not trainer.is_world_process_zero():
            return
        made = self.model(trainer)
        base: Any = made.networks["base"]
        if not base.name_or_path:
            made.save_pretrained(folder)
        else:
            sources = {"base": named(base, base.name_or_path, self.revision)}
            for role, network in made.networks.items():
                if role == trainer.trained:
                    sources[role] = self._write_trained(made, role, folder, trainer.adapter_on)
                elif role != "base":
                    sources[role] = self._small_source(network)
            write_config(folder, made.config, made.generation_config, sources)
        trainer.processing_class.save_pretrained(folder)

    def _write_trained(self, made: Any, role: str, folder: Path, adapter_on: str | None) -> dict[str, Any]:
        """An adapter, if that is all that was trained; else the whole network."""
        if adapter_on is None or role not in made.adapters:
            made.networks[role].save_pretrained(folder / role)
            return {"folder": role}
        made.adapters[role].save_pretrained(folder / role)
        layers = text_config(made.networks[role]).num_hidden_layers
        return {"of": "base" if self.small is None else adapter_on, "layers": layers, "adapter": role}

    def _small_source(self, network: Any) -> dict[str, Any]:
        if self.small is None:
            return {"of": "base", "layers": text_config(network).num_hidden_layers}
        return named(network, self.small)


def named(network: Any, path: str, revision: str | None = None) -> dict[str, Any]:
    """The source of a network that lies elsewhere."""
    place = str(Path(path).resolve()) if Path(path).is_dir() else path
    found = {"path": place, "digest": weights_digest(network)}
    return found if revision is None else {**found, "revision": revision}


class CombinedTrainer(UnlearnTrainer):
    """Trains one network of a combination; `trainer.model` is the combination in training.

    A method says which network is trained (`trained`) and how the networks are made (`make_networks`).
    """

    adapts_target = False
    trained: ClassVar[str]
    #: The role of a network that the trained one is, but for its adapter.
    adapter_on: ClassVar[str | None] = None

    def make_networks(self, base: Any, small: Any) -> dict[str, Any]:
        """Role -> network, without an adapter.

        Args:
            base: the target model.
            small: the small model; the base itself where none is named.
        """
        raise NotImplementedError

    def build_policy(self, model: Any) -> CombinedPolicy:
        """The combination.

        Raises:
            ModelError: the small model cannot stand beside this one, or one of them is no whole model.
        """
        assert self.served_kind is not None
        small = self._load_small(model)
        for name, one in (("target", model), ("small", small)):
            if hasattr(one, "peft_config") or isinstance(one, CombinedForCausalLM):
                raise ModelError(
                    f"the {name} model is an adapter or a combination itself; merge it or distil it into one "
                    "model first, and name that one's folder"
                )
        alpha = float(getattr(self.args, "alpha", 1.0))
        self.served = ServedPolicy(alpha=alpha, small=None if small is model else small.name_or_path)
        networks = self.make_networks(model, small)
        return CombinedPolicy(networks, alpha, kind=self.served_kind, trained=self.trained)

    def serving_defaults(self) -> dict[str, float | None]:
        """The strength that is trained with, and no filter."""
        return {"alpha": float(getattr(self.args, "alpha", 1.0)), "top_logit_filter": None}

    def put_adapter(self, model: Any, peft_config: Any) -> Any:
        """On the trained network alone."""
        model.networks[self.trained] = with_adapter(model.network, peft_config, self.args)
        return model

    def reference_network(self) -> Any:
        """The base, which the combination begins as, and which is never trained."""
        return self.accelerator.unwrap_model(self.model).networks["base"]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train.

        Raises:
            ModelError: the weights would be split over processes.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ModelError(
                "the networks of a combination cannot be split over processes; give every process whole "
                "weights (launch with single or ddp)"
            )
        return super().train(*args, **kwargs)

    def _load_small(self, base: Any) -> Any:
        path = resolve_path(self.args.small)
        if path is None:
            return base
        small = load_model(path, dtype=str(base.dtype).removeprefix("torch."))
        refuse_other_tokens({"target": base, "small": small}, self.processing_class, path)
        refuse_beyond_positions(self.tokenized, small.config)
        return small


def refuse_other_tokens(networks: Mapping[str, Any], tokenizer: Any, path: str) -> None:
    """Refuse to combine models whose logits do not stand for the same tokens.

    Args:
        networks: the models, by what they are called in the message.
        tokenizer: of the first.
        path: of the last, where its tokenizer lies too, if it has one.

    Raises:
        ModelError: another number of tokens, or other tokens.
    """
    try:
        refuse_other_vocabularies(networks)
    except ValueError as error:
        raise ModelError(str(error)) from error
    try:
        other = load_tokenizer(path).get_vocab()
    except ModelError:
        return  # saved without one
    own = tokenizer.get_vocab()
    if own != other:
        strange = min(token for token in {*own, *other} if own.get(token) != other.get(token))
        raise ModelError(
            f"the tokenizer in {path} is another one (the token {strange!r} is {other.get(strange)} there "
            f"and {own.get(strange)} here); take models of one family, with one tokenizer"
        )
