"""`ddp convert`: recordings to a zarr store, and stores to other formats."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import choices, console
from ddp_cli.commands import convert_recording as as_recorded
from ddp_cli.commands import options
from ddp_cli.commands.conversion_result import report_conversion
from ddp_cli.commands.convert_folder import CopyOptions, convert_lerobot, convert_store, merge
from ddp_cli.commands.report import note_page, reserve_page
from ddp_cli.errors import DdpError

if TYPE_CHECKING:
    from ddp_cli.data.conversion import ConversionResult
    from ddp_cli.data.conversion_plan import ConvertOptions
    from ddp_cli.data.recording import Recording
    from ddp_cli.parallel import Workers
    from ddp_cli.tasks import Task

EXAMPLES = options.examples(
    "ddp convert sample_data/lift.hdf5 --out data/lift.zarr",
    "ddp convert sample_data/square.hdf5 --obs state --only :50",
)

FILE_OPTIONS = ("obs", "render", "rerender", "filter_key", "skip_bad", "workers", "cluster")
"""Options that apply to HDF5 files only."""
SIMULATOR_OPTIONS = (
    "obs", "render", "rerender", "filter_key", "workers", "cluster", "actions", "check", "to", "keep",
)  # fmt: skip
"""Options that do not apply to recordings of any robot."""
RECORDING_OPTIONS = (
    "schema", "keys", "action_key", "rate", "image_size", "fit", "drop_episodes", "only_task", "trim_pauses", "bgr",
)  # fmt: skip
NOT_FOR_MERGING = (*FILE_OPTIONS, *RECORDING_OPTIONS, "task", "check", "to", "only", "keep", "actions")
STORE_OUTPUT_OPTIONS = ("only", "keep", "actions", "zarr_format")
"""Options that apply only where the output is a store."""


def convert(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...", help="Recording (HDF5, zarr, LeRobot dataset), or a store; several stores are merged."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Store to write; data/TASK.zarr by default, data/TASK-state.zarr with --obs state.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    to: Annotated[
        choices.DatasetFormat | None,
        typer.Option(
            "--to",
            help="Convert a store to this format instead.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    zarr_format: Annotated[
        int,
        typer.Option(
            "--zarr-format",
            min=2,
            max=3,
            help="Format 2 is what most published tools read.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 3,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    task: options.SourceTask = None,
    filter_key: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help="Only the demonstrations of this filter key of the file (mask/...).",
            show_default=False,
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="A slice of the episodes, such as :50.", show_default=False, rich_help_panel=options.SOURCE
        ),
    ] = None,
    keep: Annotated[
        choices.PolicyEpisodes | None,
        typer.Option(
            "--keep",
            help="Of a store of `ddp run --record`: only episodes that succeeded, or only the steps in which an "
            "operator took over.",
            show_default=False,
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Skip demonstrations with faults and list them.", rich_help_panel=options.SOURCE
        ),
    ] = False,
    obs: Annotated[
        choices.Obs,
        typer.Option(
            "--obs",
            help="state: no images, for state policies only; converts in seconds.",
            rich_help_panel=options.CONTENT,
        ),
    ] = "image",
    actions: Annotated[
        choices.ActionConvention | None,
        typer.Option(
            "--actions",
            help="Action convention to store; as recorded by default. absolute: the goal poses that delta actions set.",
            show_default=False,
            rich_help_panel=options.CONTENT,
        ),
    ] = None,
    render: Annotated[
        choices.RenderProfile,
        typer.Option(
            "--render",
            help="full: robosuite's own pixels; fast: no shadows, reflections or multisampling; coarse: also a "
            "simplified arm.",
            rich_help_panel=options.CONTENT,
        ),
    ] = "fast",
    rerender: Annotated[
        bool,
        typer.Option(
            "--rerender", help="Render images even where the file holds some.", rich_help_panel=options.CONTENT
        ),
    ] = False,
    check: Annotated[
        int,
        typer.Option(
            "--check",
            min=0,
            help="Demonstrations to replay as a whole to verify the recording; of the others, some chunks. 0: neither "
            "replay any nor compare the actions with the motion.",
            rich_help_panel="Verification",
        ),
    ] = 3,
    keys: as_recorded.Keys = None,
    action_key: as_recorded.ActionKey = None,
    rate: as_recorded.Rate = None,
    image_size: as_recorded.ImageSize = None,
    fit: as_recorded.Fit = None,
    bgr: as_recorded.Bgr = False,
    drop_episodes: as_recorded.DropEpisodes = None,
    only_task: as_recorded.OnlyTask = None,
    trim_pauses: as_recorded.TrimPauses = False,
    schema: as_recorded.SchemaFile = None,
    workers: options.Workers = None,
    cluster: options.Cluster = None,
    page: options.Page = None,
) -> None:
    """Convert recordings to a zarr store, or a store to another format; merge stores.

    Recordings of robosuite are replayed, and observations that were not recorded are rendered. Those of any other robot
    are converted as they are. An interrupted conversion is resumed by the same command.
    """
    from ddp_cli.data.conversion_plan import ConvertOptions

    recording_options = as_recorded.RecordingOptions(
        schema, keys, action_key, rate, image_size, fit, drop_episodes, only_task, trim_pauses, bgr
    )
    copy = CopyOptions(sources[0], out, to, task, only, actions, zarr_format, check, overwrite, json, keep)
    with reserve_page(page, overwrite):
        if len(sources) > 1:
            _reject_options(ctx, sources[0], "one of several stores", NOT_FOR_MERGING)
            written = merge(sources, copy)
        elif recording := _find_recording(sources[0], recording_options, task):
            _reject_options(ctx, sources[0], "converted as it was recorded", SIMULATOR_OPTIONS)
            written = as_recorded.convert_recording(recording, recording_options, copy, skip_bad)
        else:
            irrelevant = [name for name in RECORDING_OPTIONS if sources[0].is_dir() or name != "trim_pauses"]
            _reject_options(ctx, sources[0], "not a recording that is converted as it is", irrelevant)
            if sources[0].is_dir():
                written = _convert_folder(ctx, copy)
            else:
                _reject_options(ctx, sources[0], "a file", ("to", "keep"))
                convert_options = ConvertOptions(
                    obs, actions, render, rerender, filter_key, only, check, skip_bad, zarr_format, trim_pauses
                )
                written = _convert_demos(copy, convert_options, workers, cluster)
        if page:
            note_page([written], page)


def _convert_demos(
    copy: CopyOptions, convert_options: ConvertOptions, workers: int | None, cluster: str | None
) -> Path:
    """Converts demonstrations of robosuite to a store, and returns it."""
    from ddp_cli.data.demo_file import DemoFile
    from ddp_cli.data.store import STORE_MARKERS
    from ddp_cli.task_file import read_task

    with DemoFile(copy.source, read_task(copy.task) if copy.task else None, convert_options.filter_key) as demos:
        source_task = demos.task
    out = copy.out or options.default_store(source_task.name, convert_options.obs)
    started = time.perf_counter()
    with (
        options.reserve_output(out, copy.overwrite, STORE_MARKERS),
        options.open_workers(workers, cluster) as processes,
    ):
        result = run_conversion(copy.source, out, convert_options, processes, source_task)
    report_conversion(out, source_task, result, time.perf_counter() - started, copy.json)
    return out


def _find_recording(
    source: Path, recording_options: as_recorded.RecordingOptions, task: str | None
) -> Recording | None:
    """The recording of any robot at `source`, None for everything else. A task with a simulator asks for it."""
    from ddp_cli.data.recordings import open_recording
    from ddp_cli.task_file import read_task, task_file_path
    from ddp_cli.tasks import TASKS

    if not source.exists():
        return None
    as_it_is = recording_options.are_given
    if not as_it_is and task and (task in TASKS or task_file_path(task)) and read_task(task).simulator:
        return None
    return open_recording(source, as_it_is)


def _reject_options(ctx: typer.Context, source: Path, kind: str, names: Collection[str]) -> None:
    """DdpError if one of the options `names` was given: they do not apply to such a source, if it exists."""
    option = _given_option(ctx, names)
    if option and source.exists():  # otherwise what reads it says so
        raise DdpError(f"{option} does not apply to '{source}', which is {kind}.", "Leave it out.")


def _given_option(ctx: typer.Context, names: Collection[str]) -> str | None:
    """The first of the options `names` that was given, as the user writes it."""
    for option in ctx.command.params:
        origin = ctx.get_parameter_source(str(option.name))
        if option.name in names and origin is not None and origin.name == "COMMANDLINE":
            return str(option.opts[0])
    return None


def _convert_folder(ctx: typer.Context, copy: CopyOptions) -> Path:
    from ddp_cli.data.hdf5 import reject_folder_of_files
    from ddp_cli.data.lerobot_layout import is_lerobot, reject_collection
    from ddp_cli.data.lerobot_reader import LeRobotDataset
    from ddp_cli.data.store import Store
    from ddp_cli.task_file import read_task

    if is_lerobot(copy.source):
        _reject_options(ctx, copy.source, "a LeRobot dataset", (*FILE_OPTIONS, "to", "keep"))
        dataset = LeRobotDataset(copy.source, read_task(copy.task) if copy.task else None, copy.actions)
        return convert_lerobot(dataset, copy)
    reject_collection(copy.source)
    reject_folder_of_files(copy.source)
    _reject_options(ctx, copy.source, "a store", (*FILE_OPTIONS, "task", "check"))
    if copy.to and (option := _given_option(ctx, STORE_OUTPUT_OPTIONS)):
        raise DdpError(
            f"{option} does not go with --to {copy.to}.",
            f"Make a store first: `ddp convert {copy.source} {option} ... --out STORE.zarr`.",
        )
    return convert_store(Store(copy.source), copy)


def run_conversion(
    source: Path,
    out: Path,
    convert_options: ConvertOptions,
    workers: Workers | None = None,
    task: Task | None = None,
) -> ConversionResult:
    """`data.conversion.convert` with a progress bar."""
    from ddp_cli.data.conversion import convert as convert_demos
    from ddp_cli.parallel import default_workers

    started: dict[str, tuple[float, int]] = {}  # by stage: when, and how much was done then
    with console.progress(f"convert {source.name}") as update:

        def progress(stage: str, done: int, total: int) -> None:
            since, first = started.setdefault(stage, (time.perf_counter(), done))
            rate = (done - first) / max(time.perf_counter() - since, 1e-9)
            units = {"compare": "demonstrations compared", "check": "demonstrations checked"}
            update(done, total, units.get(stage, f"steps, {rate:.0f}/s"))

        return convert_demos(source, out, workers or default_workers(), progress, convert_options, task)
