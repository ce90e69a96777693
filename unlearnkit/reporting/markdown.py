"""report.md: the numbers of the HTML report as tables, without plots."""

from __future__ import annotations

import re
from typing import Any

from unlearnkit.reporting.templating import render


def run_markdown(content: dict[str, Any]) -> str:
    """The report of one run; `content` is what `page.page` gathered."""
    return tidy(render("run.md.j2", **content))


def compare_markdown(content: dict[str, Any]) -> str:
    """The comparison of several runs."""
    return tidy(render("compare.md.j2", **content))


def tidy(text: str) -> str:
    """One empty line before a heading, never more than one anywhere."""
    text = re.sub(r"(?m)^(#{1,3} )", r"\n\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
