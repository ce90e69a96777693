"""A grid of runs, methods by settings by seeds: planned, run in processes of their own, and compared.

`plan` says what would be run, without running it; `run_comparison` runs what is missing and writes one
report. A cell is a plain run in the runs folder, so that `unlearnkit run` and a comparison share results.
"""

from __future__ import annotations

from unlearnkit.grid.compare import run_comparison
from unlearnkit.grid.plan import Cell, Plan, plan
from unlearnkit.grid.request import Request, read_request

__all__ = ["Cell", "Plan", "Request", "plan", "read_request", "run_comparison"]
