"""ULD's assistant: the first layers of the target model with an adapter, to learn the opposite."""

from __future__ import annotations

from typing import Any

from unlearnkit.errors import ModelError
from unlearnkit.models.combined.layers import find_layers, first_layers
from unlearnkit.models.load import quiet_peft


def default_lora() -> Any:
    """The paper's adapter: rank 32, alpha 32, on every linear layer of the blocks, not on the head."""
    from peft import LoraConfig

    return LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def default_depth(layers: int) -> int:
    """A quarter of the layers, as in the paper (8 of 32), and at least one."""
    return max(1, layers // 4)


def build_assistant(
    target: Any, num_layers: int | None = None, *, lora: Any = "default", seed: int = 0
) -> Any:
    """Embeddings, first layers, final norm and LM head of the target, frozen, with LoRA on the layers.

    All frozen weights lie in the target's memory. Once the target itself is let go of, so are its other
    layers.

    Args:
        target: a causal language model without an adapter; it is not changed.
        num_layers: K; by default a quarter of the target's.
        lora: a LoraConfig; None for the frozen layers alone.
        seed: of the adapter's initial values.

    Raises:
        ModelError: K is below 1 or above the target's number of layers, or the target is an adapter itself.
    """
    if hasattr(target, "peft_config"):
        raise ModelError(
            "the target model is an adapter itself, so its first layers are no model of their own; merge it "
            "first (model.merge_and_unload() and save_pretrained) and name the merged folder"
        )
    where = find_layers(target)
    if where is None:
        raise ModelError(
            f"{type(target).__name__} has no list of decoder layers, so no assistant can be made of its "
            "first ones; use a decoder-only model of transformers"
        )
    count = refuse_depth(num_layers, len(where.layers))
    assistant = first_layers(target, count)
    if lora is None:
        return assistant
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    with quiet_peft():
        return get_peft_model(assistant, default_lora() if lora == "default" else lora)


def final_norm(model: Any) -> str:
    """The name of the norm between the last layer and the LM head.

    Raises:
        ModelError: it is not found.
    """
    where = find_layers(model)
    after = [name for name, child in where.parent.named_children() if _is_norm(child)] if where else []
    if where is None or not after:
        raise ModelError(
            f"{type(model).__name__} has no norm after its layers that could be trained; leave out "
            "training.train_norm"
        )
    return f"{where.path.rpartition('.')[0]}.{after[-1]}"


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


def refuse_tied_adapter(adapted: Any) -> None:
    """Refuse an adapter on embeddings that are the head as well: merged, it would change both.

    Raises:
        ModelError: the embeddings or the head are adapted, and they are one matrix.
    """
    embeddings, head = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    inner = [getattr(module, "base_layer", module) for module in (embeddings, head)]
    tied = (
        all(hasattr(m, "weight") for m in inner) and inner[0].weight.data_ptr() == inner[1].weight.data_ptr()
    )
    if tied and (inner[0] is not embeddings or inner[1] is not head):
        raise ModelError(
            "the adapter is on the embeddings, which are the LM head as well in this model, so merging it "
            "changes both; leave embed_tokens and lm_head out of model.lora.target_modules"
        )


def refuse_depth(num_layers: int | None, of: int) -> int:
    """The assistant's number of layers in a target of `of` layers.

    Raises:
        ModelError: it has not so many, or none is wanted.
    """
    count = default_depth(of) if num_layers is None else num_layers
    if not 1 <= count <= of:
        raise ModelError(
            f"the assistant is to have {count} layers, but the target model has {of}; set "
            f"training.num_layers to a number from 1 to {of}"
        )
    return count
