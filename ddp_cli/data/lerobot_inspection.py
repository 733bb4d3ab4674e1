"""Describes LeRobot datasets of every format, and what a conversion would do with them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ddp_cli.data.lerobot_compatibility import MissingOptionsError
from ddp_cli.data.lerobot_files import DatasetFiles, find_files
from ddp_cli.data.lerobot_layout import STORE_ATTRIBUTES_PATH, Feature, open_folder
from ddp_cli.data.lerobot_names import shorten
from ddp_cli.data.lerobot_reader import LeRobotDataset
from ddp_cli.data.lerobot_recording import LeRobotRecording
from ddp_cli.data.lint import lint_recording
from ddp_cli.data.recording_schema import plan_recording
from ddp_cli.errors import DataError
from ddp_cli.robots import ARM_WIDTHS
from ddp_cli.tasks import Task
from ddp_cli.video.video_info import read_video_info


def inspect_lerobot(path: Path, task: Task | None = None) -> dict[str, Any]:
    """The contents of a dataset as JSON. `task` is the one that a conversion would be for; of datasets that ddp wrote
    it is known. DataError if there is no description to read.
    """
    folder = open_folder(path)
    files = find_files(folder)
    contents: dict[str, Any] = {
        "kind": f"LeRobot dataset, format {folder.version}",
        "robot": folder.info.get("robot_type") or "unknown",
        "episodes": _compare(files.episodes, folder.info.get("total_episodes")),
        "steps": _compare(files.steps, folder.info.get("total_frames")),
        "rate": "unknown" if files.fps is None else f"{files.fps:g} Hz",
        "features": "; ".join(_describe_feature(name, feature) for name, feature in files.features.items()),
        "videos": "; ".join(_describe_videos(files)) or "none",
        "files": _describe_files(files),
    }
    if files.damaged:
        contents["damaged"] = " ".join(files.damaged)
    if task is None and not (path / STORE_ATTRIBUTES_PATH).is_file():
        return contents | _plan_as_recorded(path)
    return contents | {"ddp convert": describe_conversion(path, task)}


def _plan_as_recorded(path: Path) -> dict[str, Any]:
    """What `ddp convert` would do with a dataset of any robot, and the schema that it would use."""
    try:
        recording = LeRobotRecording(path)
        schema, plan = plan_recording(recording)
        faults = recording.faults(recording.observations) if schema else {}
        linted = lint_recording(recording, schema)
    except DataError as e:
        return {"ddp convert": f"rejects this dataset: {_reason(path, e)}"}
    if faults:
        index, fault = next(iter(sorted(faults.items())))
        plan += f". {len(faults)} episodes have faults, the first is episode {index}: {_reason(path, DataError(fault))}"
    notes = "".join(f" ({note})" for note in recording.notes)
    return {"ddp convert": f"{plan}{notes}. --task checks it as one of robosuite", "schema": schema, **linted}


def describe_conversion(path: Path, task: Task | None) -> str:
    """What `ddp convert` would do with a dataset: the same checks, without decoding the images."""
    try:
        return _describe_store(path, task, None)
    except MissingOptionsError as e:
        return f"needs options: {_reason(path, e)} {e.hint if task is None else _try_conventions(path, task)}"
    except DataError as e:
        return f"rejects this dataset: {_reason(path, e)}"


def _try_conventions(path: Path, task: Task) -> str:
    """What `ddp convert --actions` would do, for each convention."""
    outcomes = []
    for convention in ARM_WIDTHS:
        try:
            outcome = _describe_store(path, task, convention)
        except DataError as e:
            outcome = f"rejects this dataset: {_reason(path, e)}"
        outcomes.append(f"With --actions {convention} it {outcome}")
    return " ".join(outcomes)


def _reason(path: Path, error: DataError) -> str:
    return error.message.removeprefix(f"'{path}' cannot be converted: ").removeprefix(f"'{path}'").lstrip(": ")


def _describe_store(path: Path, task: Task | None, convention: str | None) -> str:
    """The store that a conversion would write; DataError if it would fail."""
    dataset = LeRobotDataset(path, task, convention)
    dataset.check(list(range(len(dataset.lengths))))
    notes = "".join(f" ({note})" for note in dataset.notes)
    images = "images are decoded" if dataset.cameras else "it has no images"
    return (
        f"writes a store of the task '{dataset.task.name}': {len(dataset.lengths)} episodes, {sum(dataset.lengths)} "
        f"steps, {dataset.convention} actions, not verified; {images}{notes}."
    )


def _compare(count: int, declared: Any) -> int | str:
    return count if declared in (None, count) else f"{count} found, {declared} declared"


def _describe_feature(name: str, feature: Feature) -> str:
    shape = f"{feature.dtype} {list(feature.shape)}" if feature.shape else f"{feature.dtype}, shape not stated"
    names = "" if feature.names is None or feature.is_visual else f" ({shorten(feature.names)})"
    return f"{name} {shape}{names}"


def _describe_videos(files: DatasetFiles) -> list[str]:
    """Per feature: the number of files, and what the first of them is."""
    descriptions = []
    for feature, paths in files.videos.items():
        text = f"{feature}: {len(paths)} files"
        with contextlib.suppress(IndexError):
            try:
                info = read_video_info(paths[0])
                text += f" of {info.height}x{info.width}, {info.rate:g} Hz, {info.codec}"
            except DataError as e:
                text += f", the first {_reason(paths[0], e).rstrip('.')}"
        descriptions.append(text)
    return descriptions


def _describe_files(files: DatasetFiles) -> str:
    if not files.missing:
        return f"all {files.expected} are there"
    return f"{len(files.missing)} of {files.expected} are missing, the first is {files.missing[0]}"
