"""The report of a comparison: methods, seeds and settings in a table, the Pareto front, and the cost."""

from __future__ import annotations

from pathlib import Path

from unlearnkit.files import write_atomic, write_json
from unlearnkit.reporting.write import ReportPaths


def write_grid_report(comparison: str | Path) -> ReportPaths:
    """Write report.html, report.md and summary.json of a comparison into its folder.

    Needs the records of its runs only: no model, no GPU, no network. Cells that failed or are not finished
    are named. Equal input gives equal bytes, in whatever order comparison.json has its cells.

    Args:
        comparison: the folder with comparison.json.

    Raises:
        RecordsError: comparison.json is missing or cannot be read.
        UserError: the folder cannot be written.
    """
    # Imported here: `import unlearnkit.reporting` loads neither pandas nor matplotlib, and a wrong path waits
    # for the first alone.
    from unlearnkit.reporting.grid_read import load_grid

    grid = load_grid(comparison)
    from unlearnkit.reporting.grid_content import grid_content
    from unlearnkit.reporting.grid_html import grid_html, grid_markdown
    from unlearnkit.reporting.grid_summary import grid_summary

    content = grid_content(grid)
    documents = grid_html(grid, content), grid_markdown(content)
    written = ReportPaths(*(grid.folder / name for name in ("report.html", "report.md", "summary.json")))
    summary = grid_summary(grid, content)
    write_atomic(written.html, documents[0])
    write_atomic(written.markdown, documents[1])
    write_json(written.summary, summary)
    return written
