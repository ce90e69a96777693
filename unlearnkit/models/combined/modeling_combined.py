"""Several causal language models served as one: ULD's target and assistant, and their relatives.

This file and its neighbours import nothing but torch and transformers, because they are copied beside saved
weights: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` then works where UnlearnKit is
not installed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .caches import new_layers, views
from .combination import combine, combine_each
from .configuration_combined import (
    SIGNS,
    CombinedConfig,
    alpha_of,
    check_filter,
    config_of,
    refuse_other_vocabularies,
    refuse_other_weights,
    weights_for,
)
from .folders import open_networks, write_full, write_light
from .layers import is_quantised
from .memory import copy_together, once_each, shared_copy


@dataclass
class CombinedOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """As from any causal model; `network_logits` are each network's own, before they are combined."""

    network_logits: tuple[Tensor, ...] | None = None


class CombinedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """log p = sum_i w_i log p_i over several networks with one vocabulary (see `combination.py`).

    Made by `of` or `from_pretrained`. `forward` treats filtered tokens as a likelihood must; `generate` takes
    them out. Keys and values of all networks lie in one cache, the first network's layers first.
    """

    config_class = CombinedConfig
    base_model_prefix = "networks"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: CombinedConfig, networks: Mapping[str, nn.Module]) -> None:
        super().__init__(config)
        self.networks = nn.ModuleDict(networks)
        #: Role -> the adapter that its network was made with, where it was.
        self.adapters: dict[str, Any] = {}
        self.all_tied_weights_keys: dict[str, str] = {}

    @classmethod
    def of(
        cls, networks: Mapping[str, Any], weights: Mapping[str, float], *, kind: str,
        top_logit_filter: float | None = None,
    ) -> CombinedForCausalLM:  # fmt: skip
        """Combine models that lie in memory; no weight is changed or copied, and they are put into eval mode.

        Args:
            networks: role -> causal language model; a PEFT adapter is merged into a network of its own,
                unless its base is quantised, whose weights would be rounded once more.
            weights: role -> weight; that of the first network is 1.
            kind: "uld", "offset" or "value".
            top_logit_filter: rate of the filter, in (0, 1).

        Raises:
            ValueError: other roles than those of the kind, different vocabularies, a first weight that is
                not 1, or a rate that is none.
        """
        if kind not in SIGNS:
            raise ValueError(f"the kind of combination is {kind!r}; use one of {', '.join(SIGNS)}")
        if list(networks) != list(SIGNS[kind]) or list(weights) != list(networks):
            raise ValueError(
                f"networks are {list(networks)} and weights {list(weights)}; a combination of kind {kind!r} "
                f"has {list(SIGNS[kind])}, in this order"
            )
        refuse_other_weights(kind, weights)
        check_filter(top_logit_filter)
        refuse_other_vocabularies(networks)
        adapters = {role: net for role, net in networks.items() if hasattr(net, "merge_and_unload")}
        merged = {
            role: _merged(net) if role in adapters and not is_quantised(net) else net
            for role, net in networks.items()
        }
        config = config_of(merged, weights, kind, top_logit_filter)
        made = cls(config, merged)
        made.adapters = adapters
        made.generation_config = copy.deepcopy(next(iter(merged.values())).generation_config)
        made.eval()
        return made

    def train(self, mode: bool = True) -> CombinedForCausalLM:
        """As in torch, but networks without a parameter to train stay as they answer: without dropout."""
        super().train(mode)
        for network in self.networks.values():
            if not any(p.requires_grad for p in network.parameters()):
                network.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> CombinedForCausalLM:
        super()._apply(once_each(fn), recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CombinedForCausalLM:
        copy_together(self, memo)
        made = memo[id(self)] = self.__class__.__new__(self.__class__)
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    # ---- Forward -------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        filtered: str = "neutral",
        return_networks: bool = False,
        **options: Any,
    ) -> CombinedOutput:
        """Logits float32 [B, T, V] of the combination (log-probs up to a constant per position).

        Args:
            input_ids, attention_mask, position_ids: [B, T]; padding on either side.
            past_key_values: a `DynamicCache` for all networks; filled, and returned where `use_cache`.
            logits_to_keep: as in transformers.
            labels: [B, T], -100 where there is none; gives `loss`, the mean NLL of the labels.
            filtered: what becomes of filtered tokens: "neutral" or "removed".
            return_networks: return `network_logits` instead, and combine nothing.

        Raises:
            ValueError: embeddings instead of tokens.
        """
        if input_ids is None:
            raise ValueError("each network has embeddings of its own; give input_ids")
        if attention_mask is not None and attention_mask.dim() == 2 and position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        caches: Sequence[Any] = [None] * len(self.networks)
        if use_cache or past_key_values is not None:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
            caches = views(past_key_values, list(self.networks.values()), self._cache_sizes)
        # What the caller of a single model may ask for and that has no meaning for several.
        for name in ("return_dict", "output_attentions", "output_hidden_states", "cache_position"):
            options.pop(name, None)
        logits = tuple(
            network(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=cache, use_cache=bool(use_cache), logits_to_keep=logits_to_keep, **options,
            ).logits
            for network, cache in zip(self.networks.values(), caches, strict=True)
        )  # fmt: skip
        combined = None if return_networks else self.combine(logits, filtered=filtered)
        loss = None
        if labels is not None and combined is not None:
            loss = cross_entropy(combined[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(combined.device))
        return CombinedOutput(
            loss=loss,
            logits=combined,
            past_key_values=past_key_values if use_cache else None,
            network_logits=logits if return_networks else None,
        )

    def combine(
        self,
        logits: Sequence[Tensor],
        *,
        weights: Mapping[str, float] | None = None,
        filtered: str = "neutral",
    ) -> Tensor:
        """Each network's logits [..., V] -> those of the combination, float32 [..., V].

        Args:
            weights: role -> weight, instead of the configured ones.
        """
        chosen = self.config.weights if weights is None else weights
        return combine(
            [z.to(logits[0].device) for z in logits], [chosen[role] for role in self.networks],
            filter_rate=self.config.top_logit_filter, filtered=filtered,
        )  # fmt: skip

    def combine_each(
        self, logits: Sequence[Tensor], several: Iterable[Mapping[str, float]]
    ) -> Iterator[Tensor]:
        """For likelihoods: as `combine`, with one weighting after another, which costs less."""
        yield from combine_each(
            [z.to(logits[0].device) for z in logits],
            ([weights[role] for role in self.networks] for weights in several),
            filter_rate=self.config.top_logit_filter,
        )

    @cached_property
    def _cache_sizes(self) -> list[int]:
        """How many of the cache's layers are each network's; asked at every token."""
        return [len(layers) for layers in new_layers(list(self.networks.values()))]

    @property
    def alpha(self) -> float:
        """How strongly the other networks change the first one; of ULD, how much is subtracted."""
        return alpha_of(self.config)

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.config.weights = weights_for(self.config.kind, value)

    # ---- Generation and what others ask of a model ---------------------------------------------------------

    #: What a decoding loop passes to `forward` besides.
    decoding_options = {"filtered": "removed"}  # noqa: RUF012

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers; what is generated never holds a filtered token."""
        return {**super().prepare_inputs_for_generation(*args, **kwargs), **self.decoding_options}

    def output_heads(self) -> list[nn.Module]:
        """The LM head of each network."""
        networks: Any = self.networks.values()
        return [network.get_output_embeddings() for network in networks]

    def get_input_embeddings(self) -> nn.Module:
        """Those of the first network."""
        first: Any = next(iter(self.networks.values()))
        embeddings: nn.Module = first.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: there is not one head but several; see `output_heads`."""

    # ---- Folders -------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write one folder that holds everything, and that opens without UnlearnKit and without peft.

        Args:
            options: for the networks' own `save_pretrained` (`max_shard_size`, ...).
        """
        write_full(self, save_directory, **options)

    def save_light(self, folder: str | os.PathLike[str], paths: Mapping[str, Mapping[str, Any]]) -> None:
        """Write adapters and the names of what they belong to: megabytes. Opening it needs peft.

        Args:
            paths: role -> {"path": folder or hub id, "revision": ...} of each network that lies elsewhere.

        Raises:
            ValueError: a network that can neither be named nor is an adapter.
        """
        write_light(self, folder, paths)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, *args: Any, **options: Any
    ) -> CombinedForCausalLM:
        """Open a folder or hub repository written by `save_pretrained` or `save_light`.

        Args:
            options: for the networks (`dtype`, `device_map`, `attn_implementation`, ...), and `revision`,
                `token`, ... of the repository.

        Raises:
            ValueError: an adapter that belongs to other weights than those that its target has now.
        """
        config = options.pop("config", None)
        if not isinstance(config, CombinedConfig):
            hub = {key: options[key] for key in ("revision", "token", "cache_dir") if key in options}
            config = CombinedConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        networks = open_networks(pretrained_model_name_or_path, config, options)
        kind = ULDForCausalLM if config.kind == "uld" else cls
        made = kind.of(networks, config.weights, kind=config.kind, top_logit_filter=config.top_logit_filter)
        made.config.sources = config.sources
        made.name_or_path = made.config._name_or_path = str(pretrained_model_name_or_path)
        return made


class ULDForCausalLM(CombinedForCausalLM):
    """Unlearning from logit difference (arXiv 2406.08607): log p_target - alpha log p_assistant.

    The assistant remembers what the target model must forget and knows nothing else, so that subtracting its
    log-probs takes out just that.
    """

    @classmethod
    def pair(
        cls, target: Any, assistant: Any, *, alpha: float = 0.75, top_logit_filter: float | None = 0.01
    ) -> ULDForCausalLM:
        """Serve a target model with its assistant.

        Args:
            target: the model that must forget; it is not changed.
            assistant: from `build_assistant`, trained; an adapter is merged in.
            alpha: how much of the assistant is subtracted, above 0.
            top_logit_filter: rate of the filter; None compares all tokens.

        Raises:
            ValueError: alpha is not above 0, or what `of` refuses.
        """
        networks = {"target": target, "assistant": assistant}
        made = cls.of(networks, weights_for("uld", alpha), kind="uld", top_logit_filter=top_logit_filter)
        assert isinstance(made, ULDForCausalLM)
        return made


def _merged(adapted: Any) -> Any:
    """A PEFT model with its adapter merged in; the model itself stays as it is."""
    return shared_copy(adapted).merge_and_unload(safe_merge=True)
