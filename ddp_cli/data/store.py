"""The store, read: a zarr folder in the field's replay-buffer layout. store_writer.py writes it.

    data/<image key>   (N, height, width, channels) uint8, lossless zstd over some frames; absent in stores for state
                       policies
    data/<other key>   (N, width) float32
    data/action        (N, Da) float32
    meta/episode_ends  (E,) int64, index one past each episode's last step

Episodes are concatenated along the first axis. Attributes hold the schema, the source, the task and how images were
rendered.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from ddp_cli.data import store_check
from ddp_cli.errors import ConfigError, DataError
from ddp_cli.parallel import default_workers
from ddp_cli.schema import Camera
from ddp_cli.task_difference import describe_difference
from ddp_cli.task_file import read_task, task_file_path, task_from_json
from ddp_cli.tasks import Task

STORE_FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 had no schema: its task, of robosuite, says what a step holds."""
HASHED_IMAGES = 16
CHECK_RESULTS = ("passed", "failed", "not verified")
STORE_MARKERS = ("zarr.json", ".zgroup")
"""Every store, of either zarr format, holds one of these files."""
REQUIRED_ATTRIBUTES = ("format", "task", "render", "env_args", "versions", "action", "source", "complete")


class Store:
    """A complete store, validated when opened: attributes, shapes, and that every chunk has its file. Every fault is a
    DataError that names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        hint = "Make one with `ddp convert DEMOS.hdf5 --out STORE.zarr`."
        if not path.exists():
            raise DataError(f"no store '{path}'.", hint)
        try:
            self._root = zarr.open_group(path, mode="r")
            self.attrs: dict[str, Any] = self._root.attrs.asdict()
        except Exception as e:  # damaged metadata raises many kinds
            raise DataError(f"'{path}' is not a zarr store.", hint) from e
        if "format" not in self.attrs:
            raise DataError(f"'{path}' is a zarr folder, but not one written by `ddp convert`.", hint)
        if self.attrs["format"] not in READABLE_FORMATS:
            raise DataError(
                f"'{path}' has store format {self.attrs['format']}, this version of ddp reads format {STORE_FORMAT}.",
                "Convert the demonstrations again, or install the version of ddp that wrote it.",
            )
        missing = [k for k in REQUIRED_ATTRIBUTES if k not in self.attrs]
        if missing or not self.attrs["complete"]:
            fault = f"lacks the attribute '{missing[0]}'" if missing else "is not complete"
            raise DataError(f"'{path}' {fault}.", hint)
        store_check.check_attributes(path, self.attrs)
        self.task = task_from_json(self.attrs["task"], f"'{path}'")
        self.resized: dict[str, Camera] = {}
        """The cameras whose images are resized when they are read, see `for_task`."""
        store_check.check_episode_array(path, self._array("episode_ends", "meta"))
        self.episode_ends: NDArray[np.int64] = self.read("episode_ends", group="meta").astype(np.int64)
        store_check.check_episode_ends(path, self.episode_ends, self.attrs)
        store_check.check_arrays(path, self._find_array, self.task, self.attrs, self.episode_ends)
        store_check.check_content(path, self._find_array, self.attrs, self.episode_ends)

    def read(self, key: str, group: str = "data", rows: slice = slice(None)) -> NDArray[Any]:
        """The array `key`, or some of its rows, decoded; DataError if it is missing or damaged."""
        return (
            self._read_resized(key, rows) if group == "data" and key in self.resized else self._read(key, group, rows)
        )

    def _read_resized(self, key: str, selection: slice) -> NDArray[Any]:
        """Images resized chunk by chunk: as they are stored they may take many times the memory."""
        camera, array = self.resized[key], self._array(key)
        rows = range(*selection.indices(array.shape[0]))
        if rows.step != 1:
            return camera.take(self._read(key, "data", selection))
        step = store_check.chunk_rows(array)
        parts = [range(i, min(i + step, rows.stop)) for i in range(rows.start, rows.stop, step)]
        images = np.empty((len(rows), *camera.shape), np.uint8)

        def read(part: range) -> None:
            stored = self._read(key, "data", slice(part.start, part.stop))
            images[part.start - rows.start : part.stop - rows.start] = camera.take(stored)

        with ThreadPoolExecutor(default_workers()) as pool:
            list(pool.map(read, parts))
        return images

    def _read(self, key: str, group: str, rows: slice) -> NDArray[Any]:
        """Rows as they are stored."""
        array = self._array(key, group)
        try:
            return np.asarray(array[rows])
        except MemoryError:
            raise
        except Exception as e:  # damaged chunks and metadata raise many kinds
            chunk = store_check.find_damaged_chunk(array, rows)
            where = f": chunk file {chunk[1]}" if chunk else ""
            if chunk and group == "data":
                end = chunk[0] + store_check.chunk_rows(array)
                where += f", {store_check.name_episodes(self.episode_ends, chunk[0], end)}"
            raise DataError(f"'{self.path}': {group}/{key} is damaged{where}.", store_check.REPAIR_HINT) from e

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of data/`key`, as `read` returns it."""
        shape = tuple(self._array(key).shape)
        return (shape[0], *self.resized[key].shape) if key in self.resized else shape

    def nbytes(self, key: str) -> int:
        """Size of data/`key` when decoded [bytes]."""
        return math.prod(self.shape(key)) * self._array(key).dtype.itemsize

    @property
    def episode_bounds(self) -> list[tuple[int, int]]:
        """First row and one past the last row of each episode."""
        return list(itertools.pairwise([0, *self.episode_ends.tolist()]))

    @property
    def policy_episodes(self) -> dict[str, bool]:
        """Name of each episode in which a policy acted, and the demonstrator labelled what it did -> whether it ended
        with success.
        """
        episodes = self.attrs["source"].get("policy_episodes")
        return {str(name): bool(success) for name, success in episodes.items()} if isinstance(episodes, dict) else {}

    @property
    def takeovers(self) -> dict[str, list[list[int]]]:
        """Name of each episode in which an operator took over from a policy -> first step and one past the last of
        every takeover.
        """
        takeovers = self.attrs["source"].get("takeovers")
        return {str(name): spans for name, spans in takeovers.items()} if isinstance(takeovers, dict) else {}

    @property
    def episode_names(self) -> list[str]:
        """Names of the episodes in their source; their numbers where the store does not say."""
        names, n = self.attrs["source"].get("demos"), len(self.episode_ends)
        is_complete = isinstance(names, list) and len(names) == n
        return [str(name) for name in (names if is_complete else range(n))]

    @property
    def image_keys(self) -> list[str]:
        """Keys of the camera images in the store."""
        return [key for key in self.task.schema.cameras if f"data/{key}" in self._root]

    def is_image(self, key: str) -> bool:
        """Whether data/`key` holds images."""
        return len(self.shape(key)) == 4

    @property
    def check(self) -> dict[str, Any]:
        """Result of replaying the demonstrations in the simulator; see data/check_summary.py."""
        check = self.attrs.get(
            "check", {"result": "not verified", "why": "the store was written by an older version of ddp"}
        )
        if isinstance(check, dict) and check.get("result") in CHECK_RESULTS and isinstance(check.get("why"), str):
            return check
        raise DataError(f"'{self.path}': the attribute 'check' is damaged.", store_check.REPAIR_HINT)

    def content_hash(self) -> str:
        """SHA-256 of the actions and the episode ends."""
        return hashlib.sha256(self.read("action").tobytes() + self.episode_ends.tobytes()).hexdigest()

    def observations_hash(self) -> str:
        """SHA-256 of all vectors, and of some images of every camera: hashing all of them would take minutes."""
        digest = hashlib.sha256()
        for key in self.task.vectors("state"):
            digest.update(self.read(key).tobytes())
        rows = sorted({round(i) for i in np.linspace(0, int(self.episode_ends[-1]) - 1, HASHED_IMAGES).tolist()})
        for key in self.image_keys:
            for row in rows:
                digest.update(self._read(key, "data", slice(row, row + 1)).tobytes())
        return digest.hexdigest()

    def _array(self, key: str, group: str = "data") -> Any:
        array = self._find_array(key, group)
        if array is None:
            option = ", without --obs state" if self.attrs.get("obs") == "state" else ""
            raise DataError(f"'{self.path}' has no array {group}/{key}.", f"Convert the demonstrations again{option}.")
        return array

    def _find_array(self, key: str, group: str = "data") -> Any:
        """The zarr array, None if there is none; DataError if its metadata is damaged."""
        try:
            array = self._root[f"{group}/{key}"]
        except KeyError:
            return None
        except Exception as e:  # damaged metadata raises many kinds
            raise DataError(f"'{self.path}': the metadata of {group}/{key} is damaged.", store_check.REPAIR_HINT) from e
        return array if isinstance(array, zarr.Array) else None

    def for_task(self, task: Task) -> Store:
        """The store as a policy of `task` sees it, whose cameras may have smaller images than the store: they are
        resized when they are read. ConfigError unless the store was converted for `task`.
        """
        stored = self.task.schema.cameras
        cameras = {
            key: stored[key] if key in stored and camera.takes(stored[key]) else camera
            for key, camera in task.schema.cameras.items()
        }
        self.check_task(replace(task, schema=task.schema.model_copy(update={"cameras": cameras})))
        view = copy.copy(self)
        view.task, cameras = replace(self.task, schema=task.schema), task.schema.cameras
        view.resized = {k: cameras[k] for k in self.image_keys if self._array(k).shape[1:] != cameras[k].shape}
        return view

    def check_task(self, task: Task) -> None:
        """ConfigError unless the store was converted for `task`. The episode horizon is not compared: it does not
        change recordings.
        """
        if self.task.name != task.name:
            raise ConfigError(
                f"'{self.path}' holds demonstrations of '{self.task.name}', not of '{task.name}'.",
                f"Train with --task {self.task.name}, or name another store.",
            )
        differences = describe_difference(self.task, task, ignore=("horizon",))
        if differences:
            raise ConfigError(
                f"'{self.path}' was converted for another version of the task '{task.name}': {differences}.",
                "Convert the demonstrations again with this task, or name another store.",
            )


def resolve_task(text: str, store: Path) -> Task:
    """The task that `--task` names: built in, described by a file, or else the one of that name in `store`."""
    if not task_file_path(text) and store.exists():
        stored_task = Store(store).task
        if stored_task.name == text:
            return stored_task
    return read_task(text)
