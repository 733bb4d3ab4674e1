"""Locks between processes: an output is written, and a run trained, by one process at a time.

A lock ends with the process that holds it, however that ends: nothing has to be removed after a kill. (filelock cannot
remove the lock file safely: its public interface does not tell whether the locked file is still the one at the path.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddp_cli.errors import DdpError

POLL_INTERVAL_S = 0.2
MAX_ATTEMPTS = 100  # to create a file in a folder that other processes remove


class Lock:
    """An exclusive lock of the file `path`, from `acquire_lock`. `is_locked` is false where files cannot be locked."""

    def __init__(self, path: Path, descriptor: int, is_locked: bool) -> None:
        self.path, self.is_locked = path, is_locked
        self._descriptor = descriptor
        _locks.add(self)

    def release(self) -> None:
        """Unlock the file."""
        # Closed, never unlocked: a forked process, which closes its copy, would take the lock from its parent.
        descriptor, self._descriptor, self.is_locked = self._descriptor, -1, False
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = release

    def is_current(self) -> bool:
        """Whether the locked file is still the one at `path`: its last holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def write(self, text: str) -> None:
        """Replace the content of the locked file, if the disk is not full."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(errors="replace"), 0)


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _release_all() -> None:
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_release_all)  # a worker that outlives a killed process must not keep its locks


def acquire_lock(path: Path, blocking: bool = True) -> Lock:
    """Lock the file `path` until `release()` or the end of this process, however it ends; the file stays.

    It holds a description of this process, see `read_holder`. Without `blocking`, `BlockingIOError` if another process
    (or another lock of this one) holds the lock. On file systems that cannot lock, nothing is locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    lock = Lock(path, descriptor, is_locked=True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except OSError as e:
        if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
            lock.release()
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process", str(path)) from e
        lock.is_locked = False
    except BaseException:
        lock.release()
        raise
    lock.write(_describe_process())
    return lock


def _describe_process() -> str:
    program = Path(sys.argv[0]).name.replace("__main__.py", "ddp").replace("cli.py", "ddp")
    return f"`{shlex.join([program, *sys.argv[1:]])}` (process {os.getpid()} on {socket.gethostname()})"


def read_holder(path: Path) -> str:
    """The command, process and host that hold the lock of the file `path`; FileNotFoundError if it is gone."""
    return path.read_text(errors="replace").strip() or "another process"


def final_path(path: Path) -> Path:
    """What is written when the output `path` is: the end of a symbolic link. DdpError if it is neither a file nor a
    folder.
    """
    try:
        path = path.resolve() if path.is_symlink() else path
    except RuntimeError:
        raise DdpError(f"'{path}' is a symbolic link to itself.", "Choose another output.") from None
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DdpError(f"'{path}' is a device or a pipe, not a file.", "Choose another output.")
    return path


_outputs: dict[Path, int] = {}
"""Outputs that this process has locked, and the threads that write them."""


@contextmanager
def lock_output(path: Path, wait: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Keep other processes from writing the file or folder `path` inside the `with` block; yields its `final_path`.

    If another process writes it, DdpError names that process; with `wait`, `wait(message)` is called once and the
    block begins when the other process has ended. The thread that holds the lock may lock the same output again.
    Missing parent folders are created, and removed again if nothing was written to them. The lock file `.NAME.lock` is
    removed at the end; one that a killed process left behind is not locked. A symbolic link is locked where it points
    to.
    """
    path = final_path(path)
    key = path.parent.resolve() / path.name
    if _outputs.get(key) == threading.get_ident():
        yield path
        return
    created = make_folder(key.parent)
    try:
        lock = _acquire_output_lock(path, wait)
        _outputs[key] = threading.get_ident()
        try:
            yield path
        finally:
            del _outputs[key]
            with contextlib.suppress(OSError):
                lock.path.unlink()
            lock.release()
    finally:
        remove_empty_folders(created)


def _acquire_output_lock(path: Path, wait: Callable[[str], None] | None) -> Lock:
    lock_path = _lock_path(path.absolute())  # the working folder may change meanwhile
    attempts = 0
    while True:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire_lock(lock_path, blocking=False)
            if lock.is_current():
                return lock
            lock.release()
        except FileNotFoundError as e:  # the last holder removed the folder, or it takes no files, as /proc
            attempts += 1
            if attempts == MAX_ATTEMPTS:
                raise OSError(e.errno, "no file can be created there", str(path)) from e
        except BlockingIOError:
            try:
                holder = read_holder(lock_path)
            except FileNotFoundError:
                continue
            if wait is None:
                raise DdpError(
                    f"'{path}' is being written by {holder}.",
                    "Wait until it has finished, stop it, or choose another output.",
                ) from None
            wait(f"'{path}' is being written by {holder}: waiting for it")
            wait = lambda _: None  # noqa: E731
            time.sleep(POLL_INTERVAL_S)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from e


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def make_folder(folder: Path) -> list[Path]:
    """Create `folder` and those above it; returns those that did not exist, the innermost first."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return created


def remove_empty_folders(folders: list[Path]) -> None:
    """Remove folders that `make_folder` created, unless something was written to them."""
    with contextlib.suppress(OSError):  # not empty: those above it are not empty either
        for folder in folders:
            folder.rmdir()
