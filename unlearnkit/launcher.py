"""`--launch NAME`: the same command under `accelerate launch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from unlearnkit import shipped
from unlearnkit.errors import UserError


def launch_command(launch: str, processes: int | None, arguments: Sequence[str]) -> list[str]:
    """The accelerate command that runs `unlearnkit ARGUMENTS` with a launch file.

    Args:
        launch: a shipped launch file's name, or a path.
        processes: number of processes; by default one per GPU.

    Raises:
        RecipeError: no such launch file.
        UserError: no GPU to count, and no number given.
    """
    path = shipped.find("launch", launch)
    if processes is None and launch != "single":
        import torch

        processes = torch.cuda.device_count()
        if processes == 0:
            raise UserError(
                f"--launch {launch} found no GPU; say how many processes with --processes, "
                "or leave --launch out"
            )
    count = ["--num_processes", str(processes)] if processes is not None else []
    rest = _without_launch(arguments)
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*accelerate, "--config_file", str(path), *count, "-m", "unlearnkit", *rest]


def _without_launch(arguments: Sequence[str]) -> list[str]:
    """The command line without the options that led here."""
    out: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--launch", "--processes"):
            skip = True
        elif not argument.startswith(("--launch=", "--processes=")):
            out.append(argument)
    return out
