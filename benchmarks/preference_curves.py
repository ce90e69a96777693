"""What becomes of the chosen answer: curves and a table from the logs of preference runs.

Each argument is LABEL=RUN,RUN,... (the seeds of one setting); runs are folders with a log.jsonl that holds
`logps/chosen`, such as those of `unlearnkit run fictional/rpo seed=1`. The table is the mean over the second
half of the steps, each metric read before its step, on the pairs that are trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

CURVES = {"logps/chosen": "mean log-prob of the chosen answer (nats)", "rewards/margins": "reward margin"}
COLUMNS = ("logps/chosen", "logps/rejected", "rewards/accuracies", "rewards/margins")
COLOURS = ("#b4451f", "#1f5fb4", "#2e7d4f", "#7a4fa3")


def read_log(run: Path) -> list[dict[str, float]]:
    """The logged steps of a run.

    Raises:
        SystemExit: the run has none with preferences.
    """
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    steps = [entry for entry in map(json.loads, lines) if "logps/chosen" in entry]
    if not steps:
        raise SystemExit(f"{path} holds no step with logps/chosen; name the folder of a preference run")
    return steps


def second_half(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each column over the second half of the steps."""
    rest = steps[len(steps) // 2 :]
    return {name: sum(step[name] for step in rest) / len(rest) for name in COLUMNS}


def draw(groups: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Both curves; a group has one colour, and its first run is drawn strongest."""
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="tight")
    axes = figure.subplots(1, len(CURVES))
    for colour, (label, runs) in zip(COLOURS, groups.items(), strict=False):
        for number, steps in enumerate(runs):
            for ax, name in zip(axes, CURVES, strict=True):
                values = [step[name] for step in steps]
                ax.plot(
                    range(1, len(values) + 1), values, color=colour, linewidth=1.2,
                    alpha=1.0 if number == 0 else 0.45, label=label if number == 0 else None,
                )  # fmt: skip
    for ax, title in zip(axes, CURVES.values(), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("optimizer step")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(path)


def main() -> None:
    """Print the table and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="+", metavar="LABEL=RUN,RUN", help="the seeds of one setting")
    parser.add_argument("--out", type=Path, required=True, help="the image to write (png or svg)")
    options = parser.parse_args()
    if len(options.groups) > len(COLOURS):
        parser.error(f"{len(options.groups)} groups are too many for one figure; give at most {len(COLOURS)}")
    groups = {}
    for text in options.groups:
        label, equals, runs = text.partition("=")
        if not equals or not runs:
            parser.error(f"{text!r} is not LABEL=RUN,RUN")
        groups[label] = [read_log(Path(run)) for run in runs.split(",")]
    print(f"{'':14}{'at the start':>14}" + "".join(f"{name:>20}" for name in COLUMNS))
    for label, runs in groups.items():
        for steps in runs:
            means = second_half(steps)
            print(
                f"{label:14}{steps[0]['logps/chosen']:14.3f}"
                + "".join(f"{means[name]:20.3f}" for name in COLUMNS)
            )
    draw(groups, options.out)


if __name__ == "__main__":
    main()
