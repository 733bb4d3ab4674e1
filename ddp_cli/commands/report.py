"""`ddp report`: a page that shows datasets, runs, evaluations or policies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError
from ddp_cli.report.page_options import DEFAULTS, PageOptions, parse_film

if TYPE_CHECKING:
    from ddp_cli.report.report import PageResult

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
    ] = DEFAULTS.max_episodes,
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
    ] = DEFAULTS.max_mb,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write a page that shows data, runs, evaluations or policies.

    It is one file that opens in any browser, without a network.
    """
    page_options = PageOptions(max_mb, episodes, None if film is None else parse_film(film))
    with reserve_page(out, overwrite):
        result = make_page(paths, out, page_options)
    if json:
        beside = str(result.videos_in) if result.videos_in else None
        console.print_json(
            {"out": str(out), "megabytes": result.megabytes, "videos": result.videos, "videos_in": beside}
        )
    else:
        console.result(describe_page(result))


def make_page(paths: list[Path], out: Path, page_options: PageOptions = DEFAULTS) -> PageResult:
    """`report.write_page` with a progress bar; `out` is reserved, see `reserve_page`."""
    from ddp_cli.report.report import write_page

    with console.progress(f"report {out.name}") as update:
        return write_page(paths, out, page_options, update)


@contextmanager
def reserve_page(page: Path | None, overwrite: bool) -> Iterator[None]:
    """Inside, no other process writes the page; DdpError if it, or the folder of its videos, cannot be written."""
    from ddp_cli.report.videos import FIRST, video_folder

    if page is None:
        yield
        return
    if page.suffix.lower() not in (".html", ".htm"):
        raise DdpError(f"cannot write a page to '{page}'.", "Name a file that ends in .html.")
    options.check_output(video_folder(page), overwrite, (FIRST,))
    with options.reserve_output(page, overwrite):
        yield


def note_page(paths: list[Path], page: Path) -> None:
    """Writes a page of `paths` beside another result, and says so."""
    console.note(f"report: {describe_page(make_page(paths, page))}")


def page_of_evaluation(report: dict[str, Any], page: Path | None) -> None:
    """Writes a page of a report of `ddp eval`, if there should be one, and says so."""
    from ddp_cli.evaluation.report import write_report

    if page is None:
        return
    with tempfile.TemporaryDirectory(prefix="ddp-report-") as folder:
        path = Path(folder) / f"{page.stem}.json"
        write_report(path, report)
        note_page([path], page)


def update_run_page(run: Path) -> None:
    """Writes report.html of a run. A failure is a warning: it must not end a training."""
    from ddp_cli.report.report import write_page

    try:
        write_page([run], run / "report.html")
    except Exception as e:  # noqa: BLE001
        console.warn(f"'{run / 'report.html'}' was not updated: {' '.join(str(e).split())}")


def describe_page(result: PageResult) -> str:
    """One line about a page that was written."""
    if not result.videos:
        return f"{result.out}: {result.megabytes:.1f} MB"
    where = f"in the folder {result.videos_in}, which belongs to it" if result.videos_in else "in it"
    return f"{result.out}: {result.megabytes:.1f} MB, {result.videos} videos {where}"
