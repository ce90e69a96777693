"""`unlearnkit quickstart`: target and retain model, two methods, one report; all offline and on the CPU."""

from __future__ import annotations

import time

from unlearnkit.commands import run_one
from unlearnkit.recipe import load_recipe
from unlearnkit.run import run_dir, runs_folder
from unlearnkit.terminal import say

RECIPES = ("fictional/target", "fictional/retain", "fictional/npo", "fictional/grad_diff")


def quickstart() -> None:
    """Run the recipes in a row, reuse what is there, and compare the two methods."""
    from unlearnkit.reporting import write_report

    started = time.perf_counter()
    say("A small model learns 40 fictitious authors, and then has to forget 4 of them.\n")
    folders = []
    for number, name in enumerate(RECIPES, 1):
        recipe = load_recipe(name)
        say(f"[{number}/{len(RECIPES)}] {name}")
        folders.append(run_one(recipe, run_dir(recipe)))
        say("")
    methods = folders[2:]
    written = write_report([str(f) for f in methods], runs_folder() / "quickstart")
    say(f"Report of NPO:      {methods[0] / 'report.html'}")
    say(f"NPO and GradDiff:   {written.html}")
    seconds = time.perf_counter() - started
    say(f"Took {seconds:.0f} s. Next: `unlearnkit run forget --model PATH --forget mine.jsonl`")
