"""Arrays of a store, decoded once: in memory when they fit a budget, otherwise memory-mapped beside the store.

    STORE.decoded/<key>.npy    the same numbers, uncompressed
                  identity     which store they were decoded from

The folder may be removed whenever nobody trains on it; it is made again when it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import FRAMES_PER_CHUNK, Store
from ddp_cli.disk import sync
from ddp_cli.errors import DataError

Note = Callable[[str], None]


@dataclass
class Arrays:
    """Arrays by key. Those that are `mapped` come from disk as they are read."""

    data: dict[str, NDArray[Any]]
    mapped: list[mmap.mmap] = field(default_factory=list)

    def release(self) -> None:
        """Gives back the memory of the pages read so far; they are read again when they are needed."""
        for pages in self.mapped:
            pages.madvise(mmap.MADV_DONTNEED)


def decode(store: Store, keys: Sequence[str], budget: float, note: Note, write: bool = True) -> Arrays:
    """The arrays `keys` of `store`; pictures come from disk if all of them take more than `budget` bytes.

    `note` is told before anything is written, and how to remove it. With `write` false the decoded folder
    must be there.
    """
    pictures = [k for k in keys if store.is_picture(k)]
    size = sum(store.nbytes(k) for k in pictures)
    arrays = Arrays({k: store.read(k) for k in keys if k not in pictures or size <= budget})
    if size <= budget:
        return arrays
    folder = cache_folder(store)
    if write:
        with _locked(folder):  # two that train for the first time would write the same files
            if not _is_decoded(folder, store, pictures):
                note(
                    f"{size / 1e9:.2f} GB of pictures, more than the {budget / 1e9:.2f} GB they may take in memory: "
                    f"decoding them once to '{folder}'. Remove that folder when you do not train on the store any more."
                )
                _decode_to(folder, store, pictures)
    for key in pictures:
        array = np.load(folder / f"{key}.npy", mmap_mode="c")  # torch wants writable arrays; nobody writes
        pages = array._mmap
        pages.madvise(mmap.MADV_RANDOM)  # windows are read in random order: reading ahead would be in vain
        arrays.data[key] = array
        arrays.mapped.append(pages)
    return arrays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # some network disks cannot lock
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache_folder(store: Store) -> Path:
    """Where the decoded pictures of `store` are, if they are."""
    return store.path.with_name(f"{store.path.name}.decoded")


def _identity(store: Store) -> str:
    attributes = [store.attrs[k] for k in ("task", "render", "versions", "total")]
    return json.dumps([store.attrs["source"]["sha256"], *attributes])


def _is_decoded(folder: Path, store: Store, keys: Sequence[str]) -> bool:
    identity = folder / "identity"
    if not identity.is_file() or identity.read_text(errors="replace") != _identity(store):
        return False
    try:
        return all(np.load(folder / f"{key}.npy", mmap_mode="r").shape == store.shape(key) for key in keys)
    except (OSError, ValueError, EOFError):  # cut off, or not there
        return False


def _decode_to(folder: Path, store: Store, keys: Sequence[str]) -> None:
    """Writes the folder in one piece, holding one chunk in memory at a time."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    need, free = sum(store.nbytes(k) for k in keys), shutil.disk_usage(folder.parent).free
    if need > free:
        raise DataError(
            f"'{folder}' needs {need / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB.",
            "Free some space, or allow more memory with --set memory_gb=...",
        )
    partial.mkdir()
    try:
        for key in keys:
            with (partial / f"{key}.npy").open("wb") as file:
                shape = store.shape(key)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(file, header)
                for first in range(0, shape[0], FRAMES_PER_CHUNK):
                    file.write(store.read(key, rows=slice(first, first + FRAMES_PER_CHUNK)).tobytes())
        (partial / "identity").write_text(_identity(store))
        for path in (*partial.iterdir(), partial):  # a folder with its final name is whole, even after a power loss
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def available_memory() -> int:
    """Bytes that this process may still take, by the machine and by the limit of its control group."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        stat = (group / "memory.stat").read_text()
        cache = int(stat.split("inactive_file ")[1].split()[0])  # counted as used, given up on demand
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text()) + cache))
    except (OSError, IndexError, ValueError):  # no group, or one without a limit
        return free
