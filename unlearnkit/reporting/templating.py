"""The jinja2 environment: HTML templates escape everything, Markdown goes through the `md` filter."""

from __future__ import annotations

import functools
import html
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unlearnkit.reporting.numbers import MISSING, number
from unlearnkit.reporting.tables import Cell


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown_text, cell=markdown_cell, answer=markdown_answer, number=number)
    environment.filters.update(attacked=markdown_attacked, point=markdown_point)
    return environment


def render(template: str, **context: Any) -> str:
    """Fill in one of the package's templates."""
    return _environment().get_template(template).render(**context)


def markdown_text(text: Any) -> str:
    """Text that stays text in Markdown, also inside a table: no markup, no HTML, no line break."""
    safe = re.sub(r"\s+", " ", str(text)).strip()
    safe = html.escape(safe, quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", safe)


def markdown_cell(cell: Cell) -> str:
    """A number with its interval and n, on one line."""
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def markdown_answer(answer: dict[str, Any] | None) -> str:
    """One model's answer with its scores."""
    if answer is None:
        return MISSING
    text = MISSING if answer["text"] is None else answer["text"].strip() or "(empty answer)"
    return f"{text} (ROUGE-L {number(answer['rouge'], 2)}, probability {number(answer['probability'], 2)})"


def markdown_attacked(attack: dict[str, Any] | None) -> str:
    """The attacked answer that came nearest to the right one."""
    if attack is None:
        return MISSING
    text = MISSING if attack["text"] is None else attack["text"].strip() or "(empty answer)"
    shown = " (it had shown this example)" if attack["disclosed"] else ""
    stage = ", ".join(part for part in (attack["title"], attack["variant"]) if part)
    return f"{text} ({stage}{shown}, ROUGE-L {number(attack['leak'], 2)})"


def markdown_point(entry: dict[str, Any] | None) -> str:
    """A number of an evaluation during training, with its interval and n."""
    if not isinstance(entry, dict) or entry["value"] is None:
        return MISSING
    low, high = entry["low"], entry["high"]
    interval = "" if low is None or high is None else f"{number(low)} to {number(high)} · "
    return f"{number(entry['value'])} ({interval}n = {entry['n']})"


def json_for_script(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no text in it can end the element or start a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
