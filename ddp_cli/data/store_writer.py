"""Writes a store, episode by episode; what is interrupted goes on later.

zarr makes the arrays; their chunks are written here, by the same specification, which takes half as long: zarr copies
a chunk several times before it is compressed, and reads what is there of a chunk that is written in parts.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from ddp_cli.data.store import FORMAT, FRAMES_PER_CHUNK
from ddp_cli.errors import DdpError, WorkerError
from ddp_cli.parallel import default_workers
from ddp_cli.tasks import IMAGE_SIZE, Task

ROWS_PER_CHUNK = 1024  # of everything but pictures
CHUNKS_AT_ONCE = 16  # that wait to be compressed: 22 MB of pictures
SECONDS_AT_RISK = 1.0  # of work, that a kill may lose
CODEC = Zstd(level=3)

PROGRESS = ("episodes", "complete", "check")
"""Attributes that change while a store is written."""


class StoreWriter:
    """Writes PATH.partial episode by episode and names it PATH when finished.

    `lengths` are the steps of all episodes. A partial store with the same attributes is continued. What `append` was
    given last may still be in memory: `episodes` counts what is on the disk.
    """

    def __init__(
        self, path: Path, task: Task, lengths: list[int], attributes: dict[str, Any], zarr_format: int
    ) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._ends = [0, *np.cumsum(lengths).tolist()]
        wanted = {"format": FORMAT, "task": task.to_json(), **attributes, "complete": False, "total": self._ends[-1]}
        self._root = self._reopen(wanted, zarr_format) or self._create(task, wanted, zarr_format)
        self._given = self.episodes
        self._columns = {
            name: _ArrayWriter(array, self.partial / "data" / name, self._ends[self._given])
            for name, array in self._root["data"].arrays()  # type: ignore[union-attr]
        }
        self._pool = ThreadPoolExecutor(default_workers())
        self._pending: deque[Future[None]] = deque()
        self._flushed = time.monotonic()

    def _reopen(self, wanted: dict[str, Any], zarr_format: int) -> zarr.Group | None:
        try:
            root = zarr.open_group(self.partial, mode="r+")
            kept = {k: v for k, v in root.attrs.asdict().items() if k not in PROGRESS}
            wanted = {k: v for k, v in wanted.items() if k not in PROGRESS}
            same = kept == wanted and "episodes" in root.attrs and root.metadata.zarr_format == zarr_format
            return root if same else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _create(self, task: Task, attributes: dict[str, Any], zarr_format: int) -> zarr.Group:
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.create_group(self.partial, zarr_format=zarr_format)  # type: ignore[arg-type]
        compressors: Any = CODEC if zarr_format == 2 else ZstdCodec(level=CODEC.level)

        def array(name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
            root.create_array(
                name, shape=shape, dtype=dtype, chunks=(min(rows, shape[0]), *shape[1:]), compressors=compressors,
                # Chunks side by side: a folder for each takes as long as its compression.
                chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "."},
            )  # fmt: skip

        for key in task.images(attributes["obs"]):
            array(f"data/{key}", (self._ends[-1], IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", FRAMES_PER_CHUNK)
        for key, width in {**task.vectors("state"), "action": attributes["action"]["dim"]}.items():
            array(f"data/{key}", (self._ends[-1], width), "float32", ROWS_PER_CHUNK)
        array("meta/episode_ends", (len(self._ends) - 1,), "int64", ROWS_PER_CHUNK)
        root["meta/episode_ends"][:] = self._ends[1:]  # type: ignore[index]
        root.attrs.update({**attributes, "episodes": 0})
        return root

    @property
    def episodes(self) -> int:
        """How many episodes are written."""
        return int(self._root.attrs["episodes"])  # type: ignore[arg-type]

    def append(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Adds the next episode: every key of `data`, (length, ...)."""
        for key, array in arrays.items():
            for put in self._columns[key].add(array):
                self._pending.append(self._pool.submit(put))
        while len(self._pending) > CHUNKS_AT_ONCE:
            self._pending.popleft().result()
        self._given += 1
        if self._given == len(self._ends) - 1 or time.monotonic() - self._flushed > SECONDS_AT_RISK:
            self.flush()

    def extend(self, episodes: Iterable[dict[str, NDArray[Any]]], progress: Callable[[int, int], None]) -> None:
        """Adds `episodes`, which begin with the first that is missing; `progress` hears of steps done, and of all."""
        progress(self._ends[self._given], self._ends[-1])
        for episode in episodes:
            self.append(episode)
            progress(self._ends[self._given], self._ends[-1])

    def flush(self) -> None:
        """Puts all that was given on the disk, and counts it."""
        while self._pending:
            self._pending.popleft().result()
        for column in self._columns.values():
            column.put_rest()
        self._root.attrs["episodes"] = self._given
        self._flushed = time.monotonic()

    def finish(self, found: dict[str, Any]) -> None:
        """Marks the store complete, with more attributes, and gives it its final name."""
        assert self.episodes == len(self._ends) - 1
        self._pool.shutdown()
        self._root.attrs.update({**found, "complete": True})
        if self.path.exists():
            shutil.rmtree(self.path)
        self.partial.rename(self.path)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """What was interrupted can be gone on with; after an error of the data or the disk nothing stays."""
        self._pool.shutdown()  # Ctrl-C may have come before what was handed over was noted as pending
        if kind is not None and issubclass(kind, WorkerError | KeyboardInterrupt):
            self.flush()
        elif kind is not None and issubclass(kind, DdpError | OSError):
            shutil.rmtree(self.partial, ignore_errors=True)


class _ArrayWriter:
    """The rows of one array: whole chunks go to the disk, the others wait."""

    def __init__(self, array: Any, folder: Path, rows: int) -> None:
        """Its first `rows` are on the disk."""
        self._array, self._folder = array, folder
        first = rows // array.chunks[0] * array.chunks[0]
        # What waits, and its first row, where a chunk begins: one value, since Ctrl-C may come between any two.
        self._waiting: tuple[int, NDArray[Any]] = (first, array[first:rows])

    def add(self, rows: NDArray[Any]) -> Iterator[Callable[[], None]]:
        """Adds rows; yields what puts each chunk that is whole now."""
        first, waiting = self._waiting
        size, rows = self._array.chunks[0], rows.astype(self._array.dtype, copy=False)
        begin = -len(waiting)  # of a chunk, in `rows`
        while begin + size <= len(rows):
            chunk = rows[begin : begin + size] if begin >= 0 else np.concatenate([waiting, rows[: begin + size]])
            yield functools.partial(self._put, first, chunk)
            first, begin = first + size, begin + size
        rest = rows[begin:].copy() if begin >= 0 else np.concatenate([waiting, rows])  # a view would keep all rows
        self._waiting = first, rest

    def put_rest(self) -> None:
        """Puts the chunk that is not whole."""
        first, rows = self._waiting
        if len(rows):
            missing = self._array.chunks[0] - len(rows)
            self._put(first, np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]))

    def _put(self, first: int, chunk: NDArray[Any]) -> None:
        """A chunk may hold rows of episodes that count already: a kill leaves it as it was, or as it shall be."""
        at = (first // len(chunk), *(0 for _ in chunk.shape[1:]))
        path = self._folder / self._array.metadata.encode_chunk_key(at)
        partial = path.with_name(path.name + ".partial")  # which the next to write this chunk will replace
        partial.write_bytes(CODEC.encode(np.ascontiguousarray(chunk)))
        partial.replace(path)
