"""LeRobot datasets (format v3.0), in. `lerobot_writer.py` makes them.

meta/info.json                            features, frames per second, where files are
meta/episodes/chunk-000/file-000.parquet  per episode: length, its file of data, its seconds in each video
meta/ddp.json                             attributes of the store that it was made of (ours, not LeRobot's)
data/chunk-000/file-000.parquet           a row per step: observation.state, action, timestamp, ...
videos/<feature>/chunk-000/file-000.mp4   episodes one after another

What such a dataset keeps of the simulator is nothing, so no demo of it can be executed to check it.
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

from ddp_cli.data.observations import as_goals
from ddp_cli.data.parquet import read_columns, read_rows
from ddp_cli.data.store_copy import choose
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.errors import DataError, close_match
from ddp_cli.tasks import ACTION_DIM, ACTIONS, CONTROL_HZ, IMAGE_SIZE, Task, task_from_json
from ddp_cli.video.video import frames

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO, OURS = "meta/info.json", "meta/ddp.json"
STATE, OBJECT, ACTION = "observation.state", "observation.environment_state", "action"
UNCHECKED = {"result": "not verified", "why": "a LeRobot dataset holds no states to execute demos from", "demos": []}
AGAIN = "Copy the dataset again."


def is_lerobot(path: Path) -> bool:
    """Whether `path` is a folder as LeRobot lays it out."""
    return (path / INFO).is_file()


def feature_of(key: str) -> str:
    """LeRobot's name of a camera: `agentview_image` -> `observation.images.agentview`."""
    return f"observation.images.{key.removesuffix('_image')}"


def read_json_object(path: Path) -> dict[str, Any]:
    """What a JSON file of a dataset says; DataError when it is missing or no object."""
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    raise DataError(f"'{path}' is missing or no JSON object.", AGAIN)


class LeRobotDataset:
    """A dataset of one task. Every fault is a DataError that names it.

    A dataset that ddp made knows its `task` and the convention of its `actions`; of others both must be said.
    """

    def __init__(self, path: Path, task: Task | None = None, actions: str | None = None) -> None:
        self.path = path
        self.info = read_json_object(path / INFO)
        if self.info.get("codebase_version") != VERSION:
            raise DataError(
                f"'{path}' has LeRobot's format {self.info.get('codebase_version')!r}, read is '{VERSION}'.",
                "LeRobot's own convert_dataset_v21_to_v30 brings older ones up to it.",
            )
        self.attrs = read_json_object(path / OURS) if (path / OURS).is_file() else {}
        self.task = task or self._own_task()
        if self.info.get("fps") != CONTROL_HZ:
            raise DataError(
                f"'{path}' has {self.info.get('fps')!r} steps per second, a policy acts at {CONTROL_HZ}.",
                "Record it anew at this rate.",
            )
        self._width = self._features().get(ACTION, {}).get("shape", [None])[0]
        self.actions = self._convention(actions)
        # A store without pictures makes a dataset without.
        self.obs = "state" if self.attrs.get("obs") == "state" else "image"
        self.cameras = tuple(self.task.images(self.obs))
        self._check_features()
        rows = [row for file in sorted((path / "meta/episodes").glob("*/*.parquet")) for row in read_rows(file)]
        self._episodes = sorted(rows, key=lambda row: self._number(row, "episode_index"))
        if not rows:
            raise DataError(f"'{path}' has no episodes (meta/episodes).", AGAIN)
        self.lengths = [self._number(row, "length") for row in self._episodes]

    def sha256(self) -> str:
        """Hash of all tables and videos, so that a store can name its source exactly."""
        found = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            if path.suffix in {".parquet", ".mp4"}:
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def _features(self) -> dict[str, dict[str, Any]]:
        features = self.info.get("features")
        if isinstance(features, dict) and all(
            isinstance(f, dict) and _is_shape(f.get("shape")) for f in features.values()
        ):
            return features
        raise DataError(f"'{self.path / INFO}' does not say which features there are.", AGAIN)

    def _own_task(self) -> Task:
        if "task" not in self.attrs:
            raise DataError(f"'{self.path}' does not say which task it is of.", "Name it: --task square.")
        return task_from_json(self.attrs["task"], f"'{self.path / OURS}'")

    def _convention(self, said: str | None) -> str:
        ours = self.attrs.get("action")
        found = ours.get("convention") if isinstance(ours, dict) else said
        if said not in (None, found):
            raise DataError(
                f"'{self.path}' has {found} actions, not {said} ones.",
                f"Leave --actions out; `ddp convert STORE --actions {said}` converts the store that is made.",
            )
        if not isinstance(found, str) or found not in ACTIONS:
            raise DataError(
                f"'{self.path}' does not say what its actions mean.",
                f"Say it: --actions {' or --actions '.join(ACTIONS)}.",
            )
        # Absolute goals are also recorded with an axis-angle rotation.
        valid = (ACTIONS[found]["dim"], *([ACTION_DIM] if found == "absolute" else []))
        if self._width not in valid:
            raise DataError(
                f"'{self.path}' has actions of {self._width} values, {found} ones have {' or '.join(map(str, valid))}.",
                "Only the actions of a single arm are read: position, rotation, gripper.",
            )
        return found

    def _check_features(self) -> None:
        features = self._features()
        picture = [IMAGE_SIZE, IMAGE_SIZE, 3]
        wanted = {feature_of(key): picture for key in self.cameras} | {STATE: [sum(self.task.low_dim.values())]}
        if self.task.object:
            wanted[OBJECT] = [self.task.object_dim]
        for name, shape in wanted.items():
            if name not in features:
                raise DataError(
                    f"'{self.path}' has no feature '{name}'{close_match(name, features)}",
                    f"It has {', '.join(features)}. A task file may name other cameras and sensors (--task).",
                )
            # LeRobot keeps pictures by height, width, channels, some tools by channels, height, width.
            if sorted(features[name]["shape"]) != sorted(shape):
                raise DataError(
                    f"'{self.path}': {name} has shape {features[name]['shape']}, the task '{self.task.name}' {shape}.",
                    "Make it of such pictures." if shape == picture else "A task file may describe others (--task).",
                )

    def _number(self, row: dict[str, Any], name: str) -> int:
        value = row.get(name)
        if isinstance(value, int) and 0 <= value < 1 << 40:
            return value
        raise DataError(f"'{self.path}/meta/episodes': {name} is {value!r}.", AGAIN)

    def episodes(self, chosen: list[int]) -> Iterator[dict[str, NDArray[Any]]]:
        """The chosen episodes as a store keeps them. Memory holds one, and one file of vectors."""
        table, videos = functools.lru_cache(maxsize=1)(self._table), {key: _VideoReader() for key in self.cameras}
        for i in chosen:
            row, length = self._episodes[i], self.lengths[i]
            columns = table(self._number(row, "data/chunk_index"), self._number(row, "data/file_index"))
            mine = columns["episode_index"] == self._number(row, "episode_index")
            if length == 0 or mine.sum() != length:
                raise DataError(f"'{self.path}' episode {i}: {mine.sum()} rows for {length} steps.", AGAIN)
            episode = self._vectors({name: values[mine] for name, values in columns.items()}, i)
            for key in self.cameras:
                episode[key] = self._pictures(videos[key], key, row, length)
            yield episode

    def _table(self, chunk: int, file: int) -> dict[str, NDArray[np.float64]]:
        widths = {STATE: sum(self.task.low_dim.values()), ACTION: int(self._width), "episode_index": 0}
        if self.task.object:
            widths[OBJECT] = self.task.object_dim
        return read_columns(self.path / self._file("data_path", chunk_index=chunk, file_index=file), widths)

    def _vectors(self, rows: dict[str, NDArray[np.float64]], episode: int) -> dict[str, NDArray[Any]]:
        for name, values in rows.items():
            if not np.isfinite(values).all():
                raise DataError(f"'{self.path}' episode {episode}: {name} is not finite.", "Leave it out: --only.")
        ends = list(itertools.accumulate(self.task.low_dim.values()))
        found = dict(zip(self.task.low_dim, np.split(rows[STATE], ends[:-1], axis=1), strict=True))
        action = rows[ACTION]
        if self.actions == "delta":
            action = action.clip(-1, 1)
        elif self._width == ACTION_DIM:
            action = as_goals(action)
        found |= {"action": action} | ({"object": rows[OBJECT]} if self.task.object else {})
        return {key: values.astype(np.float32) for key, values in found.items()}

    def _pictures(self, video: _VideoReader, key: str, row: dict[str, Any], length: int) -> NDArray[np.uint8]:
        name = f"videos/{feature_of(key)}"
        where = {n: self._number(row, f"{name}/{n}") for n in ("chunk_index", "file_index")}
        begin = row.get(f"{name}/from_timestamp")
        if not isinstance(begin, float) or not 0 <= begin < 1e9:
            raise DataError(f"'{self.path}/meta/episodes': {name}/from_timestamp is {begin!r}.", AGAIN)
        path = self.path / self._file("video_path", video_key=feature_of(key), **where)
        found = video.take(path, round(begin * CONTROL_HZ), length)
        if found.shape != (length, IMAGE_SIZE, IMAGE_SIZE, 3):
            raise DataError(f"'{path}' has {found.shape} where {length} pictures should be.", AGAIN)
        return found

    def _file(self, name: str, **where: int | str) -> str:
        try:
            found = str(self.info[name]).format(**where)
        except (KeyError, ValueError, IndexError, AttributeError):
            found = ""
        if not found or Path(found).is_absolute() or ".." in Path(found).parts:
            raise DataError(f"'{self.path / INFO}': {name} is {self.info.get(name)!r}.", AGAIN)
        return found


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(side) is int for side in value)


class _VideoReader:
    """Pictures from files that hold many episodes: in the order of the episodes, each is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._next = 0
        self._frames: Iterator[NDArray[np.uint8]] = iter(())

    def take(self, path: Path, first: int, count: int) -> NDArray[np.uint8]:
        if path != self._path or first < self._next:
            self._path, self._next, self._frames = path, 0, frames(path)
        found = list(itertools.islice(self._frames, first - self._next, first - self._next + count))
        self._next = first + count
        return np.stack(found) if found else np.zeros((0, 0, 0, 3), np.uint8)


def read_lerobot(
    data: LeRobotDataset, out: Path, only: str | None, zarr_format: int, progress: Callable[[int, int], None]
) -> int:
    """Writes the chosen episodes of `data` to the store `out`; returns the number of steps. An interrupted call goes
    on where it ended.
    """
    chosen = choose(len(data.lengths), only, f"'{data.path}'")
    lengths = [data.lengths[i] for i in chosen]
    # Of a foreign dataset nobody knows who took its pictures: as with those of robomimic, robosuite is supposed.
    attributes: dict[str, Any] = {"render": "full", "env_args": {}, "versions": {}} | {
        key: value for key, value in data.attrs.items() if key in ("render", "env_args", "versions")
    }
    attributes |= {
        "obs": data.obs,
        "action": ACTIONS[data.actions],
        "source": {"file": data.path.name, "sha256": data.sha256(), "demos": chosen, "left_out": {}},
    }
    with StoreWriter(out, data.task, lengths, attributes, zarr_format) as writer:
        writer.extend(data.episodes(chosen[writer.episodes :]), progress)
    writer.finish({"check": UNCHECKED})
    return sum(lengths)
