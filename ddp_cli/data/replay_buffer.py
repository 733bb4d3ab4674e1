"""Reads replay buffers: the zarr layout of the published diffusion policy project and of those that follow it.

data/<key>          (N, ...)  one row per step of all episodes, one after another
meta/episode_ends   (E,)      index one past the last step of each episode

A folder or a .zip, zarr format 2 or 3. The rate is not recorded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ddp_cli.data.recording import StepArray, describe_unobserved
from ddp_cli.data.store_check import chunk_files, chunk_rows, missing_chunks, name_episodes
from ddp_cli.disk import file_hash, files_hash
from ddp_cli.errors import DataError
from ddp_cli.schema import Camera

ENDS = "meta/episode_ends"
COPY_HINT = "Download or copy it again."
CODECS_HINT = "Install it: `pip install 'ddp-cli[jpeg2k]'` has those of images. Others need the package that wrote it."


def is_replay_buffer(path: Path) -> bool:
    """Whether `path` is a zarr folder or file with episodes of steps, but not a store of ddp."""
    try:
        root = _open(path)
        if "format" in root.attrs:
            return False
        # By its folders: with damaged metadata it is still a replay buffer.
        return (path / ENDS).is_dir() and (path / "data").is_dir() if path.is_dir() else ENDS in root and "data" in root
    except Exception:  # noqa: BLE001 - damaged or other files raise many kinds
        return False


def _open(path: Path) -> zarr.Group:
    if path.is_file():
        return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    return zarr.open_group(path, mode="r")


def _open_arrays(path: Path) -> tuple[list[tuple[str, Any]], Any]:
    """The arrays of data/ by name, and the ends of the episodes."""
    root = _open(path)
    try:
        members = sorted(root["data"].arrays())  # type: ignore[union-attr]
    except Exception as e:
        if not (_lacks_codec(str(e)) and _register_image_codecs()):
            raise
        members = sorted(root["data"].arrays())  # type: ignore[union-attr]
    return members, root[ENDS]


def _register_image_codecs() -> bool:
    """Registers JPEG 2000, JPEG XL and others; False if they are not installed."""
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:
        return False
    register_codecs(verbose=False)
    return True


def _lacks_codec(reason: str) -> bool:
    """Whether an error of zarr says that a codec is not installed."""
    return "codec not available" in reason or "imagecodecs" in reason


class ReplayBuffer:
    """A recording; see recording.Recording."""

    kind: str = "replay buffer (zarr)"
    action: str = "data/action"
    rate: float | None = None
    default_rate: float | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.notes, self.in_videos, self.unreadable = path, list[str](), list[str](), dict[str, str]()
        try:
            members, end_array = _open_arrays(path)
        except Exception as e:  # damaged metadata raises many kinds
            reason = " ".join(str(e).split())
            if _lacks_codec(reason):
                raise DataError(f"'{path}': {reason}.", CODECS_HINT) from e
            raise DataError(f"'{path}' is a damaged zarr folder: {reason}.", COPY_HINT) from e
        self._arrays = {f"data/{name}": array for name, array in members if array.ndim}
        ends = self._read(end_array, slice(None), ENDS)
        if ends.ndim != 1 or not ends.size or ends.dtype.kind not in "iu" or np.diff(ends, prepend=0).min() <= 0:
            raise DataError(f"'{path}': {ENDS} are not increasing numbers: {ends.ravel()[:5].tolist()} ...", COPY_HINT)
        ends = ends.astype(np.int64)
        self._ends, self.lengths = ends, np.diff(ends, prepend=0).tolist()
        self._starts = (ends - self.lengths).tolist()
        for name, array in self._arrays.items():
            if array.shape[0] < ends[-1]:
                raise DataError(
                    f"'{path}': {name} has {array.shape[0]} rows, but the episodes end at {ends[-1]}.", COPY_HINT
                )
        rows = {name: array.shape[0] for name, array in self._arrays.items()}
        total = rows.get(self.action, min(rows.values(), default=0))
        if total > ends[-1]:
            self.notes.append(f"{total - ends[-1]} rows behind the last episode are left out")
        # One of another length, such as a camera of twice the rate, is not aligned with the others.
        other = {name: n for name, n in rows.items() if n not in (total, ends[-1])}
        self.unreadable = {name: f"it has {n} rows, and the episodes {ends[-1]} steps" for name, n in other.items()}
        self.notes += describe_unobserved(self.unreadable)
        self.arrays = {n: StepArray(a.shape[1:], a.dtype) for n, a in self._arrays.items() if n not in other}
        self.observations = [name for name in self.arrays if name != self.action]
        self.episode_names = [str(i) for i in range(len(self.lengths))]
        self.instructions = [""] * len(self.lengths)

    def read(self, array: str, episode: int) -> NDArray[Any]:
        """The values of `array` in an episode, (n, ...), as recorded."""
        start = self._starts[episode]
        where = f"{array}, episode {episode}"
        return self._read(self._arrays[array], slice(start, start + self.lengths[episode]), where)

    def _read(self, array: Any, rows: slice, where: str) -> NDArray[Any]:
        try:
            return np.asarray(array[rows])
        except MemoryError:
            raise
        except Exception as e:  # damaged chunks and unknown codecs raise many kinds
            reason = (str(e) or type(e).__name__).splitlines()[0]
            if "pickle" in reason.lower():  # the library says how to allow it
                reason = "it holds Python objects (pickle), which are never loaded"
            hint = CODECS_HINT if _lacks_codec(reason) else COPY_HINT
            raise DataError(f"'{self.path}': {where} cannot be decoded: {reason}.", hint) from e

    def iter_images(
        self,
        array: str,
        episode: int,
        exact: bool = True,  # noqa: ARG002
        camera: Camera | None = None,  # noqa: ARG002
    ) -> Iterator[NDArray[Any]]:
        """The images of an episode one by one."""
        return iter(self.read(array, episode))

    def faults(self, arrays: Collection[str]) -> dict[int, str]:
        """None: the episodes were checked when it was opened. A chunk without a file becomes a note: zarr reads it as
        zeros, and it need not write one of zeros.
        """
        for name in arrays:
            if missing := self._rows_of_missing_chunks(name):
                array, count = self._arrays[name], len(missing)
                episodes = name_episodes(self._ends, missing[0], missing[-1] + chunk_rows(array))
                chunks = "1 chunk has" if count == 1 else f"{count} chunks have"
                self.notes.append(
                    f"{name}: {chunks} no file and {'is' if count == 1 else 'are'} read as {array.fill_value} "
                    f"({episodes}): if something else was recorded, copy the recording again"
                )
        return {}

    def _rows_of_missing_chunks(self, name: str) -> list[int]:
        """The first row of every chunk of an array that has no file, up to the last episode."""
        array, steps = self._arrays[name], int(self._ends[-1])
        if self.path.is_dir():
            return [row for row, _ in missing_chunks(array, self.path / name, steps)]
        with zipfile.ZipFile(self.path) as file:
            files = set(file.namelist())
        return [row for row, chunk in chunk_files(array, steps) if f"{name}/{chunk}" not in files]

    def sha256(self) -> str:
        """Hash of the names and contents of all files."""
        return file_hash(self.path) if self.path.is_file() else files_hash(self.path, self.path.rglob("*"))
