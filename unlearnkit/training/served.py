"""What is served in the end, where that is more than the network that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from unlearnkit.errors import ModelError
from unlearnkit.models.combined.configuration_combined import check_filter, config_of, weights_for
from unlearnkit.models.combined.folders import weights_digest, write_config
from unlearnkit.models.combined.layers import text_config
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM, ULDForCausalLM
from unlearnkit.models.load import load_model


class Served(Protocol):
    """How what was trained is served; alpha and the filter may be set until it is saved."""

    alpha: float
    top_logit_filter: float | None
    revision: str | None

    def model(self, trainer: Any) -> CombinedForCausalLM:
        """The combination as it is now."""

    def save(self, trainer: Any, folder: Path) -> None:
        """Write it, with the tokenizer; every process asks."""


def place_of(model: Any, digest: str) -> str | None:
    """The folder or hub id where a model lies with the weights that it has now; None where there is none.

    One that transformers loaded is read once more, to compare; one that `load_model` loaded is known.
    """
    path = str(getattr(model, "name_or_path", "") or "")
    if not path:
        return None
    if getattr(model, "loaded_digest", None) != digest:  # not loaded by us, or changed since
        try:
            revision = getattr(model.config, "_commit_hash", None)
            if weights_digest(load_model(path, revision=revision)) != digest:
                return None
        except ModelError:
            return None
    return str(Path(path).resolve()) if Path(path).is_dir() else path


class WithTarget:
    """An assistant that is trained on its own and served with its target model.

    The target is named, not kept, so that its memory is free while the assistant is trained. One that was
    never saved, or that was changed since it was loaded, is kept and written whole.

    Args:
        target: the target model.
        assistant: its first layers, before an adapter is put on them.
        alpha, top_logit_filter: what the pair is served with; they may be set until it is saved.
    """

    role = "assistant"

    def __init__(self, target: Any, assistant: Any, *, alpha: float, top_logit_filter: float | None) -> None:
        self.alpha, self.top_logit_filter = alpha, top_logit_filter
        self._digest = weights_digest(target)
        self.path: str | None = place_of(target, self._digest)
        self.revision: str | None = None
        self._target = None if self.path else target
        self._layers = int(text_config(assistant).num_hidden_layers)
        self._config = config_of({"target": target, "assistant": assistant}, {}, "uld", None)
        self._generation_config = target.generation_config

    def model(self, trainer: Any, target: Any = None) -> CombinedForCausalLM:
        """The pair as it is now; the target is loaded where it is only named."""
        assistant = trainer.accelerator.unwrap_model(trainer.model)
        if target is None:
            target = self._target or self._loaded(assistant)
        return ULDForCausalLM.pair(
            target, assistant, alpha=self.alpha, top_logit_filter=self.top_logit_filter
        )

    def _loaded(self, assistant: Any) -> Any:
        """The target from where it lies, on the assistant's device; the assistant then stands on it.

        Raises:
            ModelError: other weights lie there than those that the assistant was made of.
        """
        own = assistant.get_base_model()
        dtype = str(own.dtype).removeprefix("torch.")
        target = load_model(str(self.path), dtype=dtype, revision=self.revision)
        target = target if target.device == own.device else target.to(own.device)
        if weights_digest(target) != self._digest:
            raise ModelError(
                f"the target model in {self.path} has changed since the assistant was made of it; give the "
                "one that it was made of"
            )
        weights = dict(target.named_parameters(remove_duplicate=False))
        for name, parameter in own.named_parameters():
            same = weights.get(name.replace(".base_layer", "").replace(".original_module", ""))
            if same is not None and not parameter.requires_grad and same.dtype == parameter.dtype:
                parameter.data = same.data
        return target

    def save(self, trainer: Any, folder: Path) -> None:
        """Write the pair: the target's name and the adapter; everything, if the target has no name."""
        config = self._config
        config.weights, config.top_logit_filter = weights_for("uld", self.alpha), self.top_logit_filter
        check_filter(self.top_logit_filter)
        if self.path is None:
            if trainer.is_world_process_zero():
                self.model(trainer).save_pretrained(folder)
        else:
            trainer.save_model(str(folder / self.role), _internal_call=True)
        if not trainer.is_world_process_zero():
            return
        trainer.processing_class.save_pretrained(folder)
        if self.path is not None:
            for file in (folder / self.role).iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()  # the tokenizer lies in the folder itself
            named = {"path": self.path, "digest": self._digest}
            if self.revision is not None:
                named["revision"] = self.revision
            made = {"of": "target", "layers": self._layers, "adapter": self.role}
            write_config(folder, config, self._generation_config, {"target": named, self.role: made})
