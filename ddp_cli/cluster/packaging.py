"""A function on its way to another machine: pickled, with the files and folders that it names.

A path that a function holds, such as the folder of a policy, is used as it is on a machine where it holds the same
content: on a shared disk. Elsewhere its files come from Ray's object store.
"""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ddp_cli.disk import files_hash


@dataclass(frozen=True)
class PackagedPath:
    """A file or folder of the machine that sends a function."""

    path: Path
    digest: str
    files: ray.ObjectRef[dict[str, bytes]]
    """The files by their relative paths. They are transferred only if a machine asks for them."""


@dataclass(frozen=True)
class Package:
    """A pickled function, and the paths that it holds."""

    pickled: bytes
    paths: tuple[PackagedPath, ...]


def package(function: Callable[..., Any]) -> Package:
    """`function`, which must be picklable, to be sent to other machines."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dump(function)
    return Package(buffer.getvalue(), tuple(map(_package_path, pickler.paths)))


def call_unpacked(content: Package) -> Any:
    """Call a packaged function without arguments. Files from the object store exist during this call only."""
    with tempfile.TemporaryDirectory(prefix="ddp-cluster-") as scratch:
        return _Unpickler(content, Path(scratch)).load()()


class _Pickler(pickle.Pickler):
    """Replaces paths that exist by their position in `paths`."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.paths: list[Path] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Path) or not obj.exists():
            return None
        self.paths.append(obj.absolute())
        return len(self.paths) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: Package, scratch: Path) -> None:
        super().__init__(io.BytesIO(content.pickled))
        self._paths, self._scratch = content.paths, scratch

    def persistent_load(self, pid: int) -> Path:
        packaged = self._paths[pid]
        if packaged.path.exists() and _digest(packaged.path) == packaged.digest:
            return packaged.path
        folder = self._scratch / str(pid)
        for name, data in ray.get(packaged.files).items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return folder / packaged.path.name


def _package_path(path: Path) -> PackagedPath:
    files = {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in _files(path)}
    return PackagedPath(path, _digest(path), ray.put(files))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _digest(path: Path) -> str:
    return files_hash(path.parent, _files(path))
