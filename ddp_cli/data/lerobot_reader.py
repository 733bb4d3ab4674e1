"""Reads LeRobot datasets (format v3.0). lerobot_writer.py writes them.

meta/info.json                            features, frame rate, paths of the files
meta/episodes/chunk-000/file-000.parquet  per episode: length, its data file, its time span in each video [s]
meta/ddp.json                             attributes of the store it was written from (of ddp, not of LeRobot)
data/chunk-000/file-000.parquet           a row per step: observation.state, action, timestamp, ...
videos/<feature>/chunk-000/file-000.mp4   episodes one after another

Such a dataset holds no simulator states, so its demonstrations cannot be replayed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.actions import axis_angle_to_rotation_6d
from ddp_cli.data.parquet import COPY_AGAIN, read_columns, read_rows
from ddp_cli.data.store_copy import select_episodes
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError, close_match
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import ACTION_DIM, ACTIONS, CONTROL_HZ, IMAGE_SIZE, Task
from ddp_cli.video.video import iter_frames

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO_PATH, STORE_ATTRIBUTES_PATH = "meta/info.json", "meta/ddp.json"
STATE_FEATURE, OBJECT_FEATURE, ACTION_FEATURE = "observation.state", "observation.environment_state", "action"
NOT_VERIFIED = {"result": "not verified", "why": "a LeRobot dataset holds no simulator states to replay", "demos": []}


def is_lerobot(path: Path) -> bool:
    """Whether `path` is a folder in LeRobot's layout."""
    return (path / INFO_PATH).is_file()


def feature_of(key: str) -> str:
    """LeRobot's name of an image key: `agentview_image` -> `observation.images.agentview`."""
    return f"observation.images.{key.removesuffix('_image')}"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a dataset; DataError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    raise DataError(f"'{path}' is missing or not a JSON object.", COPY_AGAIN)


class LeRobotDataset:
    """A dataset of one task. Every fault is a DataError that names it.

    A dataset written by ddp states its `task` and its action `convention`; for others both are required.
    """

    def __init__(self, path: Path, task: Task | None = None, convention: str | None = None) -> None:
        self.path = path
        self.info = read_json_object(path / INFO_PATH)
        if self.info.get("codebase_version") != VERSION:
            raise DataError(
                f"'{path}' has LeRobot format {self.info.get('codebase_version')!r}, expected '{VERSION}'.",
                "Upgrade older datasets with LeRobot's convert_dataset_v21_to_v30.",
            )
        self.attrs = read_json_object(path / STORE_ATTRIBUTES_PATH) if (path / STORE_ATTRIBUTES_PATH).is_file() else {}
        self.task = task or self._stored_task()
        if self.info.get("fps") != CONTROL_HZ:
            raise DataError(
                f"'{path}' was recorded at {self.info.get('fps')!r} Hz, expected {CONTROL_HZ} Hz.",
                "Record or resample it at this rate.",
            )
        self._action_dim = self._features().get(ACTION_FEATURE, {}).get("shape", [None])[0]
        self.convention = self._action_convention(convention)
        # Written from a store without images, a dataset has no videos.
        self.obs = "state" if self.attrs.get("obs") == "state" else "image"
        self.cameras = tuple(self.task.images(self.obs))
        self._check_features()
        rows = [row for file in sorted((path / "meta/episodes").glob("*/*.parquet")) for row in read_rows(file)]
        self._episodes = sorted(rows, key=lambda row: self._integer(row, "episode_index"))
        if not rows:
            raise DataError(f"'{path}' has no episodes (meta/episodes).", COPY_AGAIN)
        self.lengths = [self._integer(row, "length") for row in self._episodes]

    def sha256(self) -> str:
        """Hash of all tables and videos, which identifies the source of a store."""
        digest = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            if path.suffix in {".parquet", ".mp4"}:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _features(self) -> dict[str, dict[str, Any]]:
        features = self.info.get("features")
        if isinstance(features, dict) and all(
            isinstance(f, dict) and _is_shape(f.get("shape")) for f in features.values()
        ):
            return features
        raise DataError(f"'{self.path / INFO_PATH}' does not describe its features.", COPY_AGAIN)

    def _stored_task(self) -> Task:
        if "task" not in self.attrs:
            raise DataError(f"'{self.path}' does not name its task.", "Name it, for example --task square.")
        return task_from_json(self.attrs["task"], f"'{self.path / STORE_ATTRIBUTES_PATH}'")

    def _action_convention(self, option: str | None) -> str:
        """The convention in the dataset, or else `option`, the value of --actions."""
        stored = self.attrs.get("action")
        convention = stored.get("convention") if isinstance(stored, dict) else option
        if option not in (None, convention):
            raise DataError(
                f"'{self.path}' has {convention} actions, not {option} ones.",
                f"Omit --actions, then convert the resulting store with `ddp convert STORE --actions {option}`.",
            )
        if not isinstance(convention, str) or convention not in ACTIONS:
            raise DataError(
                f"'{self.path}' does not state its action convention.",
                f"Add --actions {' or --actions '.join(ACTIONS)}.",
            )
        # Absolute goals are also recorded with an axis-angle rotation.
        valid = (ACTIONS[convention]["dim"], *([ACTION_DIM] if convention == "absolute" else []))
        if self._action_dim not in valid:
            raise DataError(
                f"'{self.path}' has actions of width {self._action_dim}, expected {' or '.join(map(str, valid))} "
                f"for {convention} actions.",
                "Only actions of a single arm are supported: position, rotation, gripper.",
            )
        return convention

    def _check_features(self) -> None:
        features = self._features()
        image_shape = [IMAGE_SIZE, IMAGE_SIZE, 3]
        expected = {feature_of(key): image_shape for key in self.cameras}
        expected[STATE_FEATURE] = [sum(self.task.low_dim.values())]
        if self.task.object:
            expected[OBJECT_FEATURE] = [self.task.object_dim]
        for name, shape in expected.items():
            if name not in features:
                raise DataError(
                    f"'{self.path}' has no feature '{name}'{close_match(name, features)}",
                    f"It has {', '.join(features)}. Other cameras and sensors can be named in a task file (--task).",
                )
            # Images are (height, width, channels) in LeRobot, (channels, height, width) in some other tools.
            if sorted(features[name]["shape"]) != sorted(shape):
                raise DataError(
                    f"'{self.path}': {name} has shape {features[name]['shape']}, expected {shape} for the task "
                    f"'{self.task.name}'.",
                    "Resize the images." if shape == image_shape else "Describe other sensors in a task file (--task).",
                )

    def _integer(self, row: dict[str, Any], name: str) -> int:
        value = row.get(name)
        if isinstance(value, int) and 0 <= value < 1 << 40:
            return value
        raise DataError(f"'{self.path}/meta/episodes': {name} is {value!r}.", COPY_AGAIN)

    def episodes(self, indices: list[int]) -> Iterator[dict[str, NDArray[Any]]]:
        """The episodes `indices` with the arrays of a store. Holds one episode and one table in memory."""
        table, videos = functools.lru_cache(maxsize=1)(self._table), {key: _VideoReader() for key in self.cameras}
        for i in indices:
            row, length = self._episodes[i], self.lengths[i]
            columns = table(self._integer(row, "data/chunk_index"), self._integer(row, "data/file_index"))
            mask = columns["episode_index"] == self._integer(row, "episode_index")
            if length == 0 or mask.sum() != length:
                raise DataError(f"'{self.path}' episode {i}: {mask.sum()} rows for {length} steps.", COPY_AGAIN)
            episode = self._vectors({name: values[mask] for name, values in columns.items()}, i)
            for key in self.cameras:
                episode[key] = self._images(videos[key], key, row, length)
            yield episode

    def _table(self, chunk: int, file: int) -> dict[str, NDArray[np.float64]]:
        widths = {
            STATE_FEATURE: sum(self.task.low_dim.values()), ACTION_FEATURE: int(self._action_dim), "episode_index": 0,
        }  # fmt: skip
        if self.task.object:
            widths[OBJECT_FEATURE] = self.task.object_dim
        return read_columns(self.path / self._file("data_path", chunk_index=chunk, file_index=file), widths)

    def _vectors(self, rows: dict[str, NDArray[np.float64]], episode: int) -> dict[str, NDArray[Any]]:
        """Actions and low-dimensional observations, (n, width) each."""
        for name, values in rows.items():
            if not np.isfinite(values).all():
                raise DataError(f"'{self.path}' episode {episode}: {name} is not finite.", "Exclude it with --only.")
        ends = list(itertools.accumulate(self.task.low_dim.values()))
        vectors = dict(zip(self.task.low_dim, np.split(rows[STATE_FEATURE], ends[:-1], axis=1), strict=True))
        action = rows[ACTION_FEATURE]
        if self.convention == "delta":
            action = action.clip(-1, 1)
        elif self._action_dim == ACTION_DIM:
            action = axis_angle_to_rotation_6d(action)
        vectors |= {"action": action} | ({"object": rows[OBJECT_FEATURE]} if self.task.object else {})
        return {key: values.astype(np.float32) for key, values in vectors.items()}

    def _images(self, video: _VideoReader, key: str, row: dict[str, Any], length: int) -> NDArray[np.uint8]:
        name = f"videos/{feature_of(key)}"
        indices = {n: self._integer(row, f"{name}/{n}") for n in ("chunk_index", "file_index")}
        begin = row.get(f"{name}/from_timestamp")
        if not isinstance(begin, float) or not 0 <= begin < 1e9:
            raise DataError(f"'{self.path}/meta/episodes': {name}/from_timestamp is {begin!r}.", COPY_AGAIN)
        path = self.path / self._file("video_path", video_key=feature_of(key), **indices)
        images = video.read(path, round(begin * CONTROL_HZ), length)
        expected = (length, IMAGE_SIZE, IMAGE_SIZE, 3)
        if images.shape != expected:
            raise DataError(f"'{path}': images have shape {images.shape}, expected {expected}.", COPY_AGAIN)
        return images

    def _file(self, name: str, **indices: int | str) -> str:
        """The path template `name` of info.json, filled in; DataError if it leads out of the dataset."""
        try:
            path = str(self.info[name]).format(**indices)
        except (KeyError, ValueError, IndexError, AttributeError):
            path = ""
        if not path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(f"'{self.path / INFO_PATH}': {name} is {self.info.get(name)!r}.", COPY_AGAIN)
        return path


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(side) is int for side in value)


class _VideoReader:
    """Reads episodes from videos that hold many: in the order of the video, each frame is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._position = 0
        self._frames: Iterator[NDArray[np.uint8]] = iter(())

    def read(self, path: Path, first: int, count: int) -> NDArray[np.uint8]:
        if path != self._path or first < self._position:
            self._path, self._position, self._frames = path, 0, iter_frames(path)
        images = list(itertools.islice(self._frames, first - self._position, first - self._position + count))
        self._position = first + count
        return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)


def read_lerobot(
    dataset: LeRobotDataset, out: Path, only: str | None, zarr_format: int, progress: Callable[[int, int], None]
) -> int:
    """Writes the episodes of `dataset` that `only` selects to the store `out`; returns the number of steps.

    An interrupted conversion is resumed.
    """
    indices = select_episodes(len(dataset.lengths), only, f"'{dataset.path}'")
    lengths = [dataset.lengths[i] for i in indices]
    # The renderer of other datasets is unknown; robosuite's own is assumed, as for robomimic's.
    attributes: dict[str, Any] = {"render": "full", "env_args": {}, "versions": {}} | {
        key: value for key, value in dataset.attrs.items() if key in ("render", "env_args", "versions")
    }
    attributes |= {
        "obs": dataset.obs,
        "action": ACTIONS[dataset.convention],
        "source": {"file": dataset.path.name, "sha256": dataset.sha256(), "demos": indices, "left_out": {}},
    }
    with StoreWriter(out, dataset.task, lengths, attributes, zarr_format) as writer:
        writer.extend(dataset.episodes(indices[writer.episodes :]), progress)
    writer.finish({"check": NOT_VERIFIED})
    return sum(lengths)
