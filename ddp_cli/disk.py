"""Files and folders that appear under their final name only when they are complete.

Everything is written under a temporary name beside its final one (`.NAME.partial`), synced and renamed: after an
error nothing is left of it, and after a SIGKILL or a power loss the final name holds the old content or the new.
An output is written by one process at a time, see locks.py.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddp_cli.locks import lock_output

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it replaces `path` on success and is removed after an error.

    If `path` is a symbolic link, what it points to is replaced. DdpError if another process is writing `path`, or if it
    is a device or a pipe; the same for `atomic_folder`.
    """
    with lock_output(path) as target:
        partial = _hidden(target, "partial")
        try:
            yield partial
            replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to write to; it replaces `path` on success and is removed after an error."""
    with lock_output(path) as target:
        partial = _hidden(target, "partial")
        remove(partial)
        partial.mkdir()
        try:
            yield partial
            replace(partial, target)
        finally:
            remove(partial)


def replace(partial: Path, path: Path) -> None:
    """Sync `partial`, a complete file or folder in the same folder as `path`, and rename it to `path`.

    A folder at `path` is replaced in one step where the file system can exchange two folders (on Linux: ext4, xfs,
    btrfs, tmpfs and others). Elsewhere a kill between two renames leaves the old folder as `.NAME.removed`.
    """
    for child in sorted(partial.rglob("*"), reverse=True):  # the content of a folder before the folder
        sync(child)
    sync(partial)
    removed = _hidden(path, "removed")
    if not (partial.is_dir() and os.path.lexists(path)):
        partial.replace(path)
    else:
        remove(removed)
        if _exchange(partial, path):
            partial.rename(removed)
        else:
            _replace_in_two_steps(partial, path, removed)
    sync(path.parent)
    remove(removed)


def _replace_in_two_steps(partial: Path, path: Path, removed: Path) -> None:
    try:
        path.rename(removed)
        partial.rename(path)
    except BaseException:
        if not os.path.lexists(path):
            removed.rename(path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the operating system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return int(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)) == 0


def replace_link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, which is in the same folder; on a file system without such
    links (exFAT, some network shares), a file that holds the name of `target`.
    """
    partial = _hidden(link, "partial")
    remove(partial)
    try:
        partial.symlink_to(target.name)
    except OSError:
        partial.write_text(f"{target.name}\n")
        sync(partial)
    if link.is_dir() and not link.is_symlink():  # a folder that was copied with its links followed
        remove_folder(link)
    partial.replace(link)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so an interruption never leaves a part of it under its name."""
    if os.path.lexists(folder):
        removed = _hidden(folder, "removed")
        remove(removed)
        folder.rename(removed)
        remove(removed)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes and removals left in `folder`, which no other process writes to."""
    for suffix in ("partial", "removed", "lock"):
        for path in folder.glob(f".*.{suffix}"):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the paths, relative to `folder`, and the contents of `files`, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")
