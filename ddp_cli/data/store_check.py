"""Checks of a store's files and arrays when it is opened: nothing that a reader needs is missing.

zarr reads a chunk whose file is missing as zeros, which would be black images. Damaged chunks are found when they are
read, by the checksum of their zstd frames. The attribute `content` holds these checksums, by which exchanged chunk
files are found.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ddp_cli.choices import Obs, PolicyActions, RenderProfile
from ddp_cli.errors import DataError
from ddp_cli.tasks import Task

CHECKSUM_BYTES = 4
REPAIR_HINT = "Convert the demonstrations again, or copy the store again."
ATTRIBUTE_TYPES = {"render": str, "env_args": dict, "versions": dict, "action": dict, "source": dict}


def check_attributes(path: Path, attributes: dict[str, Any]) -> None:
    """DataError unless the attributes that describe the content have the expected types."""
    for key, expected in ATTRIBUTE_TYPES.items():
        if not isinstance(attributes[key], expected):
            raise DataError(f"'{path}': the attribute '{key}' is damaged.", REPAIR_HINT)
    source = attributes["source"]
    if not isinstance(source.get("sha256", ""), str) or not isinstance(source.get("demos", []), list):
        raise DataError(f"'{path}': the attribute 'source' is damaged.", REPAIR_HINT)
    content = attributes.get("content", {})
    if not isinstance(content, dict) or not all(isinstance(checksums, str) for checksums in content.values()):
        raise DataError(f"'{path}': the attribute 'content' is damaged.", REPAIR_HINT)
    if attributes["render"] not in get_args(RenderProfile):
        raise DataError(f"'{path}': the attribute 'render' is damaged.", REPAIR_HINT)
    if attributes.get("obs", "image") not in get_args(Obs):
        raise DataError(f"'{path}': the attribute 'obs' is damaged.", REPAIR_HINT)
    action = attributes["action"]
    dim = action.get("dim")
    if action.get("convention") not in get_args(PolicyActions) or not isinstance(dim, int):  # check_arrays compares it
        raise DataError(f"'{path}': the attribute 'action' is damaged.", REPAIR_HINT)


def check_episode_array(path: Path, array: Any) -> None:
    """DataError unless the array meta/episode_ends can be read completely."""
    _check_chunk_shape(path, "meta/episode_ends", array)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.shape[0]:
        raise DataError(f"'{path}': meta/episode_ends has shape {array.shape} and type {array.dtype}.", REPAIR_HINT)
    for _, file in missing_chunks(array, path / "meta" / "episode_ends"):
        raise DataError(f"'{path}': the chunk file meta/episode_ends/{file} is missing.", REPAIR_HINT)


def check_episode_ends(path: Path, ends: NDArray[np.int64], attributes: dict[str, Any]) -> None:
    """DataError unless `ends` (E,) increase and fit the counts in the attributes."""
    lengths = np.diff(ends, prepend=0)
    if lengths.min() <= 0:
        i = int(np.argmax(lengths <= 0))
        minimum = int(ends[i] - lengths[i]) + 1
        raise DataError(f"'{path}': meta/episode_ends[{i}] is {ends[i]}, expected {minimum} or more.", REPAIR_HINT)
    for key, name, count in (("episodes", "episodes", len(ends)), ("total", "steps", int(ends[-1]))):
        if attributes.get(key, count) != count:
            fault = f"meta/episode_ends has {count} {name}, the attribute '{key}' says {attributes[key]}"
            raise DataError(f"'{path}': {fault}.", REPAIR_HINT)


def check_arrays(
    path: Path, find_array: Callable[[str], Any], task: Task, attributes: dict[str, Any], ends: NDArray[np.int64]
) -> None:
    """DataError unless every array that the task needs is there, with the expected shape and type and all of its chunk
    files. `find_array` returns data/<key>, or None.
    """
    steps = int(ends[-1])
    action_dim = sum(part.width for part in task.action_parts(attributes["action"]["convention"]))
    if attributes["action"]["dim"] != action_dim:
        raise DataError(f"'{path}': the attribute 'action' is damaged.", REPAIR_HINT)
    widths = {**task.vectors("state"), "action": action_dim}
    expected: dict[str, tuple[tuple[Any, ...], str]] = {key: ((width,), "float32") for key, width in widths.items()}
    expected |= {key: (camera.shape, "uint8") for key, camera in task.images("image").items()}
    for key, (step_shape, dtype) in expected.items():
        array, shape = find_array(key), (steps, *step_shape)
        if array is None:
            # Stores of early versions do not say whether they hold images.
            if key in task.schema.cameras and attributes.get("obs") != "image":
                continue
            raise DataError(f"'{path}' has no array data/{key}.", REPAIR_HINT)
        if tuple(array.shape) != shape or array.dtype != dtype:
            actual = f"shape {tuple(array.shape)} and type {array.dtype}"
            raise DataError(f"'{path}': data/{key} has {actual}, expected {shape} and {dtype}.", REPAIR_HINT)
        _check_chunk_shape(path, f"data/{key}", array)
        missing = list(missing_chunks(array, path / "data" / key))
        if missing:
            first_row, file = missing[0]
            more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else " is missing"
            episodes = name_episodes(ends, first_row, first_row + chunk_rows(array))
            raise DataError(f"'{path}': the chunk file data/{key}/{file}{more} ({episodes}).", REPAIR_HINT)


def check_content(
    path: Path, find_array: Callable[[str, str], Any], attributes: dict[str, Any], ends: NDArray[np.int64]
) -> None:
    """DataError unless the chunk files are those that were written, by their checksums in the attribute `content`.

    `find_array` returns an array by key and group, or None. Stores of earlier versions have no checksums.
    """
    for name, expected in attributes.get("content", {}).items():
        group, _, key = name.partition("/")
        array = find_array(key, group)
        if array is None:
            raise DataError(f"'{path}' has no array {name}.", REPAIR_HINT)
        checksums = chunk_checksums(array, path / name)
        if checksums == expected:
            continue
        for i, (first_row, file) in enumerate(chunk_files(array)):
            digits = slice(2 * CHECKSUM_BYTES * i, 2 * CHECKSUM_BYTES * (i + 1))
            if checksums[digits] != expected[digits]:
                episodes = name_episodes(ends, first_row, first_row + chunk_rows(array))
                where = f" ({episodes})" if group == "data" else ""
                raise DataError(
                    f"'{path}': the chunk file {name}/{file} is damaged, or not the one that was written{where}.",
                    f"{REPAIR_HINT} If another program wrote the array on purpose, remove the attribute 'content'.",
                )
        raise DataError(f"'{path}': the attribute 'content' is damaged.", REPAIR_HINT)


def chunk_checksums(array: Any, folder: Path) -> str:
    """Checksums of all chunks of `array`, stored in `folder`: 8 hexadecimal digits each, 0 if the file is too short
    or missing.

    A zstd frame ends with a checksum of its decoded content (RFC 8878, 3.1.1), so only the end of a file is read.
    """
    checksums = b""
    for _, file in chunk_files(array):
        try:
            with (folder / file).open("rb") as f:
                size = f.seek(0, os.SEEK_END)
                f.seek(max(0, size - CHECKSUM_BYTES))
                checksums += f.read().rjust(CHECKSUM_BYTES, b"\0")
        except FileNotFoundError:
            checksums += bytes(CHECKSUM_BYTES)
    return checksums.hex()


def _check_chunk_shape(path: Path, name: str, array: Any) -> None:
    if not all(array.shards or array.chunks):
        raise DataError(f"'{path}': {name} has chunks of size 0.", REPAIR_HINT)


def missing_chunks(array: Any, folder: Path, rows: int | None = None) -> Iterator[tuple[int, str]]:
    """First row and file name of every chunk of `array`, stored in `folder`, that has no file.

    With `rows` only chunks of the first `rows` rows are expected.
    """
    files = {file.name for file in folder.iterdir()}
    for first_row, file in chunk_files(array, rows):
        # Early versions wrote a folder per chunk.
        if not ((folder / file).is_file() if "/" in file else file in files):
            yield first_row, file


def chunk_files(array: Any, rows: int | None = None) -> Iterator[tuple[int, str]]:
    """First row and file name of every chunk of `array`, or of its first `rows` rows."""
    chunks = array.shards or array.chunks
    shape = (array.shape[0] if rows is None else rows, *array.shape[1:])
    for index in itertools.product(*(range(-(-n // size)) for n, size in zip(shape, chunks, strict=True))):
        yield index[0] * chunks[0], array.metadata.encode_chunk_key(index)


def chunk_rows(array: Any) -> int:
    """Number of rows in a chunk file."""
    return int((array.shards or array.chunks)[0])


def find_damaged_chunk(array: Any, rows: slice) -> tuple[int, str] | None:
    """First row and file name of the first chunk in `rows` that cannot be decoded, None if there is none."""
    start, stop, _ = rows.indices(array.shape[0])
    size = chunk_rows(array)
    for first in range(start // size * size, stop, size):
        try:
            array[first : min(first + size, array.shape[0])]
        except Exception:  # noqa: BLE001 - damaged chunks raise many kinds
            return first, array.metadata.encode_chunk_key((first // size, *(0 for _ in array.shape[1:])))
    return None


def name_episodes(ends: NDArray[np.int64], first_row: int, end_row: int) -> str:
    """`episode 3` or `episodes 3 to 5`: those with steps among the rows from `first_row` to before `end_row`."""
    first, last = np.searchsorted(ends, [first_row, min(end_row, int(ends[-1])) - 1], side="right").tolist()
    return f"episode {first}" if first == last else f"episodes {first} to {last}"
