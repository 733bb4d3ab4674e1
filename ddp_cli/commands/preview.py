"""`ddp preview`: a few episodes of a store as an image or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options

EXAMPLES = options.examples(
    "ddp convert sample_data/lift.hdf5 --only :4 --out lift.zarr && ddp preview lift.zarr",
    "ddp preview lift.zarr --out lift.mp4",
)


def preview(
    store: Annotated[Path, typer.Argument(help="Store written by `ddp convert`.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="File to write: .png, .mp4, .mov, .mkv or .gif.", rich_help_panel=options.OUTPUT
        ),
    ] = Path("preview.png"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a few episodes of a store as an image or video.

    Use it to check for upside-down images, swapped cameras and wrong colors.
    """
    from ddp_cli.data.preview import check_preview, write_preview
    from ddp_cli.data.store import Store

    check_preview(out)
    with options.reserve_output(out, overwrite):
        write_preview(Store(store), out)
    if json:
        console.print_json({"store": str(store), "out": str(out)})
    else:
        console.result(f"{out}: episodes of {store}")
