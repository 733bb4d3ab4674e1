"""`ddp plot`: the curves of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError

EXAMPLES = options.examples(
    "ddp train --task lift --minutes 1 --name short && ddp plot runs/lift/short",
    "ddp plot runs/lift/* --out comparison.png",
)


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, runs/TASK/NAME.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG file; by default curves.png in the run, or beside several runs.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Plot loss, success rate and action error of training runs."""
    from ddp_cli.training.plots import plot_metrics

    if out is not None and out.suffix.lower() != ".png":
        raise DdpError(f"cannot write a plot to '{out}'.", "Name a file that ends in .png.")
    runs = [run for run in runs if not run.is_file()] or runs  # runs/TASK/* holds earlier plots as well
    if out is None:  # the default output only ever holds these curves
        out, overwrite = (runs[0] if len(runs) == 1 else runs[0].parent) / "curves.png", True
    with options.reserve_output(out, overwrite):
        plot_metrics(runs, out)
    if json:
        console.print_json({"runs": [str(run) for run in runs], "out": str(out)})
    else:
        console.result(str(out))
