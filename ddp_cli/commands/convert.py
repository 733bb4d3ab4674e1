"""`ddp convert`: raw demonstrations to a zarr store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import console, options

if TYPE_CHECKING:
    from ddp_cli.data.conversion import Converted
    from ddp_cli.tasks import Task


def convert(
    source: Annotated[Path, typer.Argument(help="HDF5 file of raw demonstrations.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Store to write; data/TASK.zarr, or data/TASK-state.zarr.", show_default=False
        ),
    ] = None,
    task: options.DemosTask = None,
    obs: Annotated[str, typer.Option("--obs", help="image; state: draw nothing, for state policies only.")] = "image",
    render: Annotated[
        str,
        typer.Option("--render", help="full: robosuite's own pixels; fast: no shadows, reflections, multisampling."),
    ] = "fast",
    actions: Annotated[
        str, typer.Option("--actions", help="delta: as recorded; absolute: the goals they set, in the world frame.")
    ] = "delta",
    workers: options.Workers = None,
    zarr_format: Annotated[
        int, typer.Option("--zarr-format", min=2, max=3, help="2 is what most published tools read.")
    ] = 3,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Set every recorded state, render the cameras, write a zarr store. Run again after Ctrl-C to go on."""
    from dataclasses import asdict

    from ddp_cli.data.demos import DemoFile
    from ddp_cli.tasks import check_obs, read_task

    check_obs(obs)  # the default output is named after it
    with DemoFile(source, read_task(task) if task else None) as demos:
        spec = demos.task
    out = out or options.new_store(spec.name, obs)
    options.check_output(out, overwrite, ("zarr.json", ".zgroup"))
    started = time.perf_counter()
    done = run_conversion(source, out, render, workers, zarr_format, actions, spec, obs)
    seconds = time.perf_counter() - started
    if json:
        console.print_json({"out": str(out), **asdict(done), "seconds": seconds})
        return
    rate = f" ({len(spec.images(obs)) * done.frames / seconds:.0f} images/s)" if spec.images(obs) else ""
    console.result(
        f"{out}: {done.episodes} episodes, {done.frames} steps, {done.megabytes:.1f} MB, "
        f"in {console.duration(seconds)}{rate}"
    )


def run_conversion(
    source: Path,
    out: Path,
    render: str,
    workers: int | None,
    zarr_format: int = 3,
    actions: str = "delta",
    task: Task | None = None,
    obs: str = "image",
) -> Converted:
    """`data.conversion.convert` with a progress bar."""
    from ddp_cli.data.conversion import convert as convert_demos
    from ddp_cli.parallel import default_workers

    started = time.perf_counter()
    first = -1
    with console.progress(f"convert {source.name}") as update:

        def progress(done: int, total: int) -> None:
            nonlocal first
            first = done if first < 0 else first
            rate = (done - first) / (time.perf_counter() - started)
            update(done, total, f"steps, {rate:.0f}/s")

        return convert_demos(
            source, out, render, workers or default_workers(), progress, zarr_format, actions, task, obs
        )
