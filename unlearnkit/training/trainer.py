"""UnlearnTrainer: the only file that knows the insides of `transformers.Trainer`.

A method's trainer says what to minimise (`build_objective`). This class says how: streams are paired by a
StreamMix, all rows of a micro-batch go through the model once, every loss is divided by the size of the whole
global batch, and the reference model is provided in its cheapest form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template, tokenize_stream
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.data.parts import streams_of, tokenize_parts
from unlearnkit.errors import ModelError
from unlearnkit.models.load import load_model, model_fingerprint
from unlearnkit.recipe import MixSpec, TemplateSpec
from unlearnkit.training import documents, logprobs, reference
from unlearnkit.training.callbacks import NO_GRADIENT, CompleteCheckpoints, FollowEpoch, RefuseZeroGradients
from unlearnkit.training.config import UnlearnConfig
from unlearnkit.training.gather import gather_values
from unlearnkit.training.objective import (
    Objective,
    Step,
    WeightedSum,
    as_counts,
    count_streams,
    fuse,
    reference_streams,
    tap_of,
)
from unlearnkit.training.packing import packs
from unlearnkit.training.precision import KeepLogitsNarrow
from unlearnkit.training.prepare import (
    as_frozen,
    chosen_streams,
    frozen_copy,
    load_tokenizer_of,
    pad_id,
    planned_epochs,
    refuse_settings,
    same_memory,
    with_adapter,
)
from unlearnkit.training.retain import retain_term
from unlearnkit.training.selective import selecting_terms, survey
from unlearnkit.training.state import KeepStates
from unlearnkit.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from datasets import Dataset

    from unlearnkit.data.answers import Answers
    from unlearnkit.training.served import Served


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
        eval_dataset: a data set, or a mapping of them, whose mean NLL per target token is reported as
        `eval_loss`.
        others: `NAME_dataset` is the stream NAME, such as `pairs_dataset`; the rest is passed on to
        `transformers.Trainer` (callbacks, optimizers, ...).

    Raises:
        DataError, ModelError, RecipeError: before any training starts.
    """

    # Our losses are divided by the global batch, so the trainer must not divide them again (transformers >=
    # 5.19; earlier versions look at `model_accepts_loss_kwargs`, set below).
    loss_is_scaled_for_ga = True
    _tag_names: ClassVar[list[str]] = ["unlearnkit"]
    #: The kind of combined model that is served in the end; None where it is the model that was trained.
    served_kind: ClassVar[str | None] = None
    #: Whether switching a new adapter off gives the target model back.
    adapts_target: ClassVar[bool] = True

    def __init__(
        self, model: Any, args: UnlearnConfig | None = None, *, forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None, streams: Mapping[str, Dataset] | None = None,
        mix: MixSpec | None = None, template: TemplateSpec | None = None, processing_class: Any = None,
        peft_config: Any = None, eval_dataset: Any = None, **others: Any,
    ) -> None:  # fmt: skip
        self.args = args = args or UnlearnConfig(output_dir="unlearned")
        refuse_settings(args)
        self.objective = self.build_objective()
        named = {key: others.pop(key) for key in tuple(others) if key.endswith("_dataset")}
        further = {key.removesuffix("_dataset"): data for key, data in named.items()}
        chosen = chosen_streams(
            {"forget": forget_dataset, "retain": retain_dataset, **further, **(streams or {})},
            streams_of(self.objective.streams),
            args,
        )
        peft_config = self.default_adapter() if peft_config is None else peft_config
        self.adapted = peft_config is not None
        self._has_fresh_adapter = self.adapted and self.adapts_target
        #: Says how what was trained is served, where that is more than `model`.
        self.served: Served | None = None
        self.reference_name = reference.choose(
            args.reference, self.objective.needs, has_fresh_adapter=self._has_fresh_adapter,
            retain=args.retain,
        )  # fmt: skip
        documents.refuse_documents(args, self.objective, chosen, self.reference_name)
        if processing_class is None:
            processing_class = load_tokenizer_of(model)
        self.processing_class = processing_class
        self.template = Template.for_tokenizer(processing_class, template)
        self.answers = self.build_answers()
        #: Part -> its tokens; a stream of pairs has two parts (see `data/parts.py`).
        self.tokenized, rows = tokenize_parts(
            self.objective.streams, chosen,
            lambda data, part: documents.tokenized(
                data, processing_class, self.template, args, self.objective, part
            ),
            self.answers, epochs=planned_epochs(args, chosen, mix), seed=args.seed,
            max_length=args.max_length, pack=args.pack_documents,
        )  # fmt: skip
        self.mix = StreamMix(rows, mix, seed=args.seed)
        if isinstance(model, str):
            model = load_model(model)
        documents.refuse_beyond_positions(self.tokenized, getattr(model, "config", None))
        #: Names the weights before training, which key the cached reference.
        self.target_fingerprint = model_fingerprint(model)
        model = self.put_adapter(self.build_policy(model), peft_config)
        self.choose_parameters(model)
        packed = packs(model, args.packing)
        documents.say_if_padded(args, packed=packed)
        collator = StreamCollator(
            tuple(self.tokenized), pad_id=pad_id(processing_class), multiple_of=args.pad_to_multiple_of,
            packed=packed,
        )  # fmt: skip
        self._follow_epoch = FollowEpoch()
        super().__init__(
            model=model, args=args, data_collator=others.pop("data_collator", None) or collator,
            train_dataset=self.mix, eval_dataset=self._eval_streams(eval_dataset, processing_class),
            processing_class=processing_class, **others,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True
        # A checkpoint is complete once the states of the terms are in it.
        for callback in (self._follow_epoch, KeepStates(self.objective), CompleteCheckpoints()):
            self.add_callback(callback)
        self._step_metrics = StepMetrics(tuple(self.tokenized))
        self.add_callback(RefuseZeroGradients(self.accelerator, self._must_have_gradients))
        self.add_callback(KeepLogitsNarrow(self.accelerator))
        self._reference: reference.Reference | None = self._live_reference()
        self._eval_sums = [0.0, 0.0]

    # ---- What a method says --------------------------------------------------------------------------------

    def build_objective(self) -> Objective:
        """The loss of this method, from `self.args`."""
        raise NotImplementedError

    def with_retain(self, forget_term: Objective) -> Objective:
        """forget_weight * `forget_term` + retain_weight * the retain term that the config names."""
        terms = [(self.args.forget_weight, forget_term)]
        for stream in self.args.retain_streams if self.args.retain_weight != 0 else ():
            term = retain_term(self.args.retain, stream)
            if term is not None:
                terms.append((self.args.retain_weight, term))
        return WeightedSum(tuple(terms))

    def build_answers(self) -> dict[str, Answers]:
        """Where the answers of parts such as "forget.refusal" come from, by part."""
        return {}

    def serving_defaults(self) -> dict[str, float | None]:
        """What a combined model is served with where nobody says; empty where one model is served."""
        return {}

    def default_adapter(self) -> Any:
        """The adapter that is trained where none is given; None for the weights themselves."""
        return None

    def build_policy(self, model: Any) -> Any:
        """The network to train, made from the target model: by default that itself."""
        return model

    def put_adapter(self, model: Any, peft_config: Any) -> Any:
        """The policy with a new adapter on it, where one is wanted."""
        return with_adapter(model, peft_config, self.args)

    def reference_network(self) -> Any:
        """A frozen part of the policy that answers as the target model does; None where there is none."""
        return None

    def choose_parameters(self, model: Any) -> None:
        """Switch off the gradient of what this method does not train; the adapter is already on `model`."""

    # ---- Data ----------------------------------------------------------------------------------------------

    def _eval_streams(self, data: Any, tokenizer: Any) -> Any:
        if data is None:
            return None
        if isinstance(data, Mapping):
            return {name: self._eval_streams(part, tokenizer) for name, part in data.items()}
        found = tokenize_stream(
            canonical(data), tokenizer, self.template, name="eval", max_length=self.args.max_length,
            truncate=self.args.truncate,
        )  # fmt: skip
        return [{"eval": [row]} for row in found.rows]

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
        """Batches of one stream called "eval", filled up with empty items so that no row is repeated."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        data = self.eval_dataset[data] if isinstance(data, str) else data
        items = data if isinstance(data, list) else self._eval_streams(data, self.processing_class)
        rest = -len(items) % (self.args.eval_batch_size * self.accelerator.num_processes)
        filled: Any = [*items, *[{}] * rest]
        collator = StreamCollator(("eval",), pad_id=pad_id(self.processing_class))
        loader = DataLoader(filled, batch_size=self.args.eval_batch_size, collate_fn=collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    # ---- Loss ----------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Sequences and target tokens per stream in the global batch: all micro-batches, all processes."""
        if not batch_samples:
            return None
        streams = tuple(self.tokenized)
        table = self.sum_over_processes(count_streams(batch_samples, streams, device))
        self._step_metrics.begin_step(table)  # the trainer asks once per optimizer step
        counts = as_counts(table, streams)
        # What the model's numbers decide is decided over the whole global batch; see training/selective.py.
        if len(batch_samples) > 1 and selecting_terms(self.objective):
            self.model_wrapped.train()  # as in the pass that is trained on, also after an evaluation
            with self.compute_loss_context_manager():
                survey(
                    self.objective, batch_samples, lambda batch: self._step(self.model_wrapped, batch, counts)
                )
        return counts

    def _must_have_gradients(self) -> bool:
        """Whether every stream has had a target by now, and selectors that read the model left any."""
        if not bool(self._step_metrics.seen.all()):
            return False
        kept = self._step_metrics.kept if selecting_terms(self.objective) else None
        return kept is None or float(self.sum_over_processes(kept)) > 0

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`."""
        total: Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

    def _step(self, model: Any, batch: Any, counts: Any) -> Step:
        return Step(
            model, batch, counts, self._reference, unwrapped=self.accelerator.unwrap_model(model),
            tap=tap_of(self.objective), gather=partial(gather_values, self.accelerator),
            number=self.state.global_step,
        )  # fmt: skip

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the global loss, times the processes over which gradients are
        averaged."""
        counts = num_items_in_batch
        if counts is None:
            counts = as_counts(count_streams([inputs], tuple(inputs), self.args.device), tuple(inputs))
        out = self.objective(self._step(model, inputs, counts), inputs)
        if torch.is_grad_enabled() and not out.loss.requires_grad:
            raise ModelError(NO_GRADIENT)
        self._step_metrics.add(out.metrics, out.owners)
        loss = out.loss * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Summed NLL of an evaluation batch; `evaluation_loop` divides by all target tokens."""
        batch = fuse(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            out = logprobs.target_logits(model, batch, unwrapped=self.accelerator.unwrap_model(model))
            nll = -logprobs.label_logps(out.logits_NV, out.targets_N).sum()
        self._eval_sums[0] += float(nll)
        self._eval_sums[1] += len(out.targets_N)
        return nll, None, None

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None,
        ignore_keys: Any = None, metric_key_prefix: str = "eval",
    ) -> Any:  # fmt: skip
        """As in transformers, but the loss is the mean over all target tokens, not a mean of batch means."""
        self._eval_sums = [0.0, 0.0]
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        sums = torch.tensor(self._eval_sums, device=self.args.device)
        nll, tokens = self.sum_over_processes(sums).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = nll / max(tokens, 1.0)
        return output._replace(num_samples=sum(bool(item) for item in dataloader.dataset))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every term's metrics: means over the optimizer steps since the last log, over all processes."""
        if "loss" in logs:
            logs.update(self._step_metrics.take(self.sum_over_processes))
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 x tokens x parameters, over all streams, with padding."""
        tokens = sum(int(b["input_ids"].numel()) for b in inputs.values())
        return 6 * tokens * int(self.model.num_parameters(exclude_embeddings=True))

    @property
    def tokens_seen(self) -> int:
        """Tokens of all rows so far, without padding: all streams and processes, also before a resume."""
        order = self._follow_epoch.order
        return 0 if order is None else order.tokens_seen(self.state.global_step)

    # ---- Optimizer and reference ---------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as transformers sets it up, or Muon on the hidden matrices."""
        if getattr(self, "optimizer", None) is None and self.args.matrix_optimizer == "muon":
            from unlearnkit.training.optim import build_muon

            self.optimizer = build_muon(
                self.model if model is None else model, lr=self.args.matrix_learning_rate,
                adamw_lr=self.args.learning_rate, weight_decay=self.args.weight_decay,
                adamw_betas=(self.args.adam_beta1, self.args.adam_beta2), adamw_eps=self.args.adam_epsilon,
            )  # fmt: skip
        made: torch.optim.Optimizer = super().create_optimizer(*([] if model is None else [model]))
        return made

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; cached reference log-probs are those of the weights as they are before the first step."""
        if self.reference_name == "cached" and self._reference is None:
            self._attach_cached_logps()
            self._reference = reference.CachedLogps()
        self._step_metrics.clear()
        resumed = args[0] if args else kwargs.get("resume_from_checkpoint")
        #: The checkpoint's folder, if it was named.
        self.resumed_from: str | None = resumed if isinstance(resumed, str) else None
        for callback in self.callback_handler.callbacks:
            if callable(attach := getattr(callback, "attach", None)):
                attach(self)  # a callback that measures the model asks for its trainer
        return super().train(*args, **kwargs)

    def unlearned_model(self) -> Any:
        """What is served in the end: the trained model, or the combination that it is a part of."""
        if self.served is None:
            return self.accelerator.unwrap_model(self.model)
        return self.served.model(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is served in the end; a checkpoint (`_internal_call`) holds what is trained."""
        if self.served is None or _internal_call:
            super().save_model(output_dir, _internal_call)
        else:
            self.served.save(self, Path(output_dir or self.args.output_dir))

    def _live_reference(self) -> reference.Reference | None:
        """A provider that asks a model, made while the policy still is the target model."""
        if self.reference_name == "adapter_off":
            # The wrapped model is only known once training has begun, so it is looked up at every call.
            return reference.AdapterOff(lambda **inputs: self.model_wrapped(**inputs), self.model)
        if self.reference_name == "frozen":
            if (part := self.reference_network()) is not None:
                return reference.FrozenModel(as_frozen(same_memory(part), self.accelerator))
            layers = reference.layers_needed(self.objective)
            return reference.FrozenModel(frozen_copy(self.model, self.accelerator, layers=layers))
        return None

    def _attach_cached_logps(self) -> None:
        """Put reference log-probs beside the tokens of the streams that ask for them."""
        for stream in reference_streams(self.objective):
            data = self.tokenized[stream]
            adapter = self.model if self._has_fresh_adapter else None
            part = self.reference_network()
            with reference.without_adapter(adapter) if adapter is not None else contextlib.nullcontext():
                scores = reference.cached_scores(
                    self.model if part is None else part, data.rows, data_fingerprint=data.fingerprint,
                    model_fingerprint=self.target_fingerprint, pad_id=pad_id(self.processing_class),
                    accelerator=self.accelerator,
                )  # fmt: skip
            for row, values in zip(data.rows, scores, strict=True):
                row["reference_logps"] = values  # type: ignore[typeddict-unknown-key]
