"""The store: a zarr folder in the field's replay-buffer layout; the only user of zarr.

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
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from ddp_cli.errors import ConfigError, DataError, DdpError, WorkerError
from ddp_cli.tasks import IMAGE_SIZE, TASKS, Task, difference, named_file, read_task, task_from_json

FORMAT = 1
FRAMES_PER_CHUNK = 64
ROWS_PER_CHUNK = 1024  # of everything but pictures
ROWS_AT_ONCE = 256  # that wait to be written together: 11 MB of pictures
ATTRIBUTES = ("format", "task", "render", "env_args", "versions", "action", "source", "complete")


PROGRESS = ("episodes", "complete", "check")
"""Attributes that change while a store is written."""


class StoreWriter:
    """Writes PATH.partial episode by episode and names it PATH when finished.

    `lengths` are the steps of all episodes. A partial store with the same attributes is continued. Whole chunks are
    written, so what `append` was given last may still be in memory: `episodes` counts what is on the disk.
    """

    def __init__(
        self, path: Path, task: Task, lengths: list[int], attributes: dict[str, Any], zarr_format: int
    ) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._ends = np.cumsum(lengths)
        wanted = {
            "format": FORMAT,
            "task": task.to_json(),
            **attributes,
            "complete": False,
            "total": int(self._ends[-1]),
        }
        self._root = self._reopen(wanted, zarr_format) or self._create(task, len(lengths), wanted, zarr_format)
        self._given = self.episodes
        first = int(self._ends[self._given - 1]) if self._given else 0
        # What waits, and its first row: one value, since Ctrl-C may come between any two.
        self._waiting: tuple[int, dict[str, list[NDArray[Any]]]] = (first, {})

    def _reopen(self, wanted: dict[str, Any], zarr_format: int) -> zarr.Group | None:
        try:
            root = zarr.open_group(self.partial, mode="r+")
            kept = {k: v for k, v in root.attrs.asdict().items() if k not in PROGRESS}
            wanted = {k: v for k, v in wanted.items() if k not in PROGRESS}
            same = kept == wanted and "episodes" in root.attrs and root.metadata.zarr_format == zarr_format
            return root if same else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _create(self, task: Task, episodes: int, attributes: dict[str, Any], zarr_format: int) -> zarr.Group:
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.create_group(self.partial, zarr_format=zarr_format)  # type: ignore[arg-type]
        total = int(self._ends[-1])
        compressors: Any = ZstdCodec(level=3)
        if zarr_format == 2:
            from numcodecs import Zstd

            compressors = Zstd(level=3)

        def array(name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
            root.create_array(
                name, shape=shape, dtype=dtype, chunks=(min(rows, shape[0]), *shape[1:]), compressors=compressors,
                # Chunks side by side: a folder for each takes as long as its compression. To look if a chunk is
                # empty takes as long again, and none is.
                chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "."},
                config={"write_empty_chunks": True},
            )  # fmt: skip

        for key in task.images(attributes["obs"]):
            array(f"data/{key}", (total, IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", FRAMES_PER_CHUNK)
        for key, width in {**task.vectors("state"), "action": attributes["action"]["dim"]}.items():
            array(f"data/{key}", (total, width), "float32", ROWS_PER_CHUNK)
        array("meta/episode_ends", (episodes,), "int64", ROWS_PER_CHUNK)
        root["meta/episode_ends"][:] = self._ends  # type: ignore[index]
        root.attrs.update({**attributes, "episodes": 0})
        return root

    @property
    def episodes(self) -> int:
        """How many episodes are written."""
        return int(self._root.attrs["episodes"])  # type: ignore[arg-type]

    def append(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Adds the next episode: every key of `data`, (length, ...)."""
        for key, array in arrays.items():
            self._waiting[1].setdefault(key, []).append(array)
        end = int(self._ends[self._given])
        self._given += 1
        if self._given == len(self._ends):
            self._write(end)
        elif end - self._waiting[0] >= ROWS_AT_ONCE:
            # A chunk that is written in two parts is compressed twice, and read in between.
            self._write(end // FRAMES_PER_CHUNK * FRAMES_PER_CHUNK)

    def extend(self, episodes: Iterable[dict[str, NDArray[Any]]], progress: Callable[[int, int], None]) -> None:
        """Adds `episodes`, which begin with the first that is missing; `progress` hears of steps done, and of all."""
        done, total = int(self._ends[self._given - 1]) if self._given else 0, int(self._ends[-1])
        progress(done, total)
        for episode in episodes:
            self.append(episode)
            done += len(episode["action"])
            progress(done, total)

    def flush(self) -> None:
        """Writes what waits: nobody knows if there will be more."""
        if self._given:
            self._write(int(self._ends[self._given - 1]))

    def _write(self, end: int) -> None:
        """Puts what waits on the disk, up to row `end`."""
        first, waiting = self._waiting
        if end <= first:
            return
        rows = {key: np.concatenate(parts) for key, parts in waiting.items()}

        def put(key: str) -> None:
            self._root[f"data/{key}"][first:end] = rows[key][: end - first]  # type: ignore[index]

        with ThreadPoolExecutor() as pool:
            list(pool.map(put, rows))
        self._waiting = end, {key: [array[end - first :]] for key, array in rows.items()}
        self._root.attrs["episodes"] = int(np.searchsorted(self._ends, end, side="right"))

    def finish(self, found: dict[str, Any]) -> None:
        """Marks the store complete, with more attributes, and gives it its final name."""
        assert self.episodes == len(self._ends)
        self._root.attrs.update({**found, "complete": True})
        if self.path.exists():
            shutil.rmtree(self.path)
        self.partial.rename(self.path)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """What was interrupted can be gone on with; after an error of the data or the disk nothing stays."""
        if kind is not None and issubclass(kind, WorkerError | KeyboardInterrupt):
            self.flush()
        elif kind is not None and issubclass(kind, DdpError | OSError):
            self.discard()

    def discard(self) -> None:
        """Removes what was written so far."""
        shutil.rmtree(self.partial, ignore_errors=True)


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
        """What came of executing some of its demos; see data/verification.py."""
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
