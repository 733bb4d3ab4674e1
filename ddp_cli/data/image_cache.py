"""Arrays of a store, decoded once: in memory if they fit a budget, otherwise memory-mapped from files beside the store.

    STORE.decoded/<key>.npy    an image array, uncompressed
                  identity     the store that it was decoded from

The folder may be removed whenever no training uses it; it is written again when needed.
"""

from __future__ import annotations

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

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import IMAGES_PER_CHUNK
from ddp_cli.disk import acquire_lock, atomic_folder
from ddp_cli.errors import DataError


@dataclass
class DecodedArrays:
    """Arrays by key; those with a memory map are read from disk on access."""

    data: dict[str, NDArray[Any]]
    memory_maps: list[mmap.mmap] = field(default_factory=list)

    def release_pages(self) -> None:
        """Free the memory of the pages read so far; they are read again when needed."""
        for memory_map in self.memory_maps:
            memory_map.madvise(mmap.MADV_DONTNEED)


def decode_arrays(
    store: Store, keys: Sequence[str], budget: float, info: Callable[[str], None], write: bool = True
) -> DecodedArrays:
    """Read the arrays `keys` of `store`; if all images exceed `budget` [bytes], they are memory-mapped from disk.

    `info` gets a message before anything is written, which says how to remove it. Without `write` the decoded folder
    must exist.
    """
    image_keys = [k for k in keys if store.is_image(k)]
    size = sum(store.nbytes(k) for k in image_keys)
    arrays = DecodedArrays({k: store.read(k) for k in keys if k not in image_keys or size <= budget})
    if size <= budget:
        return arrays
    folder = cache_folder(store)
    if write:
        with _locked(folder):  # processes that start at the same time would write the same files
            if not _is_decoded(folder, store, image_keys):
                info(
                    f"the images take {size / 1e9:.2f} GB, more than the memory limit of {budget / 1e9:.2f} GB: "
                    f"decoding them once to '{folder}'. Remove that folder when you no longer train on this store."
                )
                _write_cache(folder, store, image_keys)
    for key in image_keys:
        array = np.load(folder / f"{key}.npy", mmap_mode="c")  # torch wants writable arrays; nothing is written
        memory_map = array._mmap
        memory_map.madvise(mmap.MADV_RANDOM)  # windows are read in random order: read-ahead would be wasted
        arrays.data[key] = array
        arrays.memory_maps.append(memory_map)
    return arrays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = acquire_lock(folder.with_name(f".{folder.name}.lock"))
    try:
        yield
    finally:
        lock.release()


def cache_folder(store: Store) -> Path:
    """Where the decoded images of `store` are, if they have been written."""
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
    except (OSError, ValueError, EOFError):  # truncated or missing
        return False


def _write_cache(folder: Path, store: Store, keys: Sequence[str]) -> None:
    """Write the folder atomically, with one chunk in memory at a time."""
    size, free = sum(store.nbytes(k) for k in keys), shutil.disk_usage(folder.parent).free
    if size > free:
        raise DataError(
            f"'{folder}' needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB.",
            "Free some space, or raise the memory limit with --set memory_gb=...",
        )
    with atomic_folder(folder) as partial:
        for key in keys:
            path = partial / f"{key}.npy"
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=store.shape(key))
            with path.open("r+b") as file:  # not through the memory map: a full disk must raise OSError, not SIGBUS
                file.seek(array.offset)
                for start in range(0, len(array), IMAGES_PER_CHUNK):
                    file.write(store.read(key, rows=slice(start, start + IMAGES_PER_CHUNK)).tobytes())
        (partial / "identity").write_text(_identity(store))


def memory_budget(memory_gb: float) -> float:
    """Memory that decoded images may take [bytes]: `memory_gb`, or half of what is available if it is 0."""
    return memory_gb * 1e9 or available_memory() / 2


def available_memory() -> int:
    """Memory that this process can still allocate [bytes], by the machine and by the limit of its control group."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        stat = (group / "memory.stat").read_text()
        cache = int(stat.split("inactive_file ")[1].split()[0])  # counted as used, freed on demand
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text()) + cache))
    except (OSError, IndexError, ValueError):  # no control group, or one without a limit
        return free
