"""The reference model: the frozen target model, in the cheapest form that gives what the objective needs.

cached: per-token log-probs, computed once and kept on disk; costs nothing in memory or time while training.
adapter_off: the LoRA adapter switched off; a second forward pass, no second model.
frozen: a frozen copy; a second model in memory, for what only logits can give without an adapter; if hidden
states are all that is wanted, only the layers below them.
All three give the same numbers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch, pad_rows
from unlearnkit.data.formats import TokenRow
from unlearnkit.errors import RecipeError
from unlearnkit.files import atomic_path, fingerprint
from unlearnkit.models.load import gathered
from unlearnkit.training import hidden, logprobs
from unlearnkit.training.objective import Needs, Objective, fuse, tap_of

#: The names that `training.reference` may take.
PROVIDERS = ("auto", "cached", "adapter_off", "frozen")
#: Raised when the stored format or the way of computing changes, so that an old cache is never read.
_CACHE_FORMAT = 1


class Reference(Protocol):
    """Answers about one stream's batch, without gradient; a live one asks a model for them."""

    live: bool

    def logits(self, batch: TokenBatch) -> Tensor:
        """Logits at target positions: [N, V]."""

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """Label log-probs at target positions: float32 [N]."""

    def hidden_states(self, batch: TokenBatch, layer: int) -> Tensor:
        """Output of a decoder layer at the answers' tokens: [M, d]."""


def choose(setting: str, needs: Needs, *, has_fresh_adapter: bool, retain: str = "none") -> str:
    """The provider's name: "none", "cached", "adapter_off" or "frozen".

    Args:
        setting: `training.reference`; "auto" picks the cheapest.
        has_fresh_adapter: whether the trained parameters are an adapter that was put on the target model just
            now, so that switching it off gives the target model back.
        retain: `training.retain`, for messages.

    Raises:
        RecipeError: the setting cannot give what the objective needs.
    """
    if setting not in PROVIDERS:
        raise RecipeError(f"training.reference is {setting!r}; use one of {', '.join(PROVIDERS)}")
    live = needs & (Needs.REFERENCE_LOGITS | Needs.REFERENCE_HIDDEN_STATES)
    if not live and Needs.REFERENCE_LOGPS not in needs:
        return "none"
    if setting == "auto":
        return "cached" if not live else "adapter_off" if has_fresh_adapter else "frozen"
    if setting == "cached" and live:
        what = "logits" if Needs.REFERENCE_LOGITS in needs else "hidden states"
        other = f", or retain: nll in place of {retain}" if retain in ("kl", "reverse_kl", "hidden") else ""
        raise RecipeError(
            f"this objective needs reference {what}, but training.reference: cached stores log-probs only; "
            f"use reference: auto or frozen{other}"
        )
    if setting == "adapter_off" and not has_fresh_adapter:
        raise RecipeError(
            "training.reference is adapter_off, but no new LoRA adapter is trained; set model.lora "
            "(peft_config), or use reference: auto or frozen"
        )
    return setting


def layers_needed(objective: Objective) -> int | None:
    """How many of its first layers a frozen reference model needs; None: all, and the LM head."""
    tap = tap_of(objective)
    whole = Needs.REFERENCE_LOGITS | Needs.REFERENCE_LOGPS
    return None if tap is None or objective.needs & whole else max(tap.layers) + 1


class CachedLogps:
    """Log-probs that the collator put beside the tokens."""

    live = False

    def logits(self, batch: TokenBatch) -> Tensor:
        """Not stored; `choose` never picks this provider for an objective that needs them."""
        raise RuntimeError("cached reference log-probs hold no logits")

    def hidden_states(self, batch: TokenBatch, layer: int) -> Tensor:
        """Not stored either."""
        raise RuntimeError("cached reference log-probs hold no hidden states")

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """float32 [N]; a batch without rows has none."""
        if "reference_logps" not in batch and len(batch["labels"]) == 0:
            return torch.zeros(0, device=batch["labels"].device)
        return batch["reference_logps"].flatten()[logprobs.positions_of(batch) + 1]


class FrozenModel:
    """A second model that is never trained; `model` is in eval mode and requires no gradient."""

    live = True

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def hidden_states(self, batch: TokenBatch, layer: int) -> Tensor:
        """[M, d]."""
        return hidden.states(self.model, fuse({"": batch}), layer)

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """[N, V]."""
        return logprobs.target_logits(self.model, fuse({"": batch})).logits_NV

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """float32 [N]."""
        return logprobs.label_logps(self.logits(batch), logprobs.batch_targets(batch))


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """A PeftModel with its adapter switched off; what is trained of it stays as it was.

    peft switches the gradient of every adapter on when it comes back, also of those that a method froze.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in trained:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


class AdapterOff:
    """The policy with its adapter switched off, in eval mode.

    Args:
        model: the wrapped model, which is called.
        unwrapped: the PeftModel inside.
    """

    live = True

    def __init__(self, model: Any, unwrapped: Any) -> None:
        self.model = model
        self.unwrapped = unwrapped

    @contextlib.contextmanager
    def _switched_off(self) -> Iterator[None]:
        was_training = self.unwrapped.training
        self.unwrapped.eval()
        try:
            with without_adapter(self.unwrapped):
                yield
        finally:
            self.unwrapped.train(was_training)

    @torch.no_grad()
    def hidden_states(self, batch: TokenBatch, layer: int) -> Tensor:
        """[M, d]."""
        with self._switched_off():
            return hidden.states(self.model, fuse({"": batch}), layer, unwrapped=self.unwrapped)

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """[N, V]."""
        with self._switched_off():
            return logprobs.target_logits(self.model, fuse({"": batch}), unwrapped=self.unwrapped).logits_NV

    def token_logps(self, batch: TokenBatch) -> Tensor:
        """float32 [N]."""
        return logprobs.label_logps(self.logits(batch), logprobs.batch_targets(batch))


def cache_folder() -> Path:
    """Where results are kept by content: $UNLEARNKIT_CACHE, else ~/.cache/unlearnkit."""
    return Path(os.environ.get("UNLEARNKIT_CACHE") or Path("~/.cache/unlearnkit").expanduser())


@torch.no_grad()
def score_rows(
    model: Any, rows: Sequence[TokenRow], *, device: torch.device | str, pad_id: int, batch_tokens: int = 8192
) -> list[Tensor]:
    """Per-token reference log-probs of each row: float32 [T], aligned with `labels`, 0 where there is no
    target.

    Rows go through the model sorted by length, `batch_tokens` padded tokens at a time.
    """
    was_training = model.training
    model.eval()
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    start = 0
    while start < len(order):
        length = len(rows[order[start]]["input_ids"])
        chunk = order[start : start + max(1, batch_tokens // length)]
        start += len(chunk)
        padded = pad_rows([rows[i] for i in chunk], length, pad_id=pad_id)
        batch = {name: tensor.to(device) for name, tensor in _tensors(padded).items()}
        target = logprobs.target_logits(model, batch)
        values = logprobs.label_logps(target.logits_NV, target.targets_N).cpu().float()
        filled = torch.zeros(len(chunk) * length)
        filled[batch["target_positions"].cpu() + 1] = values
        for i, row in zip(chunk, filled.reshape(len(chunk), length), strict=True):
            out[i] = row[: len(rows[i]["input_ids"])].clone()
    model.train(was_training)
    return out


@contextlib.contextmanager
def _ready_to_score(model: Any, accelerator: Any) -> Iterator[None]:
    """Before training: the model is whole on this process's device, in its precision; then back where it was.

    FSDP and DeepSpeed move and split a model only when training begins.
    """
    parameters = list(model.parameters())
    with gathered(parameters), accelerator.autocast():
        places = {p.device for p in parameters}
        # Several devices: a model that was dispatched over them stays so.
        before = places.pop() if len(places) == 1 else accelerator.device
        if before != accelerator.device:
            model.to(accelerator.device)
        try:
            yield
        finally:
            if before != accelerator.device:
                model.to(before)


def cached_scores(
    model: Any,
    rows: Sequence[TokenRow],
    *,
    data_fingerprint: str,
    model_fingerprint: str,
    pad_id: int,
    accelerator: Any,
) -> list[Tensor]:
    """Reference log-probs of `rows` from the disk, or computed (shared between the processes) and put there.

    The key is the content: tokens and labels (so data, tokenizer and template), weights, and the precision of
    the forward pass. A file that cannot be read is computed anew.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    process_index, num_processes = accelerator.process_index, accelerator.num_processes
    key = fingerprint(_CACHE_FORMAT, data_fingerprint, model_fingerprint, accelerator.mixed_precision)
    path = cache_folder() / "reference" / f"{key}.safetensors"
    lengths = [len(r["input_ids"]) for r in rows]
    flat: Tensor | None = None
    if path.exists():
        with contextlib.suppress(SafetensorError, OSError, KeyError):
            flat = load_file(path)["logps"]
    known = flat is not None and len(flat) == sum(lengths)
    if num_processes > 1:
        known = all(_gathered(known, num_processes))
    if not known:
        mine = list(range(process_index, len(rows), num_processes))
        with _ready_to_score(model, accelerator):
            scores = score_rows(model, [rows[i] for i in mine], device=accelerator.device, pad_id=pad_id)
        pairs = list(zip(mine, scores, strict=True))
        if num_processes > 1:
            pairs = [pair for part in _gathered(pairs, num_processes) for pair in part]
        flat = torch.cat([score for _, score in sorted(pairs, key=lambda pair: pair[0])])
        if process_index == 0:
            with atomic_path(path) as temporary:
                save_file({"logps": flat}, temporary)
    assert flat is not None
    return list(torch.split(flat, lengths))


def _tensors(batch: TokenBatch) -> dict[str, Tensor]:
    return dict(batch)  # type: ignore[arg-type]  # all values of a TokenBatch are tensors


def _gathered(value: Any, num_processes: int) -> list[Any]:
    out: list[Any] = [None] * num_processes
    torch.distributed.all_gather_object(out, value)
    return out
