"""`ddp convert`: recorded demonstrations to a zarr store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.commands.copy import STORE_MARKS, CopyOptions, copy, read
from ddp_cli.errors import DdpError

OF_STORES = ("to",)
OF_STATES = ("obs", "render", "rerender", "subset", "check", "skip_bad", "workers")
NO_TURNING = ("only", "actions", "zarr_format", "preview")
"""Options that mean nothing where there is no store, are no states of the simulator, is no store made."""

if TYPE_CHECKING:
    from ddp_cli.data.conversion import ConversionResult
    from ddp_cli.data.conversion_plan import ConvertOptions
    from ddp_cli.tasks import Task


def convert(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="HDF5 file of demonstrations, a store, or a LeRobot dataset.")],
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
        typer.Option(
            "--render",
            help="full: robosuite's own pixels; fast: no shadows, reflections, multisampling; coarse: a simpler arm.",
        ),
    ] = "fast",
    rerender: Annotated[
        bool, typer.Option("--rerender", help="Draw pictures anew, also where the file holds some.")
    ] = False,
    actions: Annotated[
        str | None,
        typer.Option(
            "--actions",
            help="delta (of demos, the default), or absolute: the goals they set, in the world frame.",
            show_default=False,
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option("--filter", help="Only the demos of this filter of the file (mask/...).", show_default=False),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Of these, a slice, for example :50.", show_default=False)
    ] = None,
    check: Annotated[
        int, typer.Option("--check", min=0, help="Demos to execute, to see if they do what they did.")
    ] = 3,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out demos with faults, and list them.")] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="Only say what the source is.")] = False,
    preview: Annotated[
        Path | None,
        typer.Option("--preview", help="Show a few episodes of the store: .png or .mp4.", show_default=False),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Turn a store into another format: lerobot or robomimic.", show_default=False),
    ] = None,
    workers: options.Workers = None,
    zarr_format: Annotated[
        int, typer.Option("--zarr-format", min=2, max=3, help="2 is what most published tools read.")
    ] = 3,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Turn demonstrations into a zarr store: what was not recorded is drawn. Run again after Ctrl-C to go on."""
    from ddp_cli.data.conversion_plan import ConvertOptions
    from ddp_cli.data.demo_file import DemoFile
    from ddp_cli.data.inspection import inspect_file, rows
    from ddp_cli.tasks import check_obs, read_task

    if preview:
        from ddp_cli.data.preview import check_preview

        check_preview(preview)
        options.check_output(preview, overwrite)
    if source.is_dir():
        said = CopyOptions(source, out, to, task, only, actions, zarr_format, overwrite, json)
        _convert_folder(ctx, said, inspect, preview)
        return
    _refuse_others(ctx, source, "a file", OF_STORES)
    check_obs(obs)  # the default output is named after it
    with DemoFile(source, read_task(task) if task else None, subset, inspect) as demos:
        spec = demos.task
        if inspect:
            found = inspect_file(demos)
            _describe(source, found, rows(found), json)
            return
    out = out or options.new_store(spec.name, obs)
    options.check_output(out, overwrite, STORE_MARKS)
    wanted = ConvertOptions(obs, actions or "delta", render, rerender, subset, only, check, skip_bad, zarr_format)
    started = time.perf_counter()
    done = run_conversion(source, out, wanted, workers, spec)
    _report(out, spec, done, time.perf_counter() - started, json)
    if preview:
        _preview(out, preview)


def _refuse_others(ctx: typer.Context, source: Path, kind: str, others: tuple[str, ...]) -> None:
    """DdpError if an option was given that means nothing for such a source."""
    for option in ctx.command.params:
        name = str(option.name)
        given = ctx.get_parameter_source(name)
        if name in others and given is not None and given.name == "COMMANDLINE":
            raise DdpError(f"'{source}' is {kind}, for which {option.opts[0]} means nothing.", "Leave it out.")


def _report(out: Path, task: Task, done: ConversionResult, seconds: float, json: bool) -> None:
    from dataclasses import asdict

    if json:
        console.print_json({"out": str(out), **asdict(done), "seconds": seconds})
        return
    pictures = len(task.images(done.obs)) * done.frames / seconds
    how = "taken from the file" if done.observations else "drawn"
    rate = f" ({pictures:.0f} images/s, {how})" if pictures else ""
    console.result(
        f"{out}: {done.episodes} episodes, {done.frames} steps, {done.megabytes:.1f} MB, "
        f"in {console.duration(seconds)}{rate}"
    )
    for name, why in done.left_out.items():
        console.result(f"left out {name}: {why}")
    _tell(done)


def _convert_folder(ctx: typer.Context, said: CopyOptions, inspect: bool, preview: Path | None) -> None:
    from ddp_cli.data.inspection import inspect_lerobot, inspect_store
    from ddp_cli.data.lerobot_reader import LeRobotDataset, is_lerobot
    from ddp_cli.data.store import Store
    from ddp_cli.tasks import read_task

    if is_lerobot(said.source):
        _refuse_others(ctx, said.source, "a LeRobot dataset", (*OF_STATES, *OF_STORES))
        if inspect:
            found = inspect_lerobot(said.source)
        else:
            data = LeRobotDataset(said.source, read_task(said.task) if said.task else None, said.actions)
            made = read(data, said)
    else:
        _refuse_others(ctx, said.source, "a store", (*OF_STATES, "task", *(NO_TURNING if said.to else ())))
        store = Store(said.source)
        if inspect:
            found = inspect_store(store)
        elif said.to is None and said.out is None and preview is None:
            raise DdpError(
                f"'{said.source}' is a store already.",
                "Name another with --out, turn it into something else (--to), or look at it: --preview x.png.",
            )
        else:
            made = copy(store, said)
    if inspect:
        _describe(said.source, found, [(key, str(value)) for key, value in found.items()], said.json)
    elif preview:
        _preview(made, preview)


def _preview(store: Path, path: Path) -> None:
    from ddp_cli.data.preview import write_preview
    from ddp_cli.data.store import Store

    write_preview(Store(store), path)
    console.note(f"Look at {path}")


def _tell(done: ConversionResult) -> None:
    from ddp_cli.data.replay_report import in_words

    text = f"check {in_words(done.check)}"
    if done.check["result"] == "failed":
        console.warn(f"{text} `ddp train` refuses this store without --allow-unverified.")
    else:
        console.result(text)


def _describe(source: Path, found: dict[str, Any], rows: list[tuple[str, ...]], json: bool) -> None:
    if json:
        console.print_json(found)
    else:
        console.table(str(source), rows)


def run_conversion(
    source: Path, out: Path, wanted: ConvertOptions, workers: int | None = None, task: Task | None = None
) -> ConversionResult:
    """`data.conversion.convert` with a progress bar."""
    from ddp_cli.data.conversion import convert as convert_demos
    from ddp_cli.parallel import default_workers

    started: dict[str, tuple[float, int]] = {}
    with console.progress(f"convert {source.name}") as update:

        def progress(what: str, done: int, total: int) -> None:
            since, first = started.setdefault(what, (time.perf_counter(), done))
            rate = (done - first) / max(time.perf_counter() - since, 1e-9)
            update(done, total, f"steps, {rate:.0f}/s" if what == "convert" else "demos checked")

        return convert_demos(source, out, workers or default_workers(), progress, wanted, task)
