"""UnlearnTrainer: the only file that knows the insides of `transformers.Trainer`.

A method's trainer says what to minimise (`build_objective`). This class says how: streams are paired by a StreamMix, all
rows of a micro-batch go through the model once, every loss is divided by the size of the whole global batch, and the
reference model is provided in its cheapest form.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import Template, Tokenized, tokenize_stream
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.data.overlap import refuse_overlap
from unlearnkit.data.streams import canonical
from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.models.load import load_model, load_tokenizer, model_fingerprint
from unlearnkit.recipe import MixSpec, TemplateSpec
from unlearnkit.training import logprobs, reference
from unlearnkit.training.callbacks import CompleteCheckpoints, FollowEpoch, RefuseZeroGradients
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.objective import LossOutput, Objective, Step, WeightedSum, as_counts, count_streams
from unlearnkit.training.retain import retain_term

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class UnlearnTrainer(Trainer):  # type: ignore[misc]
    """Trains a causal language model on an objective over named streams.

    Args:
        model: a model, or the path or hub id of one.
        args: the method's config.
        forget_dataset: what must go (any columns that `data.streams.canonical` understands).
        retain_dataset: what must stay.
        streams: further streams by name; may also hold "forget" and "retain".
        mix: anchor, ratios or weights (default: each forget row once an epoch, with one retain row).
        template: how prompts are written (default: the tokenizer's chat template, else plain tags).
        processing_class: the tokenizer (default: the one saved with the model).
        peft_config: train an adapter instead of the weights.
        eval_dataset: a data set, or a mapping of them, whose mean NLL per target token is reported as `eval_loss`.
        others: passed on to `transformers.Trainer` (callbacks, optimizers, ...).

    Raises:
        DataError, ModelError, RecipeError: before any training starts.
    """

    # Our losses are divided by the global batch, so the trainer must not divide them again (transformers >= 5.19;
    # earlier versions look at `model_accepts_loss_kwargs`, set below).
    loss_is_scaled_for_ga = True
    _tag_names: ClassVar[list[str]] = ["unlearnkit"]

    def __init__(
        self, model: Any, args: UnlearnConfig | None = None, *, forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None, streams: Mapping[str, Dataset] | None = None,
        mix: MixSpec | None = None, template: TemplateSpec | None = None, processing_class: Any = None,
        peft_config: Any = None, eval_dataset: Any = None, **others: Any,
    ) -> None:  # fmt: skip
        self.args = args = args or UnlearnConfig(output_dir="unlearned")
        _refuse_settings(args)
        self.objective = self.build_objective()
        sets = {"forget": forget_dataset, "retain": retain_dataset, **(streams or {})}
        chosen = self._chosen_streams({name: data for name, data in sets.items() if data is not None})
        if processing_class is None:
            processing_class = load_tokenizer(model if isinstance(model, str) else model.config._name_or_path)
        self.template = Template.for_tokenizer(processing_class, template)
        self.tokenized = {s: self._tokenize(data, processing_class, s) for s, data in chosen.items()}
        self.mix = StreamMix({s: t.rows for s, t in self.tokenized.items()}, mix, seed=args.seed)
        if isinstance(model, str):
            model = load_model(model)
        self._has_fresh_adapter = peft_config is not None
        self.reference_name = reference.choose(
            args.reference, self.objective.needs, has_fresh_adapter=self._has_fresh_adapter
        )
        #: Names the weights before training, which key the cached reference.
        self.target_fingerprint = model_fingerprint(model)
        model = _with_adapter(model, peft_config, args)
        collator = StreamCollator(
            tuple(self.tokenized), pad_id=_pad_id(processing_class), multiple_of=args.pad_to_multiple_of
        )
        self._follow_epoch = FollowEpoch()
        super().__init__(
            model=model, args=args, data_collator=others.pop("data_collator", None) or collator,
            train_dataset=self.mix, eval_dataset=self._eval_streams(eval_dataset, processing_class),
            processing_class=processing_class, **others,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True
        if self.args.n_gpu > 1:
            raise ModelError("several GPUs need one process each; start with `accelerate launch` or --launch ddp")
        for callback in (self._follow_epoch, CompleteCheckpoints(), RefuseZeroGradients(self.accelerator)):
            self.add_callback(callback)
        self._reference: reference.Reference | None = self._live_reference()
        self._metric_sums: dict[str, Tensor] = {}
        self._metric_steps = 0

    # ---- What a method says ------------------------------------------------------------------------------------

    def build_objective(self) -> Objective:
        """The loss of this method, from `self.args`."""
        raise NotImplementedError

    def with_retain(self, forget_term: Objective) -> Objective:
        """forget_weight * `forget_term` + retain_weight * the retain term that the config names."""
        term = retain_term(self.args.retain)
        terms = [(self.args.forget_weight, forget_term)]
        if term is not None and self.args.retain_weight != 0:
            terms.append((self.args.retain_weight, term))
        return WeightedSum(tuple(terms))

    # ---- Data --------------------------------------------------------------------------------------------------

    def _chosen_streams(self, sets: dict[str, Dataset]) -> dict[str, Dataset]:
        """The streams that the objective reads, in canonical columns; no row may be forgotten and kept at once."""
        missing = [s for s in self.objective.streams if s not in sets]
        if missing:
            raise DataError(
                f"this objective reads the stream {missing[0]!r}, but there is none; give {missing[0]}_dataset "
                f"(data.{missing[0]} in a recipe)" + ("" if missing[0] != "retain" else ", or set retain: none")
            )
        for unused in set(sets) - set(self.objective.streams):
            logger.warning("the stream %r is not read by this objective and is left out", unused)
        chosen = {s: canonical(sets[s], where=f"the {s} set") for s in self.objective.streams}
        if "forget" in chosen and not self.args.allow_overlap:
            for name, data in chosen.items():
                if name != "forget":
                    refuse_overlap(chosen["forget"], data, retain_name=name)
        return chosen

    def _tokenize(self, data: Dataset, tokenizer: Any, name: str) -> Tokenized:
        return tokenize_stream(
            data, tokenizer, self.template, max_length=self.args.max_length, truncate=self.args.truncate, name=name
        )

    def _eval_streams(self, data: Any, tokenizer: Any) -> Any:
        if data is None:
            return None
        if isinstance(data, Mapping):
            return {name: self._eval_streams(part, tokenizer) for name, part in data.items()}
        return [{"eval": [row]} for row in self._tokenize(canonical(data), tokenizer, "eval").rows]

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        processes = self.accelerator.num_processes
        self._follow_epoch.order = EpochOrder(
            self.mix,
            micro_batch_size=self._train_batch_size,
            num_micro_batches=self.args.gradient_accumulation_steps * processes,
            num_processes=processes,
            strategy=self.args.train_sampling_strategy,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return self._follow_epoch.order

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Right-padded batches of one stream called "eval"."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        data = self.eval_dataset[data] if isinstance(data, str) else data
        collator = StreamCollator(("eval",), pad_id=_pad_id(self.processing_class))
        loader: DataLoader[Any] = DataLoader(data, batch_size=self.args.eval_batch_size, collate_fn=collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    # ---- Loss --------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Sequences and target tokens per stream in the global batch, summed over micro-batches and processes."""
        if not batch_samples or "eval" in batch_samples[0]:
            return None
        self._metric_steps += 1  # called once per optimizer step
        streams = tuple(self.tokenized)
        table = count_streams(batch_samples, streams, device)
        return as_counts(self.accelerator.reduce(table, reduction="sum"), streams)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the global loss, times the processes over which gradients are averaged."""
        counts = num_items_in_batch
        if counts is None:
            counts = as_counts(count_streams([inputs], tuple(inputs), self.args.device), tuple(inputs))
        step = Step(model, inputs, counts, self._reference, unwrapped=self.accelerator.unwrap_model(model))
        out: LossOutput = self.objective(step, inputs)
        for name, value in out.metrics.items():
            self._metric_sums[name] = self._metric_sums.get(name, torch.zeros_like(value)) + value.detach()
        loss = out.loss * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, None, None]:
        """Mean NLL per target token of an evaluation batch."""
        batch = self._prepare_inputs(inputs)["eval"]
        with torch.no_grad(), self.compute_loss_context_manager():
            out = logprobs.target_logits(model, batch, unwrapped=self.accelerator.unwrap_model(model))
            loss = -logprobs.label_logps(out.logits_NV, out.targets_N).mean()
        return loss, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every term's metrics: means over the optimizer steps since the last log, over all processes."""
        if "loss" in logs and self._metric_sums and self._metric_steps > 0:
            names = sorted(self._metric_sums)
            sums = torch.stack([self._metric_sums[n].float() for n in names])
            sums = self.accelerator.reduce(sums, reduction="sum") / self._metric_steps
            logs.update(zip(names, sums.tolist(), strict=True))
            self._metric_sums, self._metric_steps = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 x tokens x parameters, over all streams."""
        tokens = sum(b["input_ids"].numel() for b in inputs.values())
        return 6 * tokens * int(self.model.num_parameters(exclude_embeddings=True))

    # ---- Optimizer and reference -------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as transformers sets it up, or Muon on the hidden matrices."""
        if self.optimizer is None and self.args.matrix_optimizer == "muon":
            from unlearnkit.training.optim import build_muon

            self.optimizer = build_muon(
                self.model if model is None else model,
                lr=self.args.matrix_learning_rate,
                adamw_lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                adamw_betas=(self.args.adam_beta1, self.args.adam_beta2),
                adamw_eps=self.args.adam_epsilon,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; cached reference log-probs are computed (or read) from the weights as they are before the first step."""
        if self.reference_name == "cached" and self._reference is None:
            self._attach_cached_logps()
            self._reference = reference.CachedLogps()
        self._metric_sums, self._metric_steps = {}, 0
        return super().train(*args, **kwargs)

    def _live_reference(self) -> reference.Reference | None:
        """A provider that asks a model, made while the policy still is the target model."""
        if self.reference_name == "adapter_off":
            # The wrapped model is only known once training has begun, so it is looked up at every call.
            return reference.AdapterOff(lambda **inputs: self.model_wrapped(**inputs), self.model)
        if self.reference_name == "frozen":
            return reference.FrozenModel(self._prepare_frozen(copy.deepcopy(self.model)))
        return None

    def _prepare_frozen(self, model: Any) -> Any:
        model = model.eval().requires_grad_(False)
        if self.is_deepspeed_enabled:
            from trl.models.utils import prepare_deepspeed

            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            from trl.models.utils import prepare_fsdp

            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def _attach_cached_logps(self) -> None:
        """Put reference log-probs beside the tokens of the streams that ask for them."""
        target_off = self.model.disable_adapter() if self._has_fresh_adapter else contextlib.nullcontext()
        for stream in _reference_streams(self.objective):
            data = self.tokenized[stream]
            with target_off:
                scores = reference.cached_scores(
                    self.model, data.rows, data_fingerprint=data.fingerprint,
                    model_fingerprint=self.target_fingerprint, precision=self.accelerator.mixed_precision,
                    device=self.args.device, pad_id=_pad_id(self.processing_class),
                    autocast=self.accelerator.autocast(), process_index=self.accelerator.process_index,
                    num_processes=self.accelerator.num_processes,
                )  # fmt: skip
            for row, values in zip(data.rows, scores, strict=True):
                row["reference_logps"] = values  # type: ignore[typeddict-unknown-key]


def _reference_streams(objective: Objective) -> tuple[str, ...]:
    """The streams whose terms need reference log-probs."""
    from unlearnkit.training.objective import Needs

    if isinstance(objective, WeightedSum):
        return tuple(dict.fromkeys(s for _, term in objective.terms for s in _reference_streams(term)))
    return objective.streams if Needs.REFERENCE_LOGPS in objective.needs else ()


def _pad_id(tokenizer: Any) -> int:
    """Any id will do, because masks come from lengths."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _refuse_settings(args: UnlearnConfig) -> None:
    if args.remove_unused_columns:
        raise RecipeError("training.remove_unused_columns must stay false: batches are nested by stream")
    if args.train_sampling_strategy not in ("random", "sequential", "group_by_length"):
        raise RecipeError(
            f"training.train_sampling_strategy is {args.train_sampling_strategy!r}; use random, sequential or "
            "group_by_length"
        )
    if args.matrix_optimizer not in (None, "muon"):
        raise RecipeError(f"training.matrix_optimizer is {args.matrix_optimizer!r}; use muon or leave it out")


def _with_adapter(model: Any, peft_config: Any, args: UnlearnConfig) -> Any:
    if peft_config is not None:
        from peft import get_peft_model

        # The adapter's initial values are part of the run, so they come from its seed.
        set_seed(args.seed)
        try:
            model = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ModelError(f"the adapter does not fit the model ({error}); check model.lora.target_modules") from error
    checkpointing = getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)
    if checkpointing and hasattr(model, "peft_config"):
        # Frozen embeddings give inputs without gradient, and a checkpoint would then cut every adapter off.
        model.enable_input_require_grads()
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "no parameter of the model is trainable; train the weights, or give peft_config (model.lora) for an adapter"
        )
    return model
