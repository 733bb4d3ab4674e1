"""`ddp convert` of recordings of any robot: to a store, as they were recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli import choices, console
from ddp_cli.commands import options
from ddp_cli.errors import ConfigError

if TYPE_CHECKING:
    from ddp_cli.commands.convert_folder import CopyOptions
    from ddp_cli.data.recording import Recording
    from ddp_cli.schema import Camera, Schema


PANEL = "Recordings of any robot"

Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        help="Arrays to observe, such as img,agent_pos=state[0:2]; all observations by default.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
ActionKey = Annotated[
    str | None,
    typer.Option("--action-key", help="Array of the actions.", show_default=False, rich_help_panel=PANEL),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        min=0.01,
        max=10_000,
        help="Control rate in Hz: of the recording where it does not state it, otherwise a lower one to resample to.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="HxW",
        help="Resize the images of all cameras to this height and width, such as 96x128.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Fit = Annotated[
    choices.Fit | None,
    typer.Option(
        "--fit",
        help="How images of other proportions are resized; stretch by default.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
DropEpisodes = Annotated[
    str | None,
    typer.Option(
        "--drop-episodes",
        metavar="NAMES",
        help="Episodes to leave out, by their names in `ddp inspect`: 3,17.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
TrimPauses = Annotated[
    bool,
    typer.Option(
        "--trim-pauses",
        help="Leave out the pauses that `ddp inspect` finds; those in between are shortened to 0.5 s.",
        rich_help_panel=options.SOURCE,
    ),
]
Bgr = Annotated[
    bool,
    typer.Option(
        "--bgr",
        help="Exchange red and blue: the images were recorded in the order of OpenCV.",
        rich_help_panel=PANEL,
    ),
]
OnlyTask = Annotated[
    str | None,
    typer.Option(
        "--only-task",
        metavar="TEXT",
        help="Episodes with this instruction, of a dataset with several; '*' stands for any text.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
SchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--schema",
        help="JSON file that describes the observations and the parts of the action, instead.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class RecordingOptions:
    """The options of `ddp convert` that apply to a recording of any robot."""

    schema: Path | None = None
    keys: str | None = None
    action_key: str | None = None
    rate: float | None = None
    image_size: str | None = None
    fit: choices.Fit | None = None
    drop_episodes: str | None = None
    only_task: str | None = None
    trim_pauses: bool = False
    bgr: bool = False

    @property
    def are_given(self) -> bool:
        """Whether any of them was given: the source is then converted as it was recorded."""
        return any(value is not None for value in (self.schema, self.keys, self.action_key, self.rate))

    def resized(self, schema: Schema) -> Schema:
        """`schema` with the size of images that --image-size asks for; ConfigError if it is malformed."""
        from ddp_cli.image_size import parse_image_size

        if not self.image_size:
            if self.fit:
                raise ConfigError(f"--fit {self.fit} needs a size.", "Add --image-size HxW.")
            return schema
        height, width = parse_image_size(self.image_size, "--image-size")
        cameras = {key: camera.resized(height, width, self.fit or "stretch") for key, camera in schema.cameras.items()}
        return schema.model_copy(update={"cameras": cameras})


def convert_recording(
    recording: Recording,
    chosen: RecordingOptions,
    copy: CopyOptions,
    skip_bad: bool,
) -> Path:
    """Converts `recording` to a store of a task without a simulator and returns the store. The task is called
    `copy.task`, by default like the file of the recording, or `copy.task` is a file that describes it.
    """
    from ddp_cli.data.recording_conversion import convert_recording as write_store
    from ddp_cli.data.recording_schema import infer_schema, read_schema
    from ddp_cli.data.store import STORE_MARKERS, Store
    from ddp_cli.task_file import task_file_path

    task_file = task_file_path(copy.task) if copy.task else None
    if task_file and chosen.schema:
        raise ConfigError(f"--schema and --task {task_file} both hold a schema.", "Give one of them.")
    if file := chosen.schema or task_file:
        if chosen.keys or chosen.action_key or chosen.rate:
            option = "--schema" if chosen.schema else f"--task {file}"
            raise ConfigError(f"{option} says what --keys, --action-key and --rate say.", "Leave these out.")
        schema = read_schema(file, recording)
    else:
        schema = infer_schema(recording, chosen.keys, chosen.action_key, chosen.rate)
    schema = chosen.resized(schema)
    dropped = [name.strip() for name in chosen.drop_episodes.split(",") if name.strip()] if chosen.drop_episodes else []
    name, horizon = _name_and_horizon(copy, task_file)
    out = copy.out or options.default_store(name, "image")
    left_out = copy.run(
        out,
        STORE_MARKERS,
        lambda progress: write_store(
            recording,
            schema,
            name,
            horizon,
            out,
            copy.only,
            copy.zarr_format,
            progress,
            skip_bad,
            dropped,
            chosen.only_task,
            chosen.trim_pauses,
            chosen.bgr,
        ),
    )
    store = Store(out)
    schema = store.task.schema
    steps = int(store.episode_ends[-1])
    if copy.json:
        console.print_json(
            {"out": str(out), "task": name, "episodes": len(store.episode_ends), "frames": steps,
             "left_out": left_out, "notes": recording.notes, "schema": schema.to_json()}
        )  # fmt: skip
        return out
    console.result(f"{out}: task {name}, {len(store.episode_ends)} episodes, {steps} steps at {schema.rate:g} Hz")
    observed = [_describe_camera(key, camera) for key, camera in schema.cameras.items()]
    observed += [f"{key} ({vector.width})" for key, vector in schema.vectors.items()]
    console.result(f"observations: {', '.join(observed)}; action ({schema.action_dim})")
    for episode, fault in left_out.items():
        console.result(f"skipped {episode}: {fault}")
    for note in recording.notes:
        console.result(f"note: {note}")
    console.result(f"check not verified: {store.check['why']}")
    return out


def _describe_camera(key: str, camera: Camera) -> str:
    size = "x".join(map(str, camera.shape))
    return f"{key} {size}" + (
        f" (from {camera.recorded[0]}x{camera.recorded[1]}, {camera.fit})" if camera.recorded else ""
    )


def _name_and_horizon(copy: CopyOptions, task_file: Path | None) -> tuple[str, int | None]:
    """The name of the task, and its horizon if `task_file` states one."""
    from ddp_cli.json_file import read_json
    from ddp_cli.task_file import task_from_file

    if task_file is None:
        return _check_name(copy.task) if copy.task else _default_name(copy.source), None
    task = task_from_file(task_file)
    return task.name, task.horizon if "horizon" in read_json(task_file) else None


def _default_name(source: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", source.name.split(".")[0]).strip("_-")[:64]
    return name or "recording"


def _check_name(task: str) -> str:
    from ddp_cli.schema import check_identifier
    from ddp_cli.tasks import TASKS

    if task.lower() in TASKS:
        raise ConfigError(
            f"--task {task} is a built-in task with a simulator.",
            "Give the recording another name, or leave out --schema, --keys, --action-key and --rate.",
        )
    try:
        return check_identifier(task)
    except ValueError as e:
        raise ConfigError(f"--task {task}: {e}.", "The task is called like the recording without --task.") from None
