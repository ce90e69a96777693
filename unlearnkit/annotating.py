"""`unlearnkit data annotate`: find what is risky in a data set, look at it, and write it beside the rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.text import Text

    from unlearnkit.data.spans import Span
    from unlearnkit.recipe import AnnotateSpec

#: What the best known classes are shown in; others take turns with the rest.
_COLOURS = {"high": "red", "middle": "yellow", "low": "green"}
_FURTHER = ("cyan", "magenta", "blue")
#: Characters of a text that a preview shows, and how many of them before the first span.
_SHOWN, _BEFORE = 600, 120


def annotate(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, folder or hub id, as a recipe's streams.")
    ],
    names: Annotated[str | None, typer.Option(help="A file of names, one a line.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A name; between slashes a regular expression. Repeatable.")
    ] = None,
    parts: Annotated[
        bool,
        typer.Option("--parts/--no-parts", help="Also find the first and the last word of a name alone."),
    ] = True,
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", help="Find names in small or capital letters too.")
    ] = False,
    pattern: Annotated[list[str] | None, typer.Option(help="A regular expression. Repeatable.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="A text classifier, folder or hub id, which scores each sentence.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The classifier's label whose score counts.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="A class and its score (default: high=0.99 and middle=0.0001). Repeatable."),
    ] = None,
    call: Annotated[
        list[str] | None, typer.Option(help="A function of yours, package.module:function. Repeatable.")
    ] = None,
    risk: Annotated[str, typer.Option(help="The class of names, patterns and functions.")] = "high",
    columns: Annotated[
        str | None, typer.Option(help="Your names of the columns, such as '{prompt: q, completion: a}'.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The .jsonl file to write; without it nothing is written.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    preview: Annotated[int, typer.Option(help="Rows with spans to show.", min=0)] = 5,
) -> None:
    """Find risky stretches in a data set's documents or answers, and write them into its column spans."""
    from unlearnkit.recipe import AnnotateSpec

    parts_said, case = None if parts else False, True if ignore_case else None
    specs = [
        AnnotateSpec(names=one, parts=parts_said, ignore_case=case, risk=risk) for one in (names, name) if one
    ]
    specs += [AnnotateSpec(patterns=pattern, risk=risk)] if pattern else []
    specs += [AnnotateSpec(call=one, risk=risk) for one in call or ()]
    specs += _classifier(classifier, label, threshold)
    if not specs:
        raise UserError(
            "nothing says what is risky; give --names FILE, --name, --pattern, --classifier or --call"
        )
    if not risk.strip():
        raise UserError("--risk is empty; give a class such as high")
    _refuse_output(output, source, force=force)
    _annotate_file(source, columns_option(columns), specs, output, preview)


def _classifier(path: str | None, label: str | None, thresholds: Sequence[str] | None) -> list[AnnotateSpec]:
    """Raises UserError: options of a classifier that do not belong together, or a threshold that is none."""
    from unlearnkit.recipe import AnnotateSpec

    if path is None:
        if label is not None or thresholds:
            raise UserError("--label and --threshold belong to a classifier; give --classifier PATH as well")
        return []
    if not label:
        raise UserError("--classifier needs --label: the label whose score counts, such as --label toxic")
    found: dict[str, float] = {}
    for text in thresholds or ():
        risk, _, score = text.partition("=")
        try:
            found[risk.strip()] = float(score)
        except ValueError:
            raise UserError(
                f"--threshold {text!r} is not a class and a score; write --threshold high=0.99"
            ) from None
    return [AnnotateSpec(classifier=path, label=label, thresholds=found or None)]


def columns_option(text: str | None) -> dict[str, str] | None:
    """`--columns` as a mapping.

    Raises:
        UserError: something else than a mapping of names.
    """
    if text is None:
        return None
    from unlearnkit.strict import MISFIT, fit
    from unlearnkit.yamlfile import parse_yaml

    value = fit(parse_yaml(text, "--columns", numbered=False).values[""], dict[str, str])
    if value is MISFIT:
        raise UserError(f"--columns {text!r} is no mapping; write --columns '{{prompt: q, completion: a}}'")
    return dict(value)


def _refuse_output(output: Path | None, source: str, *, force: bool) -> None:
    """Raises UserError: an output that cannot be written, or that would replace a file unasked."""
    if output is None:
        return
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl: rows are written as JSON lines")
    if output.exists() and not force:
        what = "is the input itself" if output.resolve() == Path(source).resolve() else "exists already"
        raise UserError(f"--output {output} {what}; choose another name, or add --force to overwrite it")


def _annotate_file(
    source: str,
    columns: dict[str, str] | None,
    specs: Sequence[AnnotateSpec],
    output: Path | None,
    preview: int,
) -> None:
    from unlearnkit.data.annotators import annotate as annotated
    from unlearnkit.data.columns import canonical
    from unlearnkit.data.spans import SPANS
    from unlearnkit.data.streams import read_table
    from unlearnkit.recipe import StreamSpec
    from unlearnkit.recipe_annotate import annotator
    from unlearnkit.terminal import quiet, say

    quiet()
    annotators = [annotator(spec) for spec in specs]
    raw = read_table(StreamSpec(path=source), name="input")
    table = annotated(canonical(raw, columns, where=source), annotators, where=source)
    _show(table, preview)
    if output is None:
        say("Nothing was written; give --output FILE.jsonl to keep the spans.")
        return
    _write(raw, table, output, (columns or {}).get(SPANS, SPANS))
    say(f"Wrote {len(raw)} rows to {output}")


def _write(raw: Dataset, table: Dataset, output: Path, column: str) -> None:
    """The rows as they were read, with their spans in the column that the user keeps them in."""
    from unlearnkit.data.spans import SPANS
    from unlearnkit.files import atomic_path

    with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, spans in zip(raw, table[SPANS], strict=True):
            file.write(json.dumps({**row, column: spans}, ensure_ascii=False, default=str) + "\n")


def _show(table: Dataset, preview: int) -> None:
    """The first rows with spans, then what was found in all of them."""
    from unlearnkit.terminal import console

    found = list(_found(table))
    risks = sorted({span.risk for _, _, spans in found for span in spans})
    further = iter(_FURTHER * len(risks))
    colours = {risk: _COLOURS.get(risk) or next(further) for risk in risks}
    for name, text, spans in [one for one in found if one[2]][:preview]:
        console.print(name, style="bold", markup=False)
        console.print(marked(text, spans, colours), end="\n\n")
    _summary(found, risks)


def _found(table: Dataset) -> Iterator[tuple[str, str, tuple[Span, ...]]]:
    from unlearnkit.data.formats import text_to_learn
    from unlearnkit.data.spans import spans_of

    for row in table:
        text = text_to_learn(row)
        yield str(row["example_id"]), text, spans_of(row, text)


def marked(text: str, spans: Sequence[Span], colours: dict[str, str]) -> Text:
    """A text with its spans as [class: ...], which colours repeat; a long one from its first span on."""
    from rich.text import Text

    begin = max(0, spans[0].start - _BEFORE) if len(text) > _SHOWN else 0
    end = min(len(text), begin + _SHOWN)
    out, at = Text("…" if begin else ""), begin
    for span in spans:
        if span.start >= end:
            break
        start, stop = max(span.start, begin), min(span.end, end)
        out.append(text[at:start])
        cut = "…" if stop < span.end else ""
        out.append(f"[{span.risk}: {text[start:stop]}{cut}]", style=f"bold {colours[span.risk]}")
        at = stop
    out.append(text[at:end])
    return out.append("…" if end < len(text) and not out.plain.endswith("…]") else "")


def _summary(found: Sequence[tuple[str, str, tuple[Span, ...]]], risks: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from unlearnkit.terminal import console

    total = sum(len(text) for _, text, _ in found)
    count, rows, size = Counter[str](), Counter[str](), Counter[str]()
    for _, _, spans in found:
        rows.update({span.risk for span in spans})
        for span in spans:
            count[span.risk] += 1
            size[span.risk] += span.end - span.start
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("class", "spans", "rows", "characters"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for risk in risks:
        share = f"{size[risk] / total:.2%}"
        table.add_row(escape(risk), f"{count[risk]:,}", f"{rows[risk]:,}", share)
    if risks:
        console.print(table)
    bare = sum(not spans for _, _, spans in found)
    console.print(f"{len(found):,} rows, {bare:,} of them without a span", markup=False)
