"""Options that several commands of the command line take."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (`unlearnkit ls recipes`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings, such as training.beta=0.05.", show_default=False)
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run's folder under runs/.")]
Launch = Annotated[
    str | None,
    typer.Option("--launch", help="Start on several processes: single, ddp, fsdp2, zero2, zero3 or a file."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Processes for --launch (default: one per GPU).", min=1)
]
Model = Annotated[str | None, typer.Option("--model", help="The model that must forget: a folder or hub id.")]
Forget = Annotated[str | None, typer.Option("--forget", help="What must go: a file, folder or hub id.")]
Retain = Annotated[str | None, typer.Option("--retain", help="What must stay: a file, folder or hub id.")]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The retain model, its run or its evaluation, for forget quality."),
]
Method = Annotated[
    str | None, typer.Option("--method", help="The unlearning method (`unlearnkit ls methods`).")
]
