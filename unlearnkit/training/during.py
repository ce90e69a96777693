"""Evaluation during training: a light suite every so often, its trajectory, and the checkpoint to keep."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from unlearnkit.errors import ModelError, RecipeError, UserError
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.suite import Suite
from unlearnkit.files import atomic_path, write_atomic
from unlearnkit.preflight_evaluation import evaluation_or_model
from unlearnkit.recipe import TemplateSpec
from unlearnkit.training.callbacks import last_complete_checkpoint
from unlearnkit.training.light_suite import (
    asks_for_retain,
    from_data_sets,
    known_retain,
    lighten,
    refuse_unknown_metrics,
)
from unlearnkit.training.selection import Choice, Every, Keep, Stop, check_rules
from unlearnkit.training.trajectory import TRAJECTORY, numbers_of, read_trajectory, values_of
from unlearnkit.training.undisturbed import undisturbed

_LOG = logging.getLogger(__name__)


class EvaluateDuring(TrainerCallback):  # type: ignore[misc]
    """Runs a suite before training, every so often, and at the end; keeps the best checkpoint by a rule.

    Training goes on as if nothing had happened: the weights are the same to the bit as without it. Each
    evaluation is logged as `eval_<metric>` and becomes a line of the trajectory. With `keep`, the trainable
    weights of the best checkpoint so far lie in `best/` of the output folder and are put back into the model
    when training ends; `selection` then says which step that was.

    Example:
        >>> during = EvaluateDuring(
        ...     "forget", {"forget": "forget.jsonl", "retain": "retain.jsonl"}, every="20 steps",
        ...     keep={"lowest": "forget_rouge", "with": "retain_rouge", "at_least": 0.95},
        ...     stop={"patience": 3},
        ... )  # doctest: +SKIP
        >>> trainer = NPOTrainer(model, args, forget_dataset=forget, callbacks=[during])  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> during.selection["step"]  # doctest: +SKIP
        40

    Args:
        suite: a shipped suite's name, a YAML file, or a loaded suite.
        data: the suite's data, as in `evaluate`; a `datasets.Dataset` does too.
        every: "50 steps", "epoch" or "2 epochs".
        limit: examples at most of each data set, chosen by their ids; None takes all.
        keep: {"lowest": METRIC, "with": METRIC, "at_least": share of the value at step 0}, or "highest".
        stop: {"patience": evaluations without a better checkpoint}, {"when": METRIC, "below": level} or
            {"when": METRIC, "above": level}.
        reference: the retain model, its run or its evaluation; without one, what compares
            with a retain model is not measured.
        template: how prompts are written (default: as the trainer writes them).
        batch_tokens, max_new_tokens: as in `evaluate`.
        trajectory: the file for the lines (default: `trajectory.jsonl` in the output folder).

    Raises:
        RecipeError: a rule that cannot be read, or one that names a metric the suite does not have.
    """

    def __init__(
        self, suite: str | Path | Suite = "forget", data: Mapping[str, Any] | None = None, *,
        every: str = "epoch", limit: int | None = 100, keep: Mapping[str, Any] | None = None,
        stop: Mapping[str, Any] | None = None, reference: str | Path | None = None,
        template: TemplateSpec | None = None, batch_tokens: int = 16384, max_new_tokens: int | None = None,
        trajectory: str | Path | None = None,
    ) -> None:  # fmt: skip
        if wrong := check_rules(every, keep, stop):
            raise RecipeError("; ".join(f"{name} {message}" for name, message in wrong))
        self.every = Every.parse(every)
        self.keep = None if keep is None else Keep.parse(keep)
        self.stop = None if stop is None else Stop.parse(stop)
        folder = Path(tempfile.mkdtemp(prefix="unlearnkit-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        whole = from_data_sets(suite, data, folder)
        refuse_unknown_metrics(Choice(self.keep, self.stop).metrics, whole)
        self.suite, kept = lighten(whole, limit, folder)
        self._retain = known_retain(reference, self.suite, kept)
        self._reference = reference if self._retain is None and asks_for_retain(self.suite) else None
        self._options: dict[str, Any] = {"batch_tokens": batch_tokens, "max_new_tokens": max_new_tokens}
        self._template = template
        self._given_trajectory = trajectory
        self.lines: list[dict[str, Any]] = []
        self.choice = Choice(self.keep, self.stop)
        self._trainer: Any = None
        self._halted: tuple[dict[str, torch.Tensor], int, float] | None = None
        #: The manifest's entry about the choice, once training has ended; None without a rule.
        self.selection: dict[str, Any] | None = None

    # ---- Callback ------------------------------------------------------------------------------------------

    def attach(self, trainer: Any) -> None:
        """Learn whose training this is; the trainer calls this before it begins.

        Raises:
            ModelError: the weights will be split over processes.
        """
        self._trainer = trainer
        if getattr(trainer, "served_kind", None) == "uld":
            raise RecipeError(
                "evaluation during training would measure ULD's assistant alone, which remembers; evaluate "
                "trainer.unlearned_model() after training"
            )
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        kind = str(trainer.accelerator.distributed_type).rsplit(".", 1)[-1]
        split = "DeepSpeed ZeRO-3" if plugin is not None and plugin.zero_stage == 3 else None
        if kind in ("FSDP", "MEGATRON_LM"):
            split = kind
        if split is not None:
            raise ModelError(
                f"evaluation during training cannot run where {split} splits the weights over processes: "
                "each process answers questions of its own; leave evaluation.every out (the model is then "
                "measured after training), or give every process whole weights (launch with ddp or zero2)"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the target, or take up the trajectory of the checkpoint that training goes on from."""
        if self._trainer is None:
            raise RecipeError("EvaluateDuring works in an UnlearnTrainer; give it to one as a callback")
        self.selection, self._halted, self.choice = None, None, Choice(self.keep, self.stop)
        self.lines = []
        if state.global_step == 0:
            self._prune(())
            self._measure(state, control)
            return
        known = self._from_main([] if not self._is_main else read_trajectory(self._trajectory))
        self.lines = [line for line in known if line["step"] <= state.global_step]
        if self.choice.metrics and not any(line["step"] == 0 for line in self.lines):
            raise UserError(
                f"{self._trajectory} does not say what the target was like at step 0, which the rule of "
                f"evaluation.{'keep' if self.keep else 'stop'} needs; remove the checkpoints to begin anew"
            )
        self._write_lines()
        for line in self.lines:
            self.choice.take(line["step"], values_of(line))
        best = self.choice.best
        if best is not None and not self._from_main(self._is_main and self._weights(best[0]).is_file()):
            _LOG.warning("the weights of step %d are gone, so they cannot be kept", best[0])
            self.choice.best = None
        if self.choice.stopped is not None:
            # The trainer makes one more step before it looks; that step is taken back.
            self._halted = self._copied(), state.global_step, state.epoch
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when it is time, and after the last step."""
        if self._halted is not None:
            weights, state.global_step, state.epoch = self._halted
            self._put(weights)
            control.should_log = control.should_save = False
        elif self.every.due(state.global_step, state.epoch) or state.global_step >= state.max_steps:
            self._measure(state, control)
            if self.choice.stopped is not None:
                control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step that was taken back leaves no checkpoint."""
        if self._halted is not None:
            control.should_log = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step if that is still to be done, and put the kept weights into the model."""
        if not self.lines or self.lines[-1]["step"] != state.global_step:
            self._measure(state, control)
        self.selection = self.choice.entry(state.global_step, state.max_steps)
        if self.choice.best is not None and self.choice.best[0] != state.global_step:
            from safetensors.torch import load_file

            self._trainer.accelerator.wait_for_everyone()
            self._put(load_file(self._weights(self.choice.best[0])) if self._is_main else {})

    # ---- Measuring -----------------------------------------------------------------------------------------

    def _measure(self, state: Any, control: Any) -> None:
        """One evaluation: its line, its log entry, and the weights if they are the best so far."""
        trainer, step = self._trainer, state.global_step
        line: dict[str, Any] = {"step": step, "epoch": round(state.epoch or 0.0, 6), "metrics": {}}
        try:
            metrics = self._evaluated()
            if step == 0:
                self._refuse_unmeasured(metrics)
            line["metrics"] = {name: numbers_of(result) for name, result in metrics.items()}
        except ModelError as error:
            # A model that has diverged: training shows it by its loss, and an earlier checkpoint may be kept.
            if step == 0 or trainer.accelerator.num_processes > 1:
                raise
            line["error"] = str(error)
            _LOG.warning("step %d could not be measured: %s", step, error)
        line = self._from_main(line)
        if self.choice.take(step, values_of(line)):
            self._save(step)
        self.lines.append(line)
        self._write_lines()
        # The log of the loss is still to come; logging ours would take its turn.
        should_log = control.should_log
        measured = {name: value for name, value in values_of(line).items() if value is not None}
        trainer.log({f"eval_{name}": value for name, value in measured.items()})
        control.should_log = should_log

    def _evaluated(self) -> Mapping[str, Any]:
        trainer = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        template = self._template or getattr(getattr(trainer, "template", None), "spec", None)
        with undisturbed(model):
            if self._reference is not None:  # once; its answers are kept on disk
                self._retain = evaluate(
                    evaluation_or_model(str(self._reference)), suite=self.suite, template=template,
                    role="retain", label="retain model", progress=False, **self._options,
                )  # fmt: skip
                self._reference = None
            found = evaluate(
                model, trainer.processing_class, suite=self.suite, reference=self._retain, template=template,
                cache=False, progress=False, role="unlearned", label=f"step {trainer.state.global_step}",
                **self._options,
            )  # fmt: skip
        return found.metrics

    def _refuse_unmeasured(self, metrics: Mapping[str, Any]) -> None:
        for name in self.choice.metrics:
            if not metrics[name].measured:
                raise RecipeError(
                    f"evaluation.{'keep' if self.keep else 'stop'} goes by {name}, which cannot be measured "
                    f"on the target ({metrics[name].note or 'no value'}); name another metric, or give what "
                    "it needs"
                )

    # ---- Files and processes -------------------------------------------------------------------------------

    @property
    def _is_main(self) -> bool:
        return bool(self._trainer.accelerator.is_main_process)

    @property
    def _trajectory(self) -> Path:
        return Path(self._given_trajectory or Path(self._trainer.args.output_dir) / TRAJECTORY)

    def _weights(self, step: int) -> Path:
        return Path(self._trainer.args.output_dir) / "best" / f"step-{step}.safetensors"

    def _from_main(self, value: Any) -> Any:
        """The main process's value, in every process: all have to decide the same."""
        if self._trainer.accelerator.num_processes == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def _write_lines(self) -> None:
        if self._is_main:
            write_atomic(self._trajectory, "".join(json.dumps(line) + "\n" for line in self.lines))

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def _copied(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._trained().items()}

    def _save(self, step: int) -> None:
        """Write the trainable weights; they lie there before the trajectory says that they won."""
        if not self._is_main:
            return
        from safetensors.torch import save_file

        with atomic_path(self._weights(step)) as temporary:
            save_file(self._copied(), temporary)
        self._prune({step, *self._resumable()})

    def _resumable(self) -> set[int]:
        """The best step as of the checkpoint that a killed run would go on from."""
        checkpoint = last_complete_checkpoint(self._trainer.args.output_dir)
        if checkpoint is None:
            return set()
        last, before = int(checkpoint.name.rsplit("-", 1)[1]), Choice(self.keep, None)
        for line in self.lines:
            if line["step"] <= last:
                before.take(line["step"], values_of(line))
        return set() if before.best is None else {before.best[0]}

    def _prune(self, steps: Iterable[int]) -> None:
        """Remove the weights of all other steps."""
        kept = {self._weights(step).name for step in steps}
        if self._is_main:
            for path in self._weights(0).parent.glob("*step-*"):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put weights into the model; processes other than the main one get its."""
        for name, parameter in self._trained().items():
            if name in weights:
                parameter.copy_(weights[name])
            if self._trainer.accelerator.num_processes > 1:
                torch.distributed.broadcast(parameter.data, src=0)
