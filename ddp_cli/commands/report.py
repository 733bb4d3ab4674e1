"""`ddp report`: a page that shows datasets, runs, evaluations or policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options

if TYPE_CHECKING:
    from ddp_cli.report.report import PageOptions, PageResult

EXAMPLES = options.examples(
    "ddp convert sample_data/lift.hdf5 --only :4 --out lift.zarr && ddp report lift.zarr",
    "ddp eval sample_data/square-policy -n 10 --out eval.json && ddp report eval.json --film failures",
)


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Store, dataset, recording, run, checkpoint, exported folder, or a JSON report of `ddp eval`. Runs "
            "are overlaid, and evaluations compared.",
        ),
    ],
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Episodes of a dataset to show in full, with videos.")
    ] = 48,
    film: Annotated[
        str | None,
        typer.Option(
            "--film",
            metavar="WHICH",
            help="Film episodes of an evaluation: failures, all, or a number (failures first).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write.", rich_help_panel=options.OUTPUT)
    ] = Path("report.html"),
    max_mb: Annotated[
        float,
        typer.Option(
            "--max-mb",
            min=0,
            help="Videos of more than this are written to a folder beside the page.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 50.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a page that shows data, runs, evaluations or policies.

    It is one file that opens in any browser, without a network.
    """
    from ddp_cli.report.films import parse_film
    from ddp_cli.report.report import PageOptions

    page_options = PageOptions(max_mb, episodes, parse_film(film) if film else None)
    result = make_page(paths, out, page_options, overwrite)
    if json:
        beside = str(result.videos_in) if result.videos_in else None
        console.print_json(
            {"out": str(out), "megabytes": result.megabytes, "videos": result.videos, "videos_in": beside}
        )
    else:
        console.result(describe_page(result))


def make_page(
    paths: list[Path], out: Path, page_options: PageOptions | None = None, overwrite: bool = True
) -> PageResult:
    """`report.write_page` with a progress bar; DdpError if the page or the folder of its videos cannot be replaced."""
    from ddp_cli.errors import DdpError
    from ddp_cli.report.report import PageOptions, write_page
    from ddp_cli.report.videos import FIRST, video_folder

    if out.suffix.lower() not in (".html", ".htm"):
        raise DdpError(f"cannot write a page to '{out}'.", "Name a file that ends in .html.")
    options.check_output(video_folder(out), overwrite, (FIRST,))
    with options.reserve_output(out, overwrite), console.progress(f"report {out.name}") as update:
        return write_page(paths, out, page_options or PageOptions(), update)


def describe_page(result: PageResult) -> str:
    """One line about a page that was written."""
    if not result.videos:
        return f"{result.out}: {result.megabytes:.1f} MB"
    where = f"in the folder {result.videos_in}, which belongs to it" if result.videos_in else "in it"
    return f"{result.out}: {result.megabytes:.1f} MB, {result.videos} videos {where}"
