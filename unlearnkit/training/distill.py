"""Distillation: one adapter of a model that answers as several networks do together.

    L = forget_weight * sum_s KL_s + retain_weight * sum_s KL_s,    KL_s = mean_t KL(p || pi_theta)

p is the distribution of a combined model (ULD's pair and its relatives), frozen, and pi_theta its own first
network, the target model, with a new adapter. The first sum goes over `forget_streams`, the second over
`retain_streams`; each mean is over all answer tokens of its stream in the global batch (`token_mean`), over
the whole vocabulary, in float32. Labels only say where an answer stands: no true token is learned. At
inference the adapter goes on from its own words, so beside the true answers the pair's own ones are read
(`forget_answered`, `retain_answered`).

Where the pair has a filter, p is by default its likelihood mode (`filtered: neutral`: the other networks have
no opinion about filtered tokens), which is also what probes measure. Its greedy answers are made in the other
mode, `removed`, in which filtered tokens have probability 0.

Logged: `STREAM/kl` for every stream, in nats per token, which falls; 0 is the pair itself.

The frozen networks lie in memory once: the policy is a shared copy of the pair's target, so that only the
adapter and the pair's other networks come on top. FSDP and DeepSpeed are refused, because they split or move
weights that are shared here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearnkit.data.collate import TokenBatch, pad_rows
from unlearnkit.data.formats import TokenRow
from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.evaluation.batching import batches
from unlearnkit.evaluation.serving import is_combined, weights_at
from unlearnkit.models.combined.combination import FILTERED
from unlearnkit.models.combined.folders import weights_digest
from unlearnkit.models.combined.memory import shared_copy
from unlearnkit.models.load import load_model, to_device
from unlearnkit.training import logprobs, reference
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import Objective, WeightedSum, fuse
from unlearnkit.training.prepare import as_frozen
from unlearnkit.training.retain import KL, forward_kl
from unlearnkit.training.trainer import UnlearnTrainer


@dataclass
class DistillConfig(UnlearnConfig):
    """Settings of distillation; `unlearnkit export RUN --distill` writes them."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (AdamW)."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    pair: str = field(default="", metadata={"help": "Folder of the combined model that is distilled."})
    alpha: float | None = field(
        default=None, metadata={"help": "Alpha that it is served with (default: as it was saved)."}
    )
    top_logit_filter: float | None = field(
        default=None, metadata={"help": "Rate of its filter, 0 for none (default: as it was saved)."}
    )
    filtered: str = field(
        default="neutral", metadata={"help": "Tokens that the filter leaves out: neutral or removed."}
    )
    forget_streams: list[str] = field(
        default_factory=lambda: ["forget", "forget_answered"],
        metadata={"help": "Streams of the forget set, each with the weight forget_weight."},
    )
    retain: str = field(default="kl", metadata={"help": "As for every method; kl is to the pair."})
    retain_streams: list[str] = field(
        default_factory=lambda: ["retain", "retain_answered"],
        metadata={"help": "Streams of the retain set, each with the weight retain_weight."},
    )
    reference: str = field(default="frozen", metadata={"help": "The pair, which is always frozen."})

    @property
    def forgotten_streams(self) -> tuple[str, ...]:
        """None: every stream follows the pair, so that none pushes away what another keeps."""
        return ()

    def __post_init__(self) -> None:
        """Raises RecipeError: no pair, no stream, or a setting that means nothing here."""
        if not self.pair:
            raise RecipeError(
                "training.pair is missing: the folder of the model that is distilled; write the recipe with "
                "`unlearnkit export RUN --distill`"
            )
        if self.filtered not in FILTERED:
            raise RecipeError(f"training.filtered is {self.filtered!r}; use {' or '.join(FILTERED)}")
        if self.reference != "frozen":
            raise RecipeError(
                f"training.reference is {self.reference!r}, but the pair is the reference here; leave it out"
            )
        if self.retain not in ("kl", "none"):
            raise RecipeError(
                f"training.retain is {self.retain!r}, which does not follow the pair; use kl, or none"
            )
        if not self.forget_streams and (self.retain == "none" or not self.retain_streams):
            raise RecipeError(
                "nothing is distilled; name streams in training.forget_streams or retain_streams"
            )
        super().__post_init__()


class DistillTrainer(UnlearnTrainer):
    """KL(pair || policy) on every stream; the policy is the pair's own target with an adapter."""

    args: DistillConfig
    #: The combined model that is distilled, frozen.
    pair: Any

    def build_objective(self) -> Objective:
        """The KL terms of the forget streams, then those of the retain streams."""
        args = self.args
        terms: list[tuple[float, Objective]] = [(args.forget_weight, KL(s)) for s in args.forget_streams]
        if args.retain == "kl":
            terms += [(args.retain_weight, KL(s)) for s in args.retain_streams]
        return WeightedSum(tuple(terms))

    def build_policy(self, model: Any) -> Any:
        """Open the pair and give back its target, on its memory, in place of `model`, which is the same."""
        if not self._has_fresh_adapter:
            raise ModelError(
                "distillation trains an adapter of the target model; set model.lora (peft_config)"
            )
        args, dtype = self.args, str(next(model.parameters()).dtype).removeprefix("torch.")
        attention = getattr(model.config, "_attn_implementation", None)
        self.pair = open_pair(
            args.pair, alpha=args.alpha, top_logit_filter=args.top_logit_filter, dtype=dtype,
            attn_implementation=attention,
        )  # fmt: skip
        target = next(iter(self.pair.networks.values()))
        if weights_digest(model) != weights_digest(target):
            raise ModelError(
                f"the model in {model.config._name_or_path or 'memory'} is not the one that "
                f"{args.pair} combines; set model.path to that one"
            )
        policy = target_of(self.pair)
        policy.config._name_or_path = policy.name_or_path = model.config._name_or_path  # the adapter names it
        return policy

    def _live_reference(self) -> reference.Reference:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ModelError(
                "a pair is distilled on weights that it shares with the adapter, which FSDP and DeepSpeed "
                "would split; start without --launch, or with --launch ddp"
            )
        self.reference_name = "the pair"
        return PairReference(as_frozen(self.pair, self.accelerator), self.args.filtered)


class PairReference(reference.FrozenModel):
    """A combined model as the reference.

    Args:
        filtered: what becomes of tokens that its filter leaves out.
    """

    def __init__(self, model: Any, filtered: str) -> None:
        super().__init__(model)
        self.filtered = filtered

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """[N, V], float32."""
        return logprobs.target_logits(self.model, fuse({"": batch}), filtered=self.filtered).logits_NV


def open_pair(
    path: str, *, alpha: float | None = None, top_logit_filter: float | None = None, dtype: str = "auto",
    attn_implementation: str | None = None,
) -> Any:  # fmt: skip
    """A combined model on this process's accelerator, frozen.

    Args:
        alpha, top_logit_filter: instead of what it was saved with; a filter of 0 is none.

    Raises:
        ModelError: nothing there that can be loaded, or one ordinary model.
    """
    pair = load_model(path, dtype=dtype, attn_implementation=attn_implementation)
    if not is_combined(pair):
        raise ModelError(f"{path} is one ordinary model; name the model folder of a run of ULD or a relative")
    if alpha is not None:
        pair.config.weights = weights_at(pair, alpha)
    if top_logit_filter is not None:
        pair.config.top_logit_filter = top_logit_filter or None
    return to_device(pair).eval().requires_grad_(False)


def target_of(pair: Any) -> Any:
    """The pair's first network once more, on the same memory: what is put into it does not touch the pair."""
    return shared_copy(next(iter(pair.networks.values())))


@torch.no_grad()
def closeness(
    model: Any, pair: Any, rows: Sequence[TokenRow], *, pad_id: int, filtered: str = "neutral",
    batch_tokens: int = 8192,
) -> dict[str, float]:  # fmt: skip
    """How close an adapter has come to the pair, over all answer tokens of `rows`.

    Args:
        model: a PeftModel on the pair's target, in eval mode on the pair's device.

    Returns:
        `kl_before` and `kl`: mean KL(pair || model) in nats per token without and with the adapter;
        `same_before` and `same`: the share of tokens at which both find one token likeliest; `tokens`.
    """
    sums = {"kl_before": 0.0, "kl": 0.0, "same_before": 0.0, "same": 0.0, "tokens": 0.0}
    device = next(model.parameters()).device
    for places in batches([len(row["input_ids"]) for row in rows], batch_tokens):
        length = max(len(rows[i]["input_ids"]) for i in places)
        padded = pad_rows([rows[i] for i in places], length, pad_id=pad_id)
        batch = {name: tensor.to(device) for name, tensor in dict(padded).items()}  # type: ignore[attr-defined]
        theirs = logprobs.target_logits(pair, batch, filtered=filtered).logits_NV
        best = theirs.argmax(-1)
        for ending, adapter in (("_before", model.disable_adapter()), ("", contextlib.nullcontext())):
            with adapter:
                ours = logprobs.target_logits(model, batch).logits_NV
            sums[f"kl{ending}"] += float(logprobs.chunked(forward_kl, ours, theirs).sum())
            sums[f"same{ending}"] += float((ours.argmax(-1) == best).sum())
        sums["tokens"] += len(best)
    tokens = max(sums.pop("tokens"), 1.0)
    return {**{name: value / tokens for name, value in sums.items()}, "tokens": tokens}
