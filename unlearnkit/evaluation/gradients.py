"""The gradient-norm probe: how far one step on an example would move the model.

The norm of an example's gradient is a membership score: what was memorised pulls no more. Two definitions:

- `global_norm`: the L2 norm, over all parameters together, of the gradient of the answer's mean NLL, EOS
  included;
- `mean_norm`: the mean over parameter tensors of their L2 norms, of the gradient of the mean NLL with the EOS
  left out (what the OpenUnlearning evaluation computes).

Which parameters: all floating ones of the base model, frozen or not; tied weights count once. An adapter's
own weights do not count: a LoRA layer computes W x + s B A x, whose gradient in W is that of the merged layer
in its W + s B A, so that an adapter and its merged model score alike. (For adapters that do more than add,
such as DoRA, the norm is still that of the base weights below them.) Quantised weights have no gradient; the
norm is then over what stayed floating (embeddings, norms, mostly the head): good for comparing examples of
that model, which is all that an attack does, but not with the norms of the unquantised one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unlearnkit.data.collate import pad_rows
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.probes import most_tokens
from unlearnkit.evaluation.questions import Question
from unlearnkit.evaluation.records import GLOBAL_NORM, MEAN_NORM
from unlearnkit.training import logprobs


def gradient_norms(
    model: Any,
    questions: Sequence[Question],
    *,
    done: Callable[[int], Any],
    stop: Collection[int] = (),
    which: Sequence[str] = (GLOBAL_NORM,),
) -> Iterator[list[tuple[str, dict[str, float]]]]:
    """Gradient norms of each answer, one example at a time, the longest first: (pair, {norm: value}).

    A pair without a token to learn, or with more tokens than the model has positions, gets NaN. Between two
    results the model is as it was: `.grad` is never touched, `requires_grad` is put back. One gradient of the
    whole model is held in memory, in the model's dtype; norms are float32 (float64 for a float64 model).

    Args:
        model: a causal language model in eval mode, whole in this process (not sharded by FSDP or ZeRO-3).
        questions: one question per pair.
        done: called with the number of pairs that each example finished.
        stop: tokens that end an answer; `mean_norm` leaves the last one out.
        which: the norms asked for. Both together take two backward passes where the answer ends with EOS.

    Raises:
        ModelError: no parameter of the model has a gradient.
        ValueError: `which` names another norm.
    """
    if unknown := sorted(set(which) - {GLOBAL_NORM, MEAN_NORM}):
        raise ValueError(f"which={unknown[0]!r} is not {GLOBAL_NORM!r} or {MEAN_NORM!r}")
    parameters = base_parameters(model)
    room = most_tokens(model)

    def size(question: Question) -> int:
        return len(question.prompt_ids) + len(question.answer_ids)

    for question in sorted(questions, key=size, reverse=True):
        norms = dict.fromkeys(which, math.nan)
        if question.answer_ids and 1 < size(question) <= room:
            with _gradients_on(parameters):
                norms = _norms(model, parameters, question, stop, which)
            if any(math.isnan(value) for value in norms.values()) and len(question.answer_ids) > 1:
                raise ModelError(
                    f"the model gives NaN for the gradient of example {question.example_id} of "
                    f"{question.dataset!r}; its weights may be broken, or too large for its dtype: "
                    "try float32"
                )
        done(1)
        yield [(question.pair, norms)]


def base_parameters(model: Any) -> list[Tensor]:
    """The parameters whose gradients count, each once: floating, not quantised, not an adapter's own."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = {
        id(parameter)
        for layer in base.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in (*layer.adapter_layer_names, *layer.other_param_names)
        if isinstance(part := getattr(layer, name, None), torch.nn.Module)
        for parameter in part.parameters()
    }
    return [p for p in base.parameters() if p.is_floating_point() and not _packed(p) and id(p) not in own]


def _packed(parameter: Tensor) -> bool:
    """Whether bitsandbytes keeps quantised bytes in it (under a floating dtype, where so configured)."""
    return any(hasattr(parameter, name) for name in ("quant_state", "bnb_quantized", "CB"))


@contextmanager
def _gradients_on(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)


def _norms(
    model: Any, parameters: Sequence[Tensor], question: Question, stop: Collection[int], which: Sequence[str]
) -> dict[str, float]:
    ids = [*question.prompt_ids, *question.answer_ids]
    labels = [IGNORE] * len(question.prompt_ids) + list(question.answer_ids)
    row: dict[str, Any] = {**pad_rows([{"input_ids": ids, "labels": labels}], len(ids), pad_id=0)}
    device = next(model.parameters()).device
    out = logprobs.target_logits(model, {name: values.to(device) for name, values in row.items()})
    logps_N = logprobs.label_logps(out.logits_NV, out.targets_N)
    # mean_norm's share of the targets: all but a final EOS.
    ends = int(question.answer_ids[-1] in stop)
    counts = {GLOBAL_NORM: len(logps_N), MEAN_NORM: len(logps_N) - ends}
    per_tensor = {
        count: _tensor_norms(-logps_N[:count].mean(), parameters) if count else None
        for count in {counts[name] for name in which}
    }
    norms = {}
    for name in which:
        found = per_tensor[counts[name]]
        if found is None:
            norms[name] = math.nan
        else:
            norms[name] = float(found.square().sum().sqrt() if name == GLOBAL_NORM else found.mean())
    return norms


def _tensor_norms(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """L2 norm of the loss's gradient in each parameter that has one, float64 on the CPU."""
    gradients: tuple[Tensor | None, ...] = ()
    if loss.requires_grad and parameters:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [
        torch.linalg.vector_norm(gradient, dtype=logprobs.wide(gradient[..., :0]).dtype).to(loss.device)
        for gradient in gradients
        if gradient is not None
    ]
    if not norms:
        raise ModelError(
            "gradient norms need a parameter with a gradient, and no floating one of this model has one; "
            "leave gradient_norm out of the suite's probes, or evaluate the model before it was quantised"
        )
    return torch.stack(norms).cpu().double()
