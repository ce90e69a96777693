"""A recipe's way: train, evaluate, report. Every stage is skipped if its result lies there already."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from unlearnkit.data.documents import is_documents
from unlearnkit.data.identity import content
from unlearnkit.data.parts import stream_of
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.results import Evaluation
from unlearnkit.evaluation.runner import versions
from unlearnkit.files import fingerprint
from unlearnkit.measuring import Measuring
from unlearnkit.preflight import (
    bare_trainer,
    load_streams,
    mix_of,
    note_retain_term,
    refuse_missing_model,
    streams_read,
    tokenizer_texts,
    training_args,
)
from unlearnkit.preflight_evaluation import check_during, during_suite, note_answers_asked
from unlearnkit.preflight_training import answers_identity, refuse_unfit
from unlearnkit.recipe import Recipe, StreamSpec
from unlearnkit.run import RunDir, claim, device_name, model_identity, peak_memory_bytes, resolve_path
from unlearnkit.serving import change_serving, serving_differs, set_serving

Say = Callable[[str], None]


@dataclass
class Pipeline:
    """One recipe in one run folder.

    Args:
        recipe: the resolved recipe.
        run: its folder.
        say: told what happens, a line at a time.
        progress: show progress bars.
    """

    recipe: Recipe
    run: RunDir
    say: Say = print
    progress: bool = True

    def __post_init__(self) -> None:
        self.model_path = resolve_path(self.recipe.model.path)
        refuse_missing_model(self.model_path)

    # ---- Train ---------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train and save, or take what is there; returns the manifest."""
        args = training_args(self.recipe, str(self.run.checkpoints))
        read = streams_read(self.recipe, args)
        check_during(self.recipe)
        for remark in (
            partial(note_retain_term, self.recipe, args),
            partial(note_answers_asked, self.recipe),
        ):
            remark(lambda text: self.say(f"{self.recipe.name}: {text}"))
        streams = load_streams(self.recipe, read, args=args)
        refuse_unfit(self.recipe, args, streams)
        on_disk = args.documents_on_disk
        inputs: dict[str, Any] = {f"data.{n}": _content(data, on_disk) for n, data in streams.items()}
        inputs |= answers_identity(self.recipe, args)
        inputs["model"] = model_identity(self.model_path)
        if (small := getattr(args, "small", None)) is not None:
            inputs["small"] = model_identity(resolve_path(small))
        manifest = claim(self.run, self.recipe, inputs) if _is_main() else (self.run.read_manifest() or {})
        if manifest.get("status") in ("trained", "complete") and self.run.model.is_dir():
            self.say(f"{self.recipe.name}: already trained, using {self.run.model}")
            return self._serve_as_asked(manifest, bare_trainer(self.recipe, args).serving_defaults())
        started = time.perf_counter()
        trainer = self._trainer(args, streams, read)
        before = trainer.target_fingerprint
        self.say(f"{self.recipe.name}: {self._what(trainer)}")
        trainer.train(resume_from_checkpoint=self._checkpoint())
        entries = self._facts(trainer, before, time.perf_counter() - started)
        self._save(trainer, entries)
        del trainer
        gc.collect()
        return entries

    def _trainer(self, args: Any, streams: Mapping[str, Any], read: tuple[str, ...]) -> Any:
        from unlearnkit import lookup
        from unlearnkit.training.callbacks import LogFile
        from unlearnkit.training.memory import ReturnMemory
        from unlearnkit.training.progress import QuietProgress, keep_quiet

        recipe = self.recipe
        model, tokenizer = self.load_target(streams)
        streams = self._with_alternates(streams, model, tokenizer)
        trainer = lookup.method(recipe.method).trainer(
            model=model, args=args, streams={name: streams[name] for name in read}, mix=mix_of(recipe, read),
            template=recipe.data.template, processing_class=tokenizer, peft_config=self._peft_config(),
        )  # fmt: skip
        set_serving(trainer.served, recipe)
        keep_quiet(trainer)
        trainer.add_callback(LogFile(self.run.log))
        self._add_during(trainer)
        trainer.add_callback(ReturnMemory())
        trainer.add_callback(QuietProgress(recipe.name, enabled=self.progress and _is_main()))
        return trainer

    def _with_alternates(self, streams: Mapping[str, Any], model: Any, tokenizer: Any) -> Mapping[str, Any]:
        """The streams with alternate answers by the target model, where the recipe asks for them.

        They are kept beside the recipe, so that everybody can read what the model was taught to say.
        """
        spec = self.recipe.data.alternates
        if spec is None:
            return streams
        from unlearnkit.data.alternates import with_alternates, write_alternates
        from unlearnkit.data.streams import load_stream

        if self.run.alternates.exists() and self._last_checkpoint() is not None:
            # The run goes on with what it began with, whatever has become of the cache.
            return {**streams, "forget": load_stream(StreamSpec(path=str(self.run.alternates)))}
        self.say(f"{self.recipe.name}: alternate answers, {spec.per_prompt} a question, by the target model")
        forget = with_alternates(model, tokenizer, streams["forget"], spec, self.recipe.data.template)
        if _is_main():
            write_alternates(forget, self.run.alternates)
        return {**streams, "forget": forget}

    def _add_during(self, trainer: Any) -> None:
        """Evaluation while training, where the recipe asks for it."""
        from unlearnkit.training.during import EvaluateDuring
        from unlearnkit.training.trajectory import TRAJECTORY

        spec, suite = self.recipe.evaluation, during_suite(self.recipe)
        trajectory = self.run.root / TRAJECTORY
        if suite is None or spec.every is None:
            trajectory.unlink(missing_ok=True)  # of an earlier attempt that was evaluated
            return
        trainer.add_callback(
            EvaluateDuring(
                suite, every=spec.every, limit=spec.during_limit, keep=spec.keep, stop=spec.stop,
                reference=_resolved(spec.reference), template=self.recipe.data.template,
                batch_tokens=spec.batch_tokens, max_new_tokens=spec.max_new_tokens, trajectory=trajectory,
            )
        )  # fmt: skip

    def load_target(self, streams: Mapping[str, Any]) -> tuple[Any, Any]:
        """The target model and its tokenizer, loaded or made."""
        from unlearnkit.models import load, tiny

        spec = self.recipe.model
        if spec.create is not None:
            create = spec.create
            tokenizer = tiny.train_tokenizer(
                tokenizer_texts(self.recipe, streams), vocab_size=create.vocab_size
            )
            model = tiny.create_model(
                tokenizer, hidden_size=create.hidden_size, num_layers=create.num_layers,
                num_heads=create.num_heads, intermediate_size=create.intermediate_size,
                max_position_embeddings=create.max_position_embeddings, seed=create.seed,
            )  # fmt: skip
            return model, tokenizer
        assert self.model_path is not None
        tokenizer = load.load_tokenizer(spec.tokenizer or self.model_path, revision=spec.revision)
        # An adapter remembers where its base model lies, so a folder is named from the root.
        path = str(Path(self.model_path).resolve()) if Path(self.model_path).is_dir() else self.model_path
        model = load.load_model(
            path, dtype=spec.dtype, attn_implementation=spec.attn_implementation, revision=spec.revision
        )
        return model, tokenizer

    def _peft_config(self) -> Any:
        if self.recipe.model.lora is None:
            return None
        from peft import LoraConfig

        spec = self.recipe.model
        # The adapter remembers which revision of its base model it belongs to.
        defaults = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "revision": spec.revision}
        return LoraConfig(**{**defaults, **(spec.lora or {})})

    def _last_checkpoint(self) -> Path | None:
        from unlearnkit.training.callbacks import last_complete_checkpoint

        return last_complete_checkpoint(self.run.checkpoints)

    def _checkpoint(self) -> str | None:
        from unlearnkit.training.callbacks import remove_incomplete_checkpoints

        if _is_main():
            for path in remove_incomplete_checkpoints(self.run.checkpoints):
                self.say(f"{self.recipe.name}: {path.name} was not written to the end and is left out")
        found = self._last_checkpoint()
        if found is not None:
            self.say(f"{self.recipe.name}: going on from {found.name}")
        return None if found is None else str(found)

    def _save(self, trainer: Any, entries: dict[str, Any]) -> None:
        """Write the model under a temporary name, then the manifest, then give the model its own name.

        A kill at any point leaves either no model, so that the training is taken up again, or a whole one
        with its manifest. Weights that are split over processes are named by what was saved.
        """
        from unlearnkit.models.card import write_card
        from unlearnkit.models.load import model_fingerprint, saved_fingerprint

        unfinished = self.run.root / "model.part"
        if _is_main():
            shutil.rmtree(unfinished, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(unfinished))
        trainer.accelerator.wait_for_everyone()
        if _is_main():
            (unfinished / "training_args.bin").unlink(missing_ok=True)
            write_card(unfinished, self.recipe, self.model_path)
            split = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.served is not None
            model = trainer.accelerator.unwrap_model(trainer.model)
            name = saved_fingerprint(str(unfinished)) if split else model_fingerprint(model)
            entries["unlearned_model"] = {"fingerprint": name}
            entries.update(self.run.update_manifest(**entries))
            unfinished.rename(self.run.model)
        trainer.accelerator.wait_for_everyone()

    def _serve_as_asked(self, manifest: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What a trained pair is served with is written anew where the recipe has changed."""
        from unlearnkit.models.load import saved_fingerprint

        if _is_main() and serving_differs(self.run.model, self.recipe, defaults):
            # In this order: a kill in between leaves a manifest that says that the name is not known.
            manifest = self.run.update_manifest(status="trained", unlearned_model={"fingerprint": None})
            change_serving(self.run.model, self.recipe, defaults)
        if _is_main() and defaults and not manifest.get("unlearned_model", {}).get("fingerprint"):
            name = saved_fingerprint(str(self.run.model))
            manifest = self.run.update_manifest(unlearned_model={"fingerprint": name})
        PartialState().wait_for_everyone()
        return manifest

    def _what(self, trainer: Any) -> str:
        rows = ", ".join(f"{len(t.rows)} {name}" for name, t in trainer.tokenized.items())
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        reference = "" if trainer.reference_name == "none" else f", reference {trainer.reference_name}"
        retain, forgets = trainer.args.retain, "forget" in self.recipe.data.streams
        term = f", retain term {retain}" if forgets or retain != "none" else ""
        chosen = "".join(
            f", {t.chosen} of {name}" for name, t in trainer.tokenized.items() if t.chosen is not None
        )
        chosen += "".join(f", {name} in {b}" for name, b in _blocks(trainer).items())
        what = f"{trained:,} trainable parameters{chosen}{term}{reference}"
        return f"{self.recipe.method} on {rows} examples, {what}"

    def _facts(self, trainer: Any, before: str, seconds: float) -> dict[str, Any]:
        """The manifest's entries about a finished training."""
        from unlearnkit.data.streams import describe_source

        specs, root = self.recipe.data.streams, self.recipe.data.root
        model, blocks = trainer.model, _blocks(trainer)
        sources = {name: describe_source(specs[stream_of(name)], root) for name in trainer.tokenized}
        sources |= {name: getattr(one, "source", name) for name, one in trainer.answers.items()}
        found = (getattr(callback, "selection", None) for callback in trainer.callback_handler.callbacks)
        selection = next((entry for entry in found if entry is not None), None)
        sizes: dict[bool, list[int]] = {True: [], False: []}
        for p in model.parameters():
            sizes[p.requires_grad].append(getattr(p, "ds_numel", p.numel()))  # ZeRO-3 leaves p empty
        return {
            "status": "trained",
            "seconds": {"train": round(seconds, 2)},
            "versions": versions(),
            "device": device_name(),
            "processes": trainer.accelerator.num_processes,
            "peak_memory_bytes": peak_memory_bytes(),
            "reference": trainer.reference_name,
            "retain": {"term": trainer.args.retain, "weight": trainer.args.retain_weight},
            "data": {
                name: {
                    "source": sources[name],
                    "fingerprint": t.fingerprint,
                    "examples": len(t.rows), "tokens": t.num_tokens, "target_tokens": t.num_target_tokens,
                    "cut_rows": t.cut_rows, "split_rows": t.split_rows,
                    **({} if t.chosen is None else {"selection": t.chosen.facts()}),
                    **(blocks[name].facts() if name in blocks else {}),
                }
                for name, t in trainer.tokenized.items()
            },
            "model": {
                "path": self.model_path, "fingerprint": before,
                "parameters": sum(sizes[True]) + sum(sizes[False]),
                "trainable": sum(sizes[True]),
            },
            "steps": trainer.state.global_step,
            "tokens_seen": trainer.tokens_seen,
            **({} if selection is None else {"selection": selection}),
        }  # fmt: skip

    # ---- Evaluate ------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Evaluation]:
        """Evaluate the retain model where there is one, the target model, and the unlearned model."""
        started = time.perf_counter()
        measuring = Measuring(self.recipe, self.run, self.model_path, self.progress)
        found = measuring.main()
        if not found and not self.recipe.evaluation.also:
            return {}
        measuring.also()
        if _is_main():
            seconds = {"evaluate": round(time.perf_counter() - started, 2)}
            known = "evaluate" in (self.run.read_manifest() or {}).get("seconds", {})
            # Reading known answers again costs nothing; what they did cost stays in the manifest.
            self.run.update_manifest(
                status="complete", **({"seconds": seconds} if measuring.asked or not known else {})
            )
        return found

    # ---- Report --------------------------------------------------------------------------------------------

    def report(self) -> Path | None:
        """Write the report from what lies in the folder."""
        if not _is_main():
            return None
        from unlearnkit.reporting import write_report

        return write_report(self.run.root, None).html


def _resolved(reference: str | None) -> str | None:
    """Where the retain model lies; None while it is still to be made."""
    try:
        return resolve_path(reference)
    except ModelError:
        return None


def _blocks(trainer: Any) -> dict[str, Any]:
    """Stream -> the blocks that its documents stand in, where they do."""
    return {name: rows.blocks for name, rows in trainer.mix.streams.items() if rows.blocks is not None}


def _content(data: Any, on_disk: bool) -> str:
    """Names a data set by its rows; documents on the disk without reading them all at once."""
    if on_disk and is_documents(data):
        return content(data)
    return fingerprint([list(map(str, row.values())) for row in data])


def _is_main() -> bool:
    return bool(PartialState().is_main_process)
