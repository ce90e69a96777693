"""Writing a report: three files, each under a temporary name first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnkit.errors import RecordsError
from unlearnkit.files import write_atomic, write_json
from unlearnkit.reporting.load import load_run
from unlearnkit.reporting.read import COMPARISON, RECORDS


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    markdown: Path
    summary: Path


def write_report(
    folders: str | Path | Sequence[str | Path], out: str | Path | None = None, *, suite: str | None = None,
    target: str | Path | None = None, retain: str | Path | None = None,
) -> ReportPaths:  # fmt: skip
    """Write report.html, report.md and summary.json for one run, or one comparison of several.

    Needs records only: no model, no GPU, no network. Equal input gives equal bytes.

    Args:
        folders: a run directory or an evaluation folder, or several of them; or the folder of a comparison.
        out: the folder to write to. By default the run itself; `report/` inside a single evaluation folder;
            `comparison/` beside the first of several runs.
        suite: which suite to report where a run holds several.
        target, retain: evaluation folders of the model before unlearning and of the retain model, where
            `folders` are evaluation folders; run directories have their own.

    Raises:
        RecordsError: a folder or a part of it is missing or cannot be read, or `out` cannot hold a report.
        UserError: `out` cannot be written.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not paths:
        raise RecordsError("no run was given; name at least one run directory or evaluation folder")
    if len({path.resolve() for path in paths}) < len(paths):
        raise RecordsError("a run was given twice; name each folder once")
    if len(paths) == 1 and (paths[0] / COMPARISON).is_file():
        if out is not None or suite is not None or target is not None or retain is not None:
            raise RecordsError(
                f"{paths[0]} is a comparison, whose report lies in it and knows its models; give its folder "
                "alone"
            )
        from unlearnkit.reporting.grid import write_grid_report

        return write_grid_report(paths[0])
    given = {"target": target, "retain": retain}
    beside = {role: path for role, path in given.items() if path is not None}
    runs = [load_run(path, suite, beside) for path in paths]
    folder = _out(paths, Path(out) if out is not None else None)
    # Imported here: reading a wrong path should not wait for matplotlib.
    from unlearnkit.reporting import compare, html, markdown, page
    from unlearnkit.reporting.summary import summary as machine_summary

    if len(runs) == 1:
        content = page.page(runs[0])
        documents = html.run_html(runs[0], content), markdown.run_markdown(content)
        summary = machine_summary(runs[0], content["verdict"], content["attacks"])
    else:
        content = compare.comparison(runs)
        documents = compare.compare_html(runs, content), markdown.compare_markdown(content)
        summary = compare.compare_summary(runs, content)
    written = ReportPaths(folder / "report.html", folder / "report.md", folder / "summary.json")
    write_atomic(written.html, documents[0])
    write_atomic(written.markdown, documents[1])
    write_json(written.summary, summary)
    return written


def _out(paths: list[Path], out: Path | None) -> Path:
    if out is None:
        if len(paths) > 1:
            out = paths[0].resolve().parent / "comparison"
        else:
            out = paths[0] / "report" if (paths[0] / RECORDS).exists() else paths[0]
    if out.exists() and not out.is_dir():
        raise RecordsError(f"{out} is a file; give a folder for the report")
    if (out / RECORDS).exists():
        raise RecordsError(
            f"{out} is an evaluation folder, whose summary.json a report would replace; give another folder"
        )
    return out
