"""`ddp convert` of recordings of any robot: to a store, as they were recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import ConfigError

if TYPE_CHECKING:
    from ddp_cli.commands.convert_folder import CopyOptions
    from ddp_cli.data.recording import Recording


@dataclass(frozen=True)
class RecordingOptions:
    """The options of `ddp convert` that apply to a recording of any robot."""

    schema: Path | None = None
    keys: str | None = None
    action_key: str | None = None
    rate: float | None = None

    @property
    def are_given(self) -> bool:
        """Whether any of them was given: the source is then converted as it was recorded."""
        return any(value is not None for value in (self.schema, self.keys, self.action_key, self.rate))


def convert_recording(
    recording: Recording,
    chosen: RecordingOptions,
    copy: CopyOptions,
    skip_bad: bool,
) -> None:
    """Converts `recording` to a store of a task without a simulator, called `copy.task`, by default like its file."""
    from ddp_cli.data.recording_conversion import convert_recording as write_store
    from ddp_cli.data.recording_schema import infer_schema, read_schema
    from ddp_cli.data.store import STORE_MARKERS, Store

    if chosen.schema:
        if chosen.keys or chosen.action_key or chosen.rate:
            raise ConfigError("--schema says what --keys, --action-key and --rate say.", "Leave these out.")
        schema = read_schema(chosen.schema, recording)
    else:
        schema = infer_schema(recording, chosen.keys, chosen.action_key, chosen.rate)
    name = _check_name(copy.task) if copy.task else _default_name(copy.source)
    out = copy.out or options.default_store(name, "image")
    left_out = copy.run(
        out,
        STORE_MARKERS,
        lambda progress: write_store(recording, schema, name, out, copy.only, copy.zarr_format, progress, skip_bad),
    )
    store = Store(out)
    steps = int(store.episode_ends[-1])
    if copy.json:
        console.print_json(
            {"out": str(out), "task": name, "episodes": len(store.episode_ends), "frames": steps,
             "left_out": left_out, "notes": recording.notes, "schema": schema.to_json()}
        )  # fmt: skip
        return
    console.result(f"{out}: task {name}, {len(store.episode_ends)} episodes, {steps} steps at {schema.rate:g} Hz")
    observed = [f"{key} {'x'.join(map(str, camera.shape))}" for key, camera in schema.cameras.items()]
    observed += [f"{key} ({vector.width})" for key, vector in schema.vectors.items()]
    console.result(f"observations: {', '.join(observed)}; action ({schema.action_dim})")
    for episode, fault in left_out.items():
        console.result(f"skipped {episode}: {fault}")
    for note in recording.notes:
        console.result(f"note: {note}")
    console.result(f"check not verified: {store.check['why']}")


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
