"""Writes a store, episode by episode; a store that was not finished is resumed.

zarr creates the arrays; their chunks are encoded and written here, by the same specification, which is twice as fast:
zarr copies a chunk several times before compressing it, and reads it back to write it in parts.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from ddp_cli.data.store import STORE_FORMAT
from ddp_cli.data.store_check import chunk_checksums, missing_chunks
from ddp_cli.disk import replace
from ddp_cli.errors import DataError, DdpError
from ddp_cli.locks import final_path
from ddp_cli.parallel import default_workers
from ddp_cli.tasks import Task

IMAGE_CHUNK_BYTES = 64 * 84 * 84 * 3  # 64 images of the built-in tasks
ROWS_PER_CHUNK = 1024  # of arrays without images
MAX_PENDING_CHUNKS = 16  # waiting for compression: 22 MB of images
FLUSH_INTERVAL_S = 1.0  # the work that a killed process may lose
CODEC = Zstd(level=3, checksum=True)
"""Every frame holds a checksum of its content. Decoders verify it without being told, so the metadata does not mention
it, and any zarr library reads the chunks."""

MUTABLE_ATTRIBUTES = ("episodes", "complete", "check", "content")
"""Attributes that change while a store is written."""


class StoreWriter:
    """Writes PATH.partial episode by episode and renames it to PATH when finished.

    `lengths` are the steps of all episodes. A partial store with the same attributes is resumed, if `resumable`.
    Appended episodes may still be in memory: `episodes` counts those on disk.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        lengths: list[int],
        attributes: dict[str, Any],
        zarr_format: int,
        resumable: bool = True,
    ) -> None:
        self.path = final_path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._resumable = resumable
        self._ends = [0, *np.cumsum(lengths).tolist()]
        attributes = {
            "format": STORE_FORMAT, "task": task.to_json(), **attributes, "schema": _schema(task, attributes),
            "complete": False, "total": self._ends[-1],
        }  # fmt: skip
        partial = self._reopen(attributes, zarr_format) if resumable else None
        self._root = partial or self._create(task, attributes, zarr_format)
        self._appended = self.episodes
        self._writers = {
            name: _ArrayWriter(array, self.partial / "data" / name, self._ends[self._appended])
            for name, array in self._root["data"].arrays()  # type: ignore[union-attr]
        }
        self._pool = ThreadPoolExecutor(default_workers())
        self._pending: deque[Future[None]] = deque()
        self._flushed_at = time.monotonic()
        self._finished = False

    def _reopen(self, attributes: dict[str, Any], zarr_format: int) -> zarr.Group | None:
        """The partial store, None if there is none with these attributes."""
        try:
            root = zarr.open_group(self.partial, mode="r+")
            stored = {k: v for k, v in root.attrs.asdict().items() if k not in MUTABLE_ATTRIBUTES}
            expected = {k: v for k, v in attributes.items() if k not in MUTABLE_ATTRIBUTES}
            same = stored == expected and "episodes" in root.attrs and root.metadata.zarr_format == zarr_format
            rows = self._ends[int(root.attrs["episodes"])] if same else 0  # type: ignore[arg-type]
            return root if same and not self._missing_chunks(root, rows) else None
        except (OSError, ValueError, KeyError, IndexError):
            return None

    def _missing_chunks(self, root: zarr.Group, rows: int) -> list[str]:
        """Chunk files of the first `rows` rows that are not there: a power loss may have taken them."""
        return [
            f"data/{name}/{file}"
            for name, array in root["data"].arrays()  # type: ignore[union-attr]
            for _, file in missing_chunks(array, self.partial / "data" / name, rows)
        ]

    def _create(self, task: Task, attributes: dict[str, Any], zarr_format: int) -> zarr.Group:
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        root = zarr.create_group(self.partial, zarr_format=zarr_format)  # type: ignore[arg-type]
        compressors: Any = Zstd(level=CODEC.level) if zarr_format == 2 else ZstdCodec(level=CODEC.level)

        def create_array(name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
            root.create_array(
                name, shape=shape, dtype=dtype, chunks=(min(rows, shape[0]), *shape[1:]), compressors=compressors,
                # All chunks in one folder: creating a folder per chunk takes as long as compressing it.
                chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "."},
            )  # fmt: skip

        for key, camera in task.images(attributes["obs"]).items():
            create_array(f"data/{key}", (self._ends[-1], *camera.shape), "uint8", images_per_chunk(camera.shape))
        for key, width in {**task.vectors("state"), "action": attributes["action"]["dim"]}.items():
            create_array(f"data/{key}", (self._ends[-1], width), "float32", ROWS_PER_CHUNK)
        create_array("meta/episode_ends", (len(self._ends) - 1,), "int64", ROWS_PER_CHUNK)
        ends = _ArrayWriter(root["meta/episode_ends"], self.partial / "meta/episode_ends", 0)
        for write_chunk in ends.add(np.asarray(self._ends[1:])):
            write_chunk()
        ends.write_incomplete_chunk()
        root.attrs.update({**attributes, "episodes": 0})
        return root

    @property
    def episodes(self) -> int:
        """Number of episodes on disk."""
        return int(self._root.attrs["episodes"])  # type: ignore[arg-type]

    def append(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Adds the next episode: every key of `data`, (length, ...)."""
        for key, array in arrays.items():
            for write_chunk in self._writers[key].add(array):
                self._pending.append(self._pool.submit(write_chunk))
        while len(self._pending) > MAX_PENDING_CHUNKS:
            self._wait_for_chunk()
        self._appended += 1
        is_last = self._appended == len(self._ends) - 1
        if is_last or time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def extend(self, episodes: Iterable[dict[str, NDArray[Any]]], progress: Callable[[int, int], None]) -> None:
        """Adds `episodes`, starting with the first missing one; calls `progress(steps done, steps in total)`."""
        progress(self._ends[self._appended], self._ends[-1])
        for episode in episodes:
            self.append(episode)
            progress(self._ends[self._appended], self._ends[-1])

    def flush(self) -> None:
        """Writes all appended episodes to disk and counts them."""
        while self._pending:
            self._wait_for_chunk()
        for writer in self._writers.values():
            writer.write_incomplete_chunk()
        self._root.attrs["episodes"] = self._appended
        self._flushed_at = time.monotonic()

    def _wait_for_chunk(self) -> None:
        """Waits until the oldest pending chunk is on disk. One that cannot be written stays pending: no later flush
        counts its episode.
        """
        self._pending[0].result()
        self._pending.popleft()

    def finish(self, attributes: dict[str, Any]) -> None:
        """Marks the store complete, adds `attributes`, and renames it to its final path."""
        assert self.episodes == len(self._ends) - 1
        self._pool.shutdown()
        missing = self._missing_chunks(self._root, self._ends[-1])
        if missing:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise DataError(
                f"'{self.path}': the chunk file {missing[0]} was removed while the store was written.",
                "Run the same command again.",
            )
        arrays = {
            name: self._root[name] for name in [*(f"data/{key}" for key in sorted(self._writers)), "meta/episode_ends"]
        }
        content = {name: chunk_checksums(array, self.partial / name) for name, array in arrays.items()}
        self._root.attrs.update({**attributes, "content": content, "complete": True})
        self._finished = True  # from here on, an interruption leaves a complete store under one of the two names
        replace(self.partial, self.path)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Keeps the complete episodes after an interruption and after a data or disk error, and says so."""
        self._pool.shutdown()  # Ctrl-C may arrive between submitting a chunk and recording it as pending
        is_removed = not self.partial.exists()
        if self._finished or is_removed or not isinstance(error, DdpError | OSError | KeyboardInterrupt):
            return
        if not isinstance(error, OSError):
            with contextlib.suppress(OSError):
                self.flush()
        if self.episodes and self._resumable:
            kept = "1 episode is" if self.episodes == 1 else f"{self.episodes} episodes are"
            error.add_note(f"{kept} kept in '{self.partial}': the same command continues, unless its source changes.")
        elif not isinstance(error, KeyboardInterrupt):
            shutil.rmtree(self.partial, ignore_errors=True)


def _schema(task: Task, attributes: dict[str, Any]) -> dict[str, Any]:
    """The schema of what the store holds."""
    convention, cameras = attributes["action"]["convention"], task.images(attributes["obs"])
    return task.schema.model_copy(update={"action": task.action_parts(convention), "cameras": cameras}).to_json()


def images_per_chunk(shape: Sequence[int]) -> int:
    """Images of `shape` (height, width, channels) in a chunk, at least one."""
    return max(1, IMAGE_CHUNK_BYTES // math.prod(shape))


class _ArrayWriter:
    """Writes one array in complete chunks; buffers the rows of the incomplete one."""

    def __init__(self, array: Any, folder: Path, rows_on_disk: int) -> None:
        self._array, self._folder = array, folder
        chunk_start = rows_on_disk // array.chunks[0] * array.chunks[0]
        # First row of the incomplete chunk and its rows so far: one value, since Ctrl-C may arrive between two
        # assignments.
        self._buffer: tuple[int, NDArray[Any]] = (chunk_start, array[chunk_start:rows_on_disk])

    def add(self, rows: NDArray[Any]) -> Iterator[Callable[[], None]]:
        """Adds rows; yields a function per completed chunk, which writes it."""
        chunk_start, buffered = self._buffer
        size, rows = self._array.chunks[0], rows.astype(self._array.dtype, copy=False)
        begin = -len(buffered)  # of the chunk, relative to `rows`
        while begin + size <= len(rows):
            chunk = rows[begin : begin + size] if begin >= 0 else np.concatenate([buffered, rows[: begin + size]])
            yield functools.partial(self._write, chunk_start, chunk)
            chunk_start, begin = chunk_start + size, begin + size
        # Copied: a view would keep all rows in memory.
        rest = rows[begin:].copy() if begin >= 0 else np.concatenate([buffered, rows])
        self._buffer = chunk_start, rest

    def write_incomplete_chunk(self) -> None:
        """Writes the buffered rows, padded with zeros."""
        chunk_start, rows = self._buffer
        if len(rows):
            missing = self._array.chunks[0] - len(rows)
            padding = np.zeros((missing, *rows.shape[1:]), rows.dtype)
            self._write(chunk_start, np.concatenate([rows, padding]))

    def _write(self, chunk_start: int, chunk: NDArray[Any]) -> None:
        """Replaces a chunk atomically: it may hold rows of episodes that are already counted."""
        index = (chunk_start // len(chunk), *(0 for _ in chunk.shape[1:]))
        path = self._folder / self._array.metadata.encode_chunk_key(index)
        partial = path.with_name(path.name + ".partial")  # left behind by a killed process, replaced later
        partial.write_bytes(CODEC.encode(np.ascontiguousarray(chunk)))
        partial.replace(path)
