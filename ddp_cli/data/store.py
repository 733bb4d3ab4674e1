"""The store: a zarr folder in the field's replay-buffer layout, as it is read; store_writer.py writes it.

    data/<image key>   (N, 84, 84, 3) uint8, lossless zstd over 64 frames; not in a store for state policies
    data/<other key>   (N, width) float32
    data/action        (N, 7) float32, or (N, 10) for absolute actions
    meta/episode_ends  (E,) int64, index one past each episode's last step

All episodes lie one after another. Attributes say where they come from and how they were rendered.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError, DataError
from ddp_cli.tasks import TASKS, Task, difference, named_file, read_task, task_from_json

FORMAT = 1
FRAMES_PER_CHUNK = 64
ATTRIBUTES = ("format", "task", "render", "env_args", "versions", "action", "source", "complete")


class Store:
    """A finished store, checked when opened. Every fault is a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        hint = "Make one with `ddp convert DEMOS.hdf5 --out STORE.zarr`."
        if not path.exists():
            raise DataError(f"no store '{path}'.", hint)
        try:
            self._root = zarr.open_group(path, mode="r")
        except (FileNotFoundError, ValueError, KeyError, NotADirectoryError, OSError) as e:
            raise DataError(f"'{path}' is not a zarr store.", hint) from e
        self.attrs: dict[str, Any] = self._root.attrs.asdict()
        if "format" not in self.attrs:
            raise DataError(f"'{path}' is a zarr folder that `ddp convert` did not make.", hint)
        if self.attrs["format"] != FORMAT:
            raise DataError(
                f"'{path}' has store format {self.attrs['format']}, this ddp reads format {FORMAT}.",
                "Convert the demos again, or install the ddp that wrote it.",
            )
        missing = [k for k in ATTRIBUTES if k not in self.attrs]
        if missing or not self.attrs["complete"]:
            what = f"lacks the attribute {missing[0]}" if missing else "is not complete"
            raise DataError(f"'{path}' {what}.", hint)
        self.task = task_from_json(self.attrs["task"], f"'{path}'")
        self.episode_ends: NDArray[np.int64] = self.read("episode_ends", group="meta").astype(np.int64)

    def read(self, key: str, group: str = "data", rows: slice = slice(None)) -> NDArray[Any]:
        """The array `key`, or some rows of it, decoded; DataError when it is absent or damaged."""
        try:
            return np.asarray(self._array(key, group)[rows])
        except (OSError, ValueError, RuntimeError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"'{self.path}': {group}/{key} is damaged.", "Convert the demos again.") from e

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of data/`key`."""
        return tuple(self._array(key).shape)

    def nbytes(self, key: str) -> int:
        """Size of data/`key` when decoded [bytes]."""
        array = self._array(key)
        return math.prod(array.shape) * array.dtype.itemsize

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First row and one past the last of each episode."""
        return list(itertools.pairwise([0, *self.episode_ends.tolist()]))

    @property
    def pictures(self) -> list[str]:
        """Keys of the cameras whose pictures it holds."""
        return [key for key in self.task.cameras if f"data/{key}" in self._root]

    def is_picture(self, key: str) -> bool:
        """Whether data/`key` holds pictures."""
        return len(self.shape(key)) == 4

    @property
    def check(self) -> dict[str, Any]:
        """What came of executing some of its demos; see data/replay_check.py."""
        found = self.attrs.get("check")
        return found if isinstance(found, dict) else {"result": "not verified", "why": "an older ddp made the store"}

    def content_hash(self) -> str:
        """SHA-256 of the actions and the ends of the episodes."""
        return hashlib.sha256(self.read("action").tobytes() + self.episode_ends.tobytes()).hexdigest()

    def _array(self, key: str, group: str = "data") -> Any:
        try:
            return self._root[f"{group}/{key}"]
        except KeyError as e:
            state = ", without --obs state" if self.attrs.get("obs") == "state" else ""
            raise DataError(f"'{self.path}' has no array {group}/{key}.", f"Convert the demos again{state}.") from e

    def check_task(self, task: Task) -> None:
        """ConfigError unless it was converted for `task`. How long episodes may be is no matter of recordings."""
        if self.task.name != task.name:
            raise ConfigError(
                f"'{self.path}' holds demos of '{self.task.name}', not of '{task.name}'.",
                f"Train with --task {self.task.name}, or name another store.",
            )
        differs = difference(self.task, task, but=("horizon",))
        if differs:
            raise ConfigError(
                f"'{self.path}' holds demos of another '{task.name}': {differs}.",
                "Convert them again with this task, or name a store of it.",
            )


def find_task(text: str, store: Path) -> Task:
    """The task that `--task` names, or, if it is neither built in nor a file, the one that `store` describes
    under that name.
    """
    if text not in TASKS and not named_file(text) and store.exists():
        described = Store(store).task
        if described.name == text:
            return described
    return read_task(text)
