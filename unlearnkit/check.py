"""`unlearnkit check`: a recipe and its data validated without a model, and what would be trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearnkit import lookup
from unlearnkit.data.parts import stream_of, streams_of
from unlearnkit.errors import DataError, UserError
from unlearnkit.preflight import (
    bare_trainer,
    load_streams,
    mix_of,
    model_config,
    note_retain_term,
    objective_of,
    refuse_missing_model,
    tokenizer_texts,
    training_args,
)
from unlearnkit.preflight_evaluation import check_during, check_evaluation, note_answers_asked, suite_of
from unlearnkit.preflight_training import refuse_unfit
from unlearnkit.recipe import Recipe, load_recipe
from unlearnkit.run import resolve_path, shown_source
from unlearnkit.terminal import quiet

console = Console(soft_wrap=True, highlight=False)


def check_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print what a recipe would do; what cannot be reached from here is said, not guessed.

    Raises:
        RecipeError, DataError, ModelError: everything that can be known to fail without loading the model.
    """
    recipe = load_recipe(name, overrides)
    quiet()
    args = training_args(recipe, tempfile.gettempdir(), on_cpu=True)
    objective = objective_of(recipe, args)
    notes: list[str] = []
    refuse_missing_model(resolve_path(recipe.model.path) if not _is_run(recipe) else None)
    note_retain_term(recipe, args, notes.append)
    tokenizer = _tokenizer(recipe, notes)
    facts = _Facts(recipe, args, objective, notes)
    facts.print_head()
    facts.print_streams(tokenizer)
    facts.print_evaluation()
    for note in notes:
        console.print(f"[yellow]note[/yellow]: {escape(note)}")
    with_notes = " (with the notes above)" if notes else ""
    console.print(f"[green]{escape(recipe.name)} is valid[/green]{with_notes}")


def _is_run(recipe: Recipe) -> bool:
    return bool(recipe.model.path and recipe.model.path.startswith("run:"))


def _tokenizer(recipe: Recipe, notes: list[str]) -> Any:
    from unlearnkit.models.load import load_tokenizer

    spec = recipe.model
    if spec.create is not None:
        return "create"
    try:
        path = spec.tokenizer or resolve_path(spec.path)
        return load_tokenizer(str(path), revision=spec.revision)
    except UserError as error:
        if spec.path and spec.path.startswith((".", "/", "~")) and spec.tokenizer is None:
            raise
        notes.append(f"the tokenizer cannot be reached from here, so tokens are not counted ({error})")
        return None


class _Facts:
    """The printed parts of a check."""

    def __init__(self, recipe: Recipe, args: Any, objective: Any, notes: list[str]) -> None:
        self.recipe, self.args, self.objective, self.notes = recipe, args, objective, notes

    def print_head(self) -> None:
        """Method, model, reference."""
        from unlearnkit.training.reference import choose

        recipe, lora = self.recipe, self.recipe.model.lora
        model = recipe.model.path or "made from scratch"
        own = bare_trainer(recipe, self.args).default_adapter()
        trained = f"LoRA {lora}" if lora is not None else "all weights"
        if lora is None and own is not None:
            trained = f"LoRA of rank {own.r} (the method's own) on some of its layers"
        adapts = lookup.method(recipe.method).trainer.adapts_target
        reference = choose(
            self.args.reference, self.objective.needs, has_fresh_adapter=lora is not None and adapts,
            retain=self.args.retain,
        )  # fmt: skip
        console.print(f"[bold]{escape(recipe.name)}[/bold] ({escape(str(shown_source(recipe.source)))})")
        console.print(f"method     {recipe.method}: {lookup.summary(recipe.method)}", markup=False)
        console.print(f"model      {model}, {trained}", markup=False)
        if defaults := bare_trainer(recipe, self.args).serving_defaults():
            spec = recipe.serving
            given = {key: getattr(spec, key, None) for key in defaults}
            alpha, rate = (given[k] if given[k] is not None else defaults[k] for k in defaults)
            filtered = f"filter {rate:g}" if rate else "no filter"
            console.print(f"served     with the target model, alpha {alpha:g}, {filtered}")
        if (small := getattr(self.args, "small", None)) is not None:
            console.print(f"small      {small}", markup=False)
        if "forget" in recipe.data.streams or self.args.retain != "none":
            console.print(f"retain     {self.args.retain}, weight {self.args.retain_weight:g}")
        console.print(f"reference  {_REFERENCES[reference]}")

    def print_streams(self, tokenizer: Any) -> None:
        """Examples and tokens of every stream, and the number of steps."""
        from unlearnkit.data.streams import describe_source
        from unlearnkit.training.documents import refuse_beyond_positions

        data, read = self.recipe.data, streams_of(self.objective.streams)
        streams = load_streams(self.recipe, read, self.notes.append, args=self.args)
        refuse_unfit(self.recipe, self.args, streams)
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in ("stream", "examples", "tokens", "trained tokens", "source"):
            table.add_column(heading, justify="left" if heading in ("stream", "source") else "right")
        counted, rows = self._tokenized(streams, tokenizer)
        refuse_beyond_positions(counted, model_config(self.recipe))
        for name, specs in data.streams.items():
            parts = [part for part in counted if stream_of(part) == name]
            for part in parts or [name]:
                t = counted.get(part)
                size = len(t.rows) if t and part != name else len(streams[name]) if name in streams else None
                table.add_row(
                    escape(part if name in read else f"{name} (not read)"),
                    "?" if size is None else f"{size:,}",
                    f"{t.num_tokens:,}" if t else "?", f"{t.num_target_tokens:,}" if t else "?",
                    escape(describe_source(specs, data.root)),
                )  # fmt: skip
        console.print(table)
        for part, t in counted.items():
            if t.chosen is not None:
                console.print(f"selected   {part}: {t.chosen}", markup=False)
                self.notes += t.chosen.remarks
        self._print_steps(rows or streams)

    def _tokenized(self, streams: dict[str, Any], tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tokens by part and rows by stream, of what can be reached; without a tokenizer neither."""
        from unlearnkit.data.formats import Template
        from unlearnkit.data.parts import tokenize_parts
        from unlearnkit.models.tiny import train_tokenizer
        from unlearnkit.training.documents import tokenized
        from unlearnkit.training.prepare import planned_epochs

        if tokenizer is None or not streams:
            return {}, {}
        data, create = self.recipe.data, self.recipe.model.create
        if create is not None:
            try:
                texts = tokenizer_texts(self.recipe, streams)
            except DataError:
                return {}, {}  # noted where the stream could not be reached
            tokenizer = train_tokenizer(texts, vocab_size=create.vocab_size)
        template = Template.for_tokenizer(tokenizer, data.template)
        parts = [part for part in self.objective.streams if stream_of(part) in streams]
        if data.alternates is not None and "forget.alternate" in parts:
            parts.remove("forget.alternate")
            self.notes.append("alternate answers are generated by the target model when the run starts")
        read = streams_of(parts)
        return tokenize_parts(
            parts, streams,
            lambda rows, part: tokenized(rows, tokenizer, template, self.args, self.objective, part),
            bare_trainer(self.recipe, self.args).build_answers(),
            epochs=planned_epochs(self.args, {s: streams[s] for s in read}, mix_of(self.recipe, read)),
            seed=self.recipe.seed, max_length=data.max_length, pack=self.args.pack_documents,
        )  # fmt: skip

    def _print_steps(self, streams: dict[str, Any]) -> None:
        from unlearnkit.data.mixing import StreamMix

        args, read = self.args, streams_of(self.objective.streams)
        if any(name not in streams for name in read):
            return
        mix = StreamMix({s: streams[s] for s in read}, mix_of(self.recipe, read), seed=self.recipe.seed)
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        steps, per_epoch = args.max_steps, math.ceil(len(mix) / batch)
        if steps <= 0:
            steps = math.ceil(per_epoch * args.num_train_epochs)
        if callable(remarks := getattr(bare_trainer(self.recipe, args), "remarks", None)):
            self.notes += remarks(steps / per_epoch)
        shares = ", ".join(f"{count:,} {stream}" for stream, count in mix.shares.items())
        console.print(
            f"training   {steps:,} steps of {batch} items on one process ({len(mix):,} items an epoch"
            f"{': ' + shares if shares else ''})",
            markup=False,
        )

    def print_evaluation(self) -> None:
        """The suite, its data, and what it will not be able to say."""
        from unlearnkit.data.streams import describe_source

        spec = self.recipe.evaluation
        check_during(self.recipe, self.notes.append)
        check_evaluation(self.recipe, self.notes.append)
        note_answers_asked(self.recipe, self.notes.append)
        suite = suite_of(self.recipe)
        if suite is None:
            console.print("evaluation none" if not spec.also else f"evaluation {', '.join(spec.also)}")
            return
        sources = ", ".join(f"{k} = {describe_source(v, suite.root)}" for k, v in suite.data.items() if v)
        console.print(
            f"evaluation {suite.name} (version {suite.version}): {len(suite.metrics)} metrics on {sources}",
            markup=False,
        )
        if spec.also:
            console.print(f"also       {', '.join(spec.also)}", markup=False)
        if spec.attacks:
            roles = " and the ".join(spec.attack_roles)
            console.print(f"attacks    {', '.join(spec.attacks)}, on the {roles} model", markup=False)
        if spec.every:
            console.print(f"meanwhile  suite {spec.during or 'forget'} every {spec.every}", markup=False)
        compared = any(m.kind == "forget_quality" for m in suite.metrics.values())
        if compared and self.recipe.evaluation.reference is None:
            self.notes.append(
                "no retain model is named (evaluation.reference), so forget quality will not be measured"
            )


_REFERENCES = {
    "none": "none needed",
    "cached": "cached log-probs of the target model, computed once and kept on disk",
    "adapter_off": "the target model by switching the adapter off",
    "frozen": "a frozen copy of the target model in memory",
}
