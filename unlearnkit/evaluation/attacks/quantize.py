"""Quantize: whether rounding the weights to 8 or 4 bits brings back what was forgotten.

Unlearning with a small learning rate moves each weight by less than half a quantisation step, so that the
rounded model is the rounded target model (Zhang et al. 2024, arXiv 2410.16454). The rounding is that of
bitsandbytes: LLM.int8() with its threshold for outliers (arXiv 2208.07339), and 4 bits in blocks of 64, NF4
(arXiv 2305.14314) or FP4. As there, the output embedding stays as it is; so do the input embedding and the
norms, which are no matrix products.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unlearnkit.errors import ModelError, RecipeError, UserError
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.serving import is_combined

_BITS = {"int8": 8, "nf4": 4, "fp4": 4}
#: Weights that share a scale at 4 bits.
_BLOCK = 64
#: Classes of bitsandbytes' weights; those of 4 bits may be stored in a floating dtype.
_QUANTIZED = ("Params4bit", "Int8Params")


@dataclass(frozen=True)
class Quantize:
    """Round the weights to 8 or 4 bits with bitsandbytes.

    Each stage is a model of its own, on the device of the subject's model, which is not touched; what is not
    rounded is shared with it. An adapter is merged first, in a copy: in memory for a moment twice the model.
    """

    bits: list[Literal["int8", "nf4", "fp4"]] = field(
        default_factory=lambda: ["int8", "nf4"], metadata={"help": "roundings, one stage each"}
    )
    int8_threshold: float = field(
        default=6.0,
        metadata={
            "help": "int8: inputs above it are multiplied unrounded (0: none); with it a result may depend "
            "on what else is in the batch"
        },
    )

    def check(self) -> None:
        """What can be known to fail without a model.

        Raises:
            RecipeError: no rounding, or an unknown one.
            UserError: bitsandbytes is not installed.
        """
        if not self.bits or (unknown := [b for b in self.bits if b not in _BITS]):
            shown = repr(unknown[0]) if self.bits else "empty"
            raise RecipeError(f"quantize.bits is {shown}; use {', '.join(_BITS)}")
        if self.int8_threshold < 0:
            raise RecipeError(f"quantize.int8_threshold is {self.int8_threshold}; use 0 or more")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "the attack quantize needs the package bitsandbytes; pip install 'unlearnkit[quantization]'"
            )

    @contextlib.contextmanager
    def stages(self, subject: Subject) -> Iterator[Iterator[Subject]]:
        """A quantised model for each of `bits`.

        Raises:
            ModelError: the model is quantised already, has an adapter that cannot be merged, or no layer that
                bitsandbytes can round.
        """
        self.check()
        if is_quantized(subject.model):
            raise ModelError(
                "the attack quantize rounds floating weights, but the model's are quantised already; load it "
                "without quantization"
            )
        with _quiet():
            stages = (self._stage(subject, kind) for kind in dict.fromkeys(self.bits))
            try:
                yield stages
            finally:
                stages.close()

    def _stage(self, subject: Subject, kind: str) -> Subject:
        model, facts = quantized(subject.model, kind, int8_threshold=self.int8_threshold)
        return replace(subject, model=model, variant=kind, level=float(_BITS[kind]), facts=facts)


ATTACK = Quantize


def is_quantized(model: Any) -> bool:
    """Whether a model has weights that are no longer the floating ones that were trained."""
    return getattr(model, "quantization_method", None) is not None or any(
        is_quantized_weight(p) for p in model.parameters()
    )


def is_quantized_weight(parameter: Any) -> bool:
    """Whether this is a rounded weight: of an integer dtype, or of 4 bits stored in any."""
    return type(parameter).__name__ in _QUANTIZED or not parameter.is_floating_point()


def quantized(model: Any, kind: str, *, int8_threshold: float = 6.0) -> tuple[Any, dict[str, Any]]:
    """A quantised copy of a model, in eval mode, and facts about it.

    Args:
        kind: "int8", "nf4" or "fp4".

    Returns:
        The copy, and {"layers", "layers_left": linear layers rounded and refused by bitsandbytes,
        "weights_share": share of all weights that were rounded, "note": why some were refused}.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from unlearnkit.models.precision import own_precision

    if is_combined(model):
        return _each_quantized(model, kind, int8_threshold)
    # A wrapper that a trainer left around `forward` would call the original model.
    with own_precision(model):
        copied = _merged_copy(model) if hasattr(model, "peft_config") else _sharing_copy(model)
    total = sum(p.numel() for p in copied.parameters())
    head = copied.get_output_embeddings() if hasattr(copied, "get_output_embeddings") else None
    made: dict[Any, Any] = {}
    left: list[str] = []
    weights = 0
    for name, module in list(copied.named_modules(remove_duplicate=False)):
        if module is head or type(module) not in (nn.Linear, Conv1D):
            continue
        if module not in made:
            try:
                made[module] = _layer(module, kind, int8_threshold)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, AssertionError) as error:
                made[module] = None
                left.append(f"{name}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
            else:
                weights += module.weight.numel()
        if made[module] is not None:
            copied.set_submodule(name, made[module])
    layers = len(made) - len(left)
    if not layers:
        why = f"bitsandbytes refuses them ({left[0]})" if left else "it has none"
        raise ModelError(
            f"no linear layer of the model can be quantised to {kind}: {why}; leave the attack out"
        )
    _mark(copied, kind, int8_threshold)
    facts: dict[str, Any] = {
        "layers": layers, "layers_left": len(left), "weights_share": round(weights / total, 4),
    }  # fmt: skip
    if left:
        facts["note"] = f"{len(left)} of {len(made)} linear layers could not be rounded ({left[0]})"
    return copied.eval(), facts


def _each_quantized(model: Any, kind: str, int8_threshold: float) -> tuple[Any, dict[str, Any]]:
    """A combined model of quantised networks; what `quantized` says about each of them, together."""
    made = {role: quantized(one, kind, int8_threshold=int8_threshold) for role, one in model.networks.items()}
    sizes = [sum(p.numel() for p in one.parameters()) for one in model.networks.values()]
    told = [facts for _, facts in made.values()]
    facts: dict[str, Any] = {name: sum(one[name] for one in told) for name in ("layers", "layers_left")}
    share = sum(one["weights_share"] * size for one, size in zip(told, sizes, strict=True)) / sum(sizes)
    facts["weights_share"] = round(share, 4)
    if notes := [f"{role}: {one['note']}" for role, (_, one) in made.items() if "note" in one]:
        facts["note"] = "; ".join(notes)
    config = model.config
    copied = type(model).of(
        {role: one for role, (one, _) in made.items()}, config.weights, kind=config.kind,
        top_logit_filter=config.top_logit_filter,
    )  # fmt: skip
    copied.generation_config = copy.deepcopy(model.generation_config)
    _mark(copied, kind, int8_threshold)
    return copied, facts


def _sharing_copy(model: Any) -> Any:
    """A second model whose weights lie where the first one's do; replacing one of its layers is its own."""
    import torch

    memo: dict[int, Any] = {
        id(p): torch.nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _merged_copy(model: Any) -> Any:
    from unlearnkit.models.load import quiet_peft

    copied = copy.deepcopy(model)
    if not hasattr(copied, "merge_and_unload"):
        raise ModelError(
            "the attack quantize merges an adapter into the weights first, but this one is no PeftModel; "
            "load it with peft"
        )
    try:
        with quiet_peft():
            return copied.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(
            f"the attack quantize merges an adapter into the weights first, which this one does not allow "
            f"({error}); leave the attack out"
        ) from error


def _layer(module: Any, kind: str, int8_threshold: float) -> Any:
    """A bitsandbytes layer with the rounded weight of a linear one (or of GPT-2's transposed one)."""
    import torch
    from torch import nn

    bnb = importlib.import_module("bitsandbytes")
    weight = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.T
    outputs, inputs = weight.shape
    bias = module.bias is not None
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(
            inputs, outputs, bias, has_fp16_weights=False, threshold=int8_threshold, device="meta"
        )
        # Only a weight on the CPU is rounded on its way to a device.
        layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False).to(weight.device)
    else:
        split = weight.device.type == "cpu" and inputs % _BLOCK
        layer = (_flat_linear() if split else bnb.nn.Linear4bit)(
            inputs, outputs, bias, compute_dtype=weight.dtype, compress_statistics=False, quant_type=kind,
            device="meta",
        )  # fmt: skip
        packed = bnb.nn.Params4bit(weight, compress_statistics=False, quant_type=kind)
        layer.weight = packed.to(weight.device)
        layer.quant_state = layer.weight.quant_state
        # On some CPUs a kernel rearranges the weights in place and computes in bfloat16: numbers would
        # depend on the machine.
        layer.support_avx512bf16_for_cpu = False
    if bias:
        layer.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    with torch.no_grad():
        layer.eval()(torch.ones(1, inputs, dtype=weight.dtype, device=weight.device))
    return layer


@functools.cache
def _flat_linear() -> Any:
    """bitsandbytes' 4-bit layer for the CPU where rows are no whole number of blocks.

    Its kernel there (0.50) begins a new block with each row, while the weight was rounded in blocks that run
    on over the rows, as on a GPU: it would take another block's scale. One long row has no such border.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    class FlatLinear4bit(Linear4bit):  # type: ignore[misc, unused-ignore]
        def forward(self, x: Any) -> Any:
            state = copy.copy(self.weight.quant_state)
            shape, state.shape = state.shape, torch.Size([1, state.shape.numel()])
            weight = dequantize_4bit(self.weight.data, state).view(shape)
            return torch.nn.functional.linear(x, weight.to(x.dtype), self.bias)

    return FlatLinear4bit


def _mark(model: Any, kind: str, int8_threshold: float) -> None:
    """Say in the model what transformers says in one that it loaded quantised.

    The settings stand in the config, so that the model's fingerprint has those which no weight shows.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationMethod

    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=int8_threshold)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=model.dtype
        )
    model.config.quantization_config = config
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.is_quantized = True
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = kind == "int8", kind != "int8"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that bitsandbytes logs at every 8-bit product of a float32 or bfloat16 model."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def wanted(record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
