"""Arrays of a store, decoded once: in memory if they fit a budget, otherwise memory-mapped from files beside the store.

    STORE.decoded/<key>.npy    an image array, uncompressed
                  identity     JSON: the store that it was decoded from, and the checksums of the files

The folder may be removed whenever no training uses it; it is written again when needed, or when a file is damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.store import Store
from ddp_cli.data.store_writer import images_per_chunk
from ddp_cli.disk import atomic_folder
from ddp_cli.errors import DataError
from ddp_cli.locks import lock_output


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
    store: Store,
    keys: Sequence[str],
    budget: float,
    info: Callable[[str], None],
    write: bool = True,
    cache_dir: str = "",
) -> DecodedArrays:
    """Read the arrays `keys` of `store`; if all images exceed `budget` [bytes], they are memory-mapped from disk.

    `info` gets a message before anything is written, which says how to remove it. Without `write` the decoded folder
    must exist. `cache_dir`: see `cache_folder`. DataError if the decoded images cannot be written.
    """
    image_keys = [k for k in keys if store.is_image(k)]
    size = sum(store.nbytes(k) for k in image_keys)
    arrays = DecodedArrays({k: store.read(k) for k in keys if k not in image_keys or size <= budget})
    if size <= budget:
        return arrays
    folder = cache_folder(store, cache_dir)
    if write and not _is_decoded(folder, store, image_keys):  # no lock is needed to read: the folder may be read-only
        reason = f"the images take {size / 1e9:.2f} GB, more than the memory limit of {budget / 1e9:.2f} GB"
        _update_cache(folder, store, image_keys, reason, info)
    for key in image_keys:
        array = np.load(folder / f"{key}.npy", mmap_mode="c")  # torch wants writable arrays; nothing is written
        memory_map = array._mmap
        memory_map.madvise(mmap.MADV_RANDOM)  # windows are read in random order: read-ahead would be wasted
        arrays.data[key] = array
        arrays.memory_maps.append(memory_map)
    return arrays


def cache_folder(store: Store, cache_dir: str = "") -> Path:
    """Where the decoded images of `store` are, if they have been written: beside it, or in the folder `cache_dir` under
    a name of its own. Images that are resized have a folder per size.
    """
    sizes = dict.fromkeys(f"{camera.height}x{camera.width}" for camera in store.resized.values())
    name = ".".join([store.path.name, *sizes])
    if not cache_dir:
        return store.path.with_name(f"{name}.decoded")
    path_hash = hashlib.sha256(str(store.path.resolve()).encode()).hexdigest()[:12]
    return Path(cache_dir) / f"{name}-{path_hash}.decoded"


def _update_cache(folder: Path, store: Store, keys: Sequence[str], reason: str, info: Callable[[str], None]) -> None:
    try:
        with lock_output(folder, wait=info):
            if not _is_decoded(folder, store, keys):  # another process may have written it
                info(
                    f"{reason}: decoding them once to '{folder}'. Remove that folder when you no longer train on this "
                    "store."
                )
                _write_cache(folder, store, keys)
    except OSError as e:
        if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise DataError(
            f"{reason}, and they cannot be decoded to '{folder}': {e.strerror}.",
            "Choose another folder with --set cache_dir=DIR, or raise the limit with --set memory_gb=...",
        ) from e


def _identity(store: Store, keys: Sequence[str]) -> str:
    """What the decoded images depend on."""
    attributes = {key: store.attrs.get(key) for key in ("task", "render", "versions", "total", "source")}
    if "content" in store.attrs:
        attributes["content"] = [store.attrs["content"].get(f"data/{key}") for key in keys]
    if store.resized:
        attributes["resized"] = {key: camera.to_json() for key, camera in store.resized.items()}
    encoded = {key: sum(file.stat().st_size for file in (store.path / "data" / key).rglob("*")) for key in keys}
    return json.dumps([attributes, store.content_hash(), encoded], sort_keys=True)


def _is_decoded(folder: Path, store: Store, keys: Sequence[str]) -> bool:
    """Whether the folder holds the images of `store`, with the checksums that were recorded when they were written."""
    try:
        content = json.loads((folder / "identity").read_text())
        if content["store"] != _identity(store, keys):
            return False
        return all(_checksum(folder / f"{key}.npy") == content["crc32"][key] for key in keys)
    except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or written by an older version
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_cache(folder: Path, store: Store, keys: Sequence[str]) -> None:
    """Write the folder atomically, with one chunk in memory at a time."""
    size, free = sum(store.nbytes(k) for k in keys), shutil.disk_usage(folder.parent).free
    if size > free:
        raise DataError(
            f"'{folder}' needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB.",
            "Free some space, choose another disk with --set cache_dir=DIR, or raise the memory limit with "
            "--set memory_gb=...",
        )
    checksums = {}
    with atomic_folder(folder) as partial:
        for key in keys:
            path = partial / f"{key}.npy"
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=store.shape(key))
            with path.open("r+b") as file:  # not through the memory map: a full disk must raise OSError, not SIGBUS
                checksum = zlib.crc32(file.read(array.offset))
                count = images_per_chunk(array.shape[1:])
                for start in range(0, len(array), count):
                    images = store.read(key, rows=slice(start, start + count)).tobytes()
                    checksum = zlib.crc32(images, checksum)
                    file.write(images)
            checksums[key] = checksum
        (partial / "identity").write_text(json.dumps({"store": _identity(store, keys), "crc32": checksums}))
