"""Reports from records: HTML, Markdown and JSON. No model, no GPU, no network."""

from __future__ import annotations

from unlearnkit.reporting.grid import write_grid_report
from unlearnkit.reporting.load import load_run
from unlearnkit.reporting.views import RunView
from unlearnkit.reporting.write import ReportPaths, write_report

__all__ = ["ReportPaths", "RunView", "load_run", "write_grid_report", "write_report"]
