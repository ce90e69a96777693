"""`unlearnkit check`: a recipe and its data validated without a model, and what would be trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unlearnkit import lookup
from unlearnkit.commands import quiet
from unlearnkit.errors import RecipeError, UnreachableError, UserError
from unlearnkit.recipe import Recipe, load_recipe
from unlearnkit.run import resolve_path

console = Console(soft_wrap=True, highlight=False)


def check_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print what a recipe would do; what cannot be reached from here is said, not guessed.

    Raises:
        RecipeError, DataError, ModelError: everything that can be known to fail without loading the model.
    """
    recipe = load_recipe(name, overrides)
    quiet()
    args, objective = objective_of(recipe)
    notes: list[str] = []
    tokenizer = _tokenizer(recipe, notes)
    facts = _Facts(recipe, args, objective, notes)
    facts.print_head()
    facts.print_streams(tokenizer)
    facts.print_evaluation()
    for note in notes:
        console.print(f"[yellow]note[/yellow]: {note}")
    console.print(f"[green]{recipe.name} is valid[/green]" + (" (with the notes above)" if notes else ""))


def objective_of(recipe: Recipe) -> tuple[Any, Any]:
    """The method's config and objective, without a model.

    Raises:
        RecipeError: a value that the config refuses.
    """
    import tempfile

    entry = lookup.method(recipe.method)
    data = recipe.data
    try:
        args = entry.config(
            output_dir=tempfile.gettempdir(), use_cpu=True, seed=recipe.seed,
            **{"max_length": data.max_length, "truncate": data.truncate, "allow_overlap": data.allow_overlap}
            | {k: v for k, v in recipe.training.items() if k not in ("use_cpu", "tf32", "fp16")},
        )  # fmt: skip
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{recipe.source}: training cannot be set up: {str(error).splitlines()[0]}") from error
    trainer = object.__new__(entry.trainer)  # only its composition is wanted, and that reads nothing but `args`
    trainer.args = args
    return args, trainer.build_objective()


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

        recipe = self.recipe
        model = recipe.model.path or "made from scratch"
        lora = f", LoRA {recipe.model.lora}" if recipe.model.lora is not None else ", all weights"
        reference = choose(
            self.args.reference, self.objective.needs, has_fresh_adapter=recipe.model.lora is not None
        )
        console.print(f"[bold]{recipe.name}[/bold] ({recipe.source})")
        console.print(f"method     {recipe.method}: {lookup.summary(recipe.method)}", markup=False)
        console.print(f"model      {model}{lora}", markup=False)
        console.print(f"reference  {_REFERENCES[reference]}")

    def print_streams(self, tokenizer: Any) -> None:
        """Examples and tokens of every stream, and the number of steps."""
        from unlearnkit.data.overlap import refuse_overlap
        from unlearnkit.data.streams import describe_source, load_stream

        data = self.recipe.data
        streams: dict[str, Any] = {}
        for name, specs in data.streams.items():
            try:
                streams[name] = load_stream(specs, root=data.root, name=name)
            except UnreachableError as error:
                self.notes.append(str(error))
        if missing := [s for s in self.objective.streams if s not in data.streams]:
            raise RecipeError(f"{self.recipe.source}: {self.recipe.method} reads the stream {missing[0]!r}; give data.{missing[0]}")
        if "forget" in streams and not data.allow_overlap:
            for name in self.objective.streams:
                if name != "forget" and name in streams:
                    refuse_overlap(streams["forget"], streams[name], retain_name=name)
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in ("stream", "examples", "tokens", "trained tokens", "source"):
            table.add_column(heading, justify="left" if heading in ("stream", "source") else "right")
        counted = self._tokenized(streams, tokenizer)
        for name, specs in data.streams.items():
            t = counted.get(name)
            table.add_row(
                name if name in self.objective.streams else f"{name} (not read)",
                f"{len(streams[name]):,}" if name in streams else "?",
                f"{t.num_tokens:,}" if t else "?", f"{t.num_target_tokens:,}" if t else "?",
                describe_source(specs, data.root),
            )  # fmt: skip
        console.print(table)
        self._print_steps({n: t.rows for n, t in counted.items()} or streams)

    def _tokenized(self, streams: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
        from unlearnkit.data.formats import Template, tokenize_stream
        from unlearnkit.pipeline import texts_of

        if tokenizer is None or not streams:
            return {}
        create = self.recipe.model.create
        if create is not None:
            from unlearnkit.models.tiny import train_tokenizer

            chosen = create.tokenizer_streams or list(streams)
            tokenizer = train_tokenizer(
                (text for name in chosen for row in streams[name] for text in texts_of(row)), vocab_size=create.vocab_size
            )
        data = self.recipe.data
        template = Template.for_tokenizer(tokenizer, data.template)
        return {
            name: tokenize_stream(rows, tokenizer, template, max_length=data.max_length, truncate=data.truncate, name=name)
            for name, rows in streams.items()
        }

    def _print_steps(self, streams: dict[str, Any]) -> None:
        from unlearnkit.data.mixing import StreamMix

        read = {s: streams[s] for s in self.objective.streams if s in streams}
        if len(read) < len(self.objective.streams):
            return
        items = len(StreamMix(read, self.recipe.data.mix, seed=self.recipe.seed))
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        steps = math.ceil(items / batch) * self.args.num_train_epochs if self.args.max_steps <= 0 else self.args.max_steps
        console.print(f"training   {math.ceil(steps):,} steps of {batch} items on one process ({items:,} items an epoch)")

    def print_evaluation(self) -> None:
        """The suite, its data, and what it will not be able to say."""
        from unlearnkit.data.streams import describe_source
        from unlearnkit.pipeline import suite_of

        suite = suite_of(self.recipe)
        if suite is None:
            console.print("evaluation none")
            return
        sources = ", ".join(f"{k} = {describe_source(v, suite.root)}" for k, v in suite.data.items() if v)
        console.print(f"evaluation {suite.name} (version {suite.version}): {len(suite.metrics)} metrics on {sources}", markup=False)
        if self.recipe.evaluation.reference is None and any(m.kind == "forget_quality" for m in suite.metrics.values()):
            self.notes.append("no retain model is named (evaluation.reference), so forget quality will not be measured")


_REFERENCES = {
    "none": "none needed",
    "cached": "cached log-probs of the target model, computed once and kept on disk",
    "adapter_off": "the target model by switching the adapter off",
    "frozen": "a frozen copy of the target model in memory",
}
