"""`unlearnkit data augment`: a language model writes augmentation for a set, which a stream then reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from unlearnkit.data.augment import AugmentSpec
    from unlearnkit.recipe import TemplateSpec

#: Raised when the written rows change, so that an older file is never taken for a new one.
_FORMAT = 1


def augment(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, folder or hub id, as a recipe's streams.")
    ],
    model: Annotated[str, typer.Option(help="Who writes: a folder, run:NAME or a hub id.")],
    kind: Annotated[
        str,
        typer.Option(help="paraphrase (question and answer in other words) or perturbed (wrong answers)."),
    ],
    output: Annotated[Path, typer.Option("--out", "--output", help="The .jsonl file to write.")],
    per_row: Annotated[int, typer.Option(help="Rows to write for each row.")] = 2,
    name: Annotated[str | None, typer.Option(help="The set in a folder or hub id, such as forget10.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Your names of the columns, such as '{question: q, answer: a}'.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is asked for an answer, with {question} and {answer} in it."),
    ] = None,
    question_prompt: Annotated[
        str | None, typer.Option(help="What is asked for a question in other words (paraphrase).")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the draws; lower is safer and repeats more.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with that mass.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="A longer text is left out.")] = 128,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens in one batch.", min=1)] = 16384,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    template: Annotated[
        str | None,
        typer.Option(
            help="How prompts are written, such as '{chat_template_kwargs: {enable_thinking: false}}'."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    preview: Annotated[int, typer.Option(help="Rows to show.", min=0)] = 3,
) -> None:
    """Let a language model write paraphrases of a forget set, or wrong answers to it.

    The same command goes on where a killed one stopped.
    """
    from unlearnkit.annotating import columns_option
    from unlearnkit.data.augment import AugmentSpec, answered_rows
    from unlearnkit.preflight import refuse_missing_model
    from unlearnkit.run import resolve_path
    from unlearnkit.terminal import quiet, say

    quiet()
    spec = AugmentSpec(kind, per_row, temperature, top_p, prompt, question_prompt, max_new_tokens, seed)
    form = _template(template)
    if output.suffix != ".jsonl":
        raise UserError(f"--out {output} must end in .jsonl: rows are written as JSON lines")
    if output.resolve() == Path(source).expanduser().resolve():
        raise UserError(f"--out {output} is the input itself; choose another name")
    data = _read(source, name, columns_option(columns), limit)
    rows = answered_rows(data, source)
    path = str(resolve_path(model))
    refuse_missing_model(path)
    made_with = _identity(spec, form, path, data)
    if output.exists() and not force:
        _refuse_other(output, made_with)
        say(f"{output} was written with these settings already; --force writes it anew")
        return
    found = _write_with(path, rows, spec, form, batch_tokens)
    facts = {"kind": kind, "model": model, "made_with": made_with}
    written = [_row(row, pair, facts) for row, pairs in zip(rows, found, strict=True) for pair in pairs]
    if not written:
        raise UserError(
            f"{model} wrote nothing that could be used for {len(rows)} rows: every text was empty, the row's "
            f"own, or longer than {max_new_tokens} tokens; raise --max-new-tokens, or take a model that "
            "follows instructions"
        )
    _write(output, written)
    _show(found, rows, spec, preview)
    say(f"Wrote {len(written)} rows for {len(rows)} to {output}")


def _template(text: str | None) -> TemplateSpec:
    """Raises UserError: something else than the settings of a template."""
    from unlearnkit.recipe import TemplateSpec
    from unlearnkit.strict import Reader
    from unlearnkit.yamlfile import parse_yaml

    if text is None:
        return TemplateSpec()
    document = parse_yaml(text, "--template", numbered=False)
    document.raise_problems()
    spec = Reader(document).section(TemplateSpec, document.values[""], ("template",))
    document.raise_problems()
    assert spec is not None
    return spec


def _read(source: str, name: str | None, columns: dict[str, str] | None, limit: int | None) -> Dataset:
    from unlearnkit.data.streams import load_stream
    from unlearnkit.recipe import StreamSpec

    return load_stream(StreamSpec(path=source, name=name, columns=columns, limit=limit), name="input")


def _identity(spec: AugmentSpec, form: TemplateSpec, model: str, data: Dataset) -> str:
    """Names all that was asked for; what a model at the same place says today is not looked at."""
    from unlearnkit.data.identity import content
    from unlearnkit.files import fingerprint

    place = str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model
    return fingerprint(
        _FORMAT, dataclasses.asdict(spec), spec.wordings, dataclasses.asdict(form), place, content(data)
    )


def _refuse_other(output: Path, made_with: str) -> None:
    """Raises UserError: the file holds something else than what is asked for."""
    try:
        with output.open(encoding="utf-8") as file:
            found = json.loads(file.readline()).get("made_with")
    except (ValueError, AttributeError, OSError):
        found = None
    if found != made_with:
        what = "was written with other settings" if found else "exists already"
        raise UserError(f"--out {output} {what}; choose another name, or add --force to overwrite it")


def _write_with(
    path: str, rows: Sequence[Mapping[str, Any]], spec: AugmentSpec, form: TemplateSpec, batch_tokens: int
) -> list[list[tuple[Any, str]]]:
    from unlearnkit.commands import start_processes
    from unlearnkit.data.augment import augment as augmented
    from unlearnkit.data.template import Template
    from unlearnkit.models.load import load_model, load_tokenizer
    from unlearnkit.terminal import say

    start_processes()
    tokenizer = load_tokenizer(path)
    shape = Template.for_tokenizer(tokenizer, form)
    if not shape.chat and (
        spec.prompt is None or (spec.kind == "paraphrase" and spec.question_prompt is None)
    ):
        say(
            "note: the model has no chat template, so it may not follow the instructions that ship; give "
            "--prompt (for paraphrases --question-prompt as well) with words that it knows how to continue"
        )
    model = load_model(path)
    return augmented(model, tokenizer, rows, spec, template=shape, batch_tokens=batch_tokens, progress=True)


def _row(row: Mapping[str, Any], pair: tuple[Any, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a stream reads, and where it came from."""
    from unlearnkit.data.cells import answer_text

    chat = not isinstance(pair[0], str)
    return {
        ("prompt" if chat else "question"): pair[0],
        ("completion" if chat else "answer"): pair[1],
        "original_id": row["example_id"],
        "original_question": row["prompt"],
        "original_answer": answer_text(row["completion"]),
        **facts,
    }


def _write(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from unlearnkit.evaluation.share import is_main
    from unlearnkit.files import write_atomic

    if is_main():
        write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _show(
    found: Sequence[Sequence[tuple[Any, str]]],
    rows: Sequence[Mapping[str, Any]],
    spec: AugmentSpec,
    preview: int,
) -> None:
    """The first rows with what was made of them, and how many got less than was asked for."""
    from unlearnkit.data.cells import answer_text
    from unlearnkit.evaluation.questions import shown
    from unlearnkit.terminal import say

    for row, pairs in [one for one in zip(rows, found, strict=True) if one[1]][:preview]:
        say(f"{shown(row['prompt'])} | {answer_text(row['completion'])}")
        for prompt, answer in pairs:
            say(f"  {shown(prompt)} | {answer}")
    if few := sum(len(pairs) < spec.per_row for pairs in found):
        none = sum(not pairs for pairs in found)
        say(
            f"{few} of {len(rows)} rows got fewer than {spec.per_row} ({none} of them none): what was empty, "
            "repeated, the row's own or cut off was left out"
        )
