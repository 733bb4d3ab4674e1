"""Reads LeRobot datasets (v2.0, v2.1 and v3.0) of any robot as recordings; lerobot_reader.py reads those of robosuite.

Observed are the features `observation.*`; their names and the control rate are those of meta/info.json.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.invariants import TIME_TOLERANCE
from ddp_cli.data.lerobot_checks import check_indices, find_overlaps
from ddp_cli.data.lerobot_files import (
    MAX_EPISODES,
    content_hash,
    fields_v2,
    read_episodes,
    read_episodes_v2,
    read_integer,
    table_of_episode,
    video_of_episode,
)
from ddp_cli.data.lerobot_images import TableImages, VideoReader
from ddp_cli.data.lerobot_layout import ACTION_FEATURE, VERSION, Feature, open_folder
from ddp_cli.data.parquet import COPY_AGAIN, count_rows, read_columns
from ddp_cli.data.recording import StepArray, describe_unobserved
from ddp_cli.errors import DataError
from ddp_cli.schema import Camera

INDEX_COLUMNS = ("episode_index", "frame_index", "index", "timestamp")
MAX_TIME = 1e9  # [s] in a video
NUMERIC_DTYPES = ("float", "int", "uint", "bool")


class LeRobotRecording:
    """A recording; see recording.Recording."""

    action: str = ACTION_FEATURE
    default_rate: float | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, list[str]()
        self._folder = open_folder(path)
        self.kind = f"LeRobot dataset, format {self._folder.version}"
        self._is_v3 = self._folder.version == VERSION
        if not self._is_v3 and not self._folder.version.startswith("v2."):
            raise DataError(
                f"'{path}' has LeRobot format {self._folder.version}, expected v2.0 to v3.0.",
                "Upgrade it with LeRobot, or convert its episodes to HDF5.",
            )
        if self._folder.fps is None:
            raise DataError(f"'{path}': meta/info.json does not state its rate (fps).", COPY_AGAIN)
        self._fps = self._folder.fps
        self.rate: float | None = self._fps
        self._features = self._folder.features
        visual = {name: feature for name, feature in self._features.items() if feature.is_visual}
        self._cameras = {name: camera for name, feature in visual.items() if (camera := _camera(feature))}
        self.unreadable = {
            name: f"its images have shape {list(feature.shape)}, expected 3 channels (RGB)"
            for name, feature in visual.items()
            if name not in self._cameras
        }
        self.unreadable |= {
            name: f"its values have shape {list(feature.shape)}, expected one dimension"
            for name, feature in self._features.items()
            if name not in visual and len(feature.shape) > 1
        }
        self.notes += describe_unobserved(self.unreadable)
        self.arrays = {
            name: StepArray(self._cameras[name].shape, np.dtype(np.uint8))
            if name in self._cameras
            else StepArray(feature.shape, np.dtype(np.float64), feature.names or ())
            for name, feature in self._features.items()
            if name not in (*INDEX_COLUMNS, "task_index")
            and (name in self._cameras or (len(feature.shape) == 1 and feature.dtype.startswith(NUMERIC_DTYPES)))
        }
        self._episodes = read_episodes(self._folder) if self._is_v3 else self._episodes_v2()
        self.lengths = [read_integer(self._folder, row, "length") for row in self._episodes]
        self.episode_names = [str(row["episode_index"]) for row in self._episodes]
        self.instructions = ["; ".join(map(str, row.get("tasks") or ())) for row in self._episodes]
        self.observations = self._find_observations()
        self._table = functools.lru_cache(maxsize=1)(self._read_table)
        self._rows = functools.lru_cache(maxsize=1)(self._read_rows)  # an episode is read array by array
        self._videos: dict[tuple[str, Camera, bool], VideoReader] = {}
        self.in_videos = [name for name in self._cameras if self._features[name].dtype == "video"]
        self._images = {name: TableImages(path, name, camera) for name, camera in self._cameras.items()}

    def _episodes_v2(self) -> list[dict[str, Any]]:
        """The lines of meta/episodes.jsonl, and the lengths of tables that it does not list."""
        described = read_episodes_v2(self._folder)
        episodes = []
        for index in range(min(self._folder.count("total_episodes") or len(described), MAX_EPISODES)):
            row = {"episode_index": index, **described.get(index, {})}
            if "length" not in row:
                row["length"] = count_rows(self._table_of(row))
            episodes.append(row)
        if not episodes:
            raise DataError(f"'{self.path}' lists no episodes.", COPY_AGAIN)
        return episodes

    def _find_observations(self) -> list[str]:
        """The features `observation.*`, without cameras whose videos are all missing."""
        names = [name for name in self.arrays if name.startswith("observation.")]
        absent = [name for name in names if len(self._missing_videos(name)) == len(self.lengths)]
        self.notes += [f"{name}: none of its videos is there, it is not observed" for name in absent]
        return [name for name in names if name not in absent]

    def _missing_videos(self, array: str) -> dict[int, Path]:
        """The missing video of each episode that has none."""
        if array not in self._cameras or self._features[array].dtype != "video":
            return {}
        paths = {i: self._video(array, row)[0] for i, row in enumerate(self._episodes)}
        exists = {path: path.is_file() for path in paths.values()}
        return {i: path for i, path in paths.items() if not exists[path]}

    def _foreign_frames(self, array: str) -> dict[int, str]:
        """The episodes whose part of a video is of another length, or begins within that of another episode -> fault.

        A frame more or less is the rounding of times.
        """
        if not self._is_v3 or array not in self.in_videos:
            return {}
        faults: dict[int, str] = {}
        videos: dict[Path, list[tuple[int, int, int]]] = {}  # first frame, frame after the last, episode
        for i, row in enumerate(self._episodes):
            path, begin = self._video(array, row)
            videos.setdefault(path, []).append((begin, begin + self.lengths[i], i))
            end = row.get(f"videos/{array}/to_timestamp")
            if _is_time(end) and abs(round(end * self._fps) - begin - self.lengths[i]) > 1:
                frames = round(end * self._fps) - begin
                faults[i] = f"its part of the video of {array} has {frames} frames for {self.lengths[i]} steps"
        for parts in videos.values():
            for _, i in find_overlaps(parts, tolerance=1):
                faults[i] = f"its part of the video of {array} begins within that of another episode"
        return faults

    def faults(self, arrays: Collection[str]) -> dict[int, str]:
        """Episodes whose files are missing or whose rows are not those of an episode."""
        faults: dict[int, str] = {}
        for array in arrays:
            for i, path in self._missing_videos(array).items():
                faults.setdefault(i, f"no file '{path.relative_to(self.path)}'")
            for i, fault in self._foreign_frames(array).items():
                faults.setdefault(i, fault)
        uneven = total = 0
        for i in range(len(self.lengths)):
            try:
                rows, _ = self._rows(i)
            except DataError as e:
                faults.setdefault(i, e.message)
                continue
            steps = np.diff(rows.get("timestamp", np.zeros(0)))
            uneven += int((np.abs(steps * self._fps - 1) > TIME_TOLERANCE).sum())
            total += len(steps)
        if uneven:
            text = f"the time between {uneven} of {total} steps is not {1e3 / self._fps:g} ms (within 10%)"
            self.notes.append(f"{text}: frames may be missing, or the clock is uneven")
        return faults

    def _table_of(self, row: dict[str, Any]) -> Path:
        return (
            table_of_episode(self._folder, row)
            if self._is_v3
            else self._folder.file("data_path", **fields_v2(self._folder, row["episode_index"]))
        )

    def _read_table(self, path: Path) -> dict[str, NDArray[np.float64]]:
        widths = {name: step.shape[0] for name, step in self.arrays.items() if name not in self._cameras}
        return read_columns(path, {**widths, **dict.fromkeys(INDEX_COLUMNS, 0)}, INDEX_COLUMNS)

    def read(self, array: str, episode: int) -> NDArray[Any]:
        """The values of `array` in an episode, (n, ...), as recorded; images are decoded."""
        if array not in self._cameras:
            return self._rows(episode)[0][array]
        return np.stack(list(self.iter_images(array, episode)))

    def iter_images(
        self, array: str, episode: int, exact: bool = True, camera: Camera | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """The images of an episode one by one; see recording.Recording."""
        _, positions = self._rows(episode)
        row = self._episodes[episode]
        if self._features[array].dtype == "video":
            path, begin = self._video(array, row)
            key = array, camera or self._cameras[array], exact
            if key not in self._videos:
                self._videos[key] = VideoReader(key[1], self._fps, seek=not exact)
            return self._videos[key].read(path, begin, self.lengths[episode], row["episode_index"])
        return iter(self._images[array].read(self._table_of(row), positions, self._where(row)))

    def _where(self, row: dict[str, Any]) -> str:
        return f"'{self.path}' episode {row['episode_index']}"

    def _read_rows(self, episode: int) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
        """The numeric columns of an episode, and its positions in its table."""
        row = self._episodes[episode]
        columns = self._table(self._table_of(row))
        # A table of v2 holds one episode.
        index = columns.get("episode_index", np.full(self.lengths[episode], row["episode_index"]))
        positions = np.flatnonzero(index == row["episode_index"])
        rows = {name: values[positions] for name, values in columns.items()} | {"episode_index": index[positions]}
        first = row.get("dataset_from_index")
        counted = {name: values for name, values in rows.items() if name != "timestamp"}
        check_indices(
            counted, self.lengths[episode], first if isinstance(first, int) else None, self._fps,
            self._where(row),
        )  # fmt: skip
        return rows, positions

    def _video(self, array: str, row: dict[str, Any]) -> tuple[Path, int]:
        """The video of an episode, and its first frame there."""
        if not self._is_v3:
            return self._folder.file("video_path", video_key=array, **fields_v2(self._folder, row["episode_index"])), 0
        begin = row.get(f"videos/{array}/from_timestamp")
        if not _is_time(begin):
            raise DataError(f"{self._where(row)}: videos/{array}/from_timestamp is {begin!r}.", COPY_AGAIN)
        return video_of_episode(self._folder, row, array), round(begin * self._fps)

    def sha256(self) -> str:
        """Hash of all files and their names."""
        return content_hash(self.path)


def _is_time(value: Any) -> TypeGuard[float]:
    """Whether `value` is a time in a video [s]."""
    return isinstance(value, int | float) and 0 <= value < MAX_TIME


def _camera(feature: Feature) -> Camera | None:
    """The shape of RGB images, (height, width, channels) or channels first; None for others, such as depth."""
    shape = StepArray(feature.shape, np.dtype(np.uint8)).image_shape
    return Camera(height=shape[0], width=shape[1]) if shape and shape[2] == 3 else None
