from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_cli.disk import atomic_file, atomic_folder, remove_folder, remove_leftovers, replace_link
from ddp_cli.errors import DdpError
from ddp_cli.locks import acquire_lock


def write_folder(path: Path, content: str) -> None:
    with atomic_folder(path) as partial:
        (partial / "nested").mkdir()
        for name in ("a", "nested/b"):
            (partial / name).write_text(content)


def read_folder(path: Path) -> set[str]:
    return {(path / name).read_text() for name in ("a", "nested/b")}


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a system call that exchanges two folders."""
    if request.param == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    return request.param


def test_a_file_replaces_an_older_one_on_success_only(tmp_path: Path) -> None:
    path = tmp_path / "new/file"
    for content in ("old", "new"):
        with atomic_file(path) as partial:
            assert partial.name == ".file.partial"
            partial.write_text(content)
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as partial:
        partial.write_text("interrupted")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("system")
def test_what_a_link_points_to_is_replaced_and_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "large disk" / name)  # does not exist at first
    for content in ("old", "new"):
        write_folder(tmp_path / "folder", content)
        with atomic_file(tmp_path / "file") as partial:
            partial.write_text(content)
        assert read_folder(tmp_path / "large disk" / "folder") == {content}
        assert (tmp_path / "large disk" / "file").read_text() == content
    assert all((tmp_path / name).is_symlink() for name in ("file", "folder"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DdpError, match="pipe' is a device or a pipe"), atomic_file(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.usefixtures("system")
def test_a_folder_replaces_an_older_one_on_success_only(tmp_path: Path) -> None:
    path = tmp_path / "new/folder"
    for content in ("old", "new"):
        write_folder(path, content)
        assert read_folder(path) == {content}
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as partial:
        assert partial.name == ".folder.partial"
        (partial / "a").write_text("interrupted")
        raise KeyboardInterrupt
    assert read_folder(path) == {"new"}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".folder.partial":
            raise OSError(errno.EIO, "input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="input/output"):
        write_folder(tmp_path / "folder", "new")
    assert read_folder(tmp_path / "folder") == {"old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.usefixtures("system")
def test_all_content_is_synced_before_the_final_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "folder", "old")
    synced: list[str] = []

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert path == tmp_path or read_folder(tmp_path / "folder") == {"old"}
        synced.append(path.name)

    monkeypatch.setattr(os, "fsync", record)
    write_folder(tmp_path / "folder", "new")
    assert sorted(synced[:-2]) == ["a", "b", "nested"]
    assert synced.index("nested") > synced.index("b")
    assert synced[-2:] == [".folder.partial", tmp_path.name]


KILL_ITSELF = """
import os, pathlib, shutil, signal, sys
from ddp_cli.disk import atomic_folder
calls, number = 0, int(sys.argv[2])
def killing(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, killing(getattr(os, name)))
with atomic_folder(pathlib.Path(sys.argv[1])) as partial:
    (partial / "nested").mkdir()
    for name in ("a", "nested/b"):
        (partial / name).write_text("new")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_a_killed_process_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    contents = []
    for number in range(1, 100):
        command = [sys.executable, "-c", KILL_ITSELF, str(path), str(number)]
        code = subprocess.run(command, check=False).returncode
        contents.append(read_folder(path))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        write_folder(path, "old")  # works after every interruption
    assert all(content in ({"old"}, {"new"}) for content in contents)
    assert {"old"} in contents
    assert contents.count({"new"}) > 1  # killed after the exchange, and at last not killed
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_even_where_a_copy_made_it_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two", "link"):
        write_folder(tmp_path / name, name)
    for name in ("one", "two"):
        replace_link(tmp_path / "link", tmp_path / name)
        assert (tmp_path / "link").readlink() == Path(name)
        assert read_folder(tmp_path / "link") == {name}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "one", "two"]


def test_a_link_is_a_file_where_there_are_no_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for name in ("one", "two"):
        write_folder(tmp_path / name, name)
    replace_link(tmp_path / "link", tmp_path / "one")
    monkeypatch.setattr(os, "symlink", unsupported)
    for name in ("two", "one"):  # in place of a symbolic link, then of a file
        replace_link(tmp_path / "link", tmp_path / name)
        assert (tmp_path / "link").read_text() == f"{name}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "one", "two"]
    assert read_folder(tmp_path / "one") == {"one"}


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "kept")
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".b.removed").mkdir()
    (tmp_path / ".c.partial").touch()
    replace_link(tmp_path / ".d.partial", tmp_path / "folder")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    assert read_folder(tmp_path / "folder") == {"kept"}
    remove_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")  # already removed
    assert list(tmp_path.iterdir()) == []


HOLD_LOCK = """
import pathlib, sys, time
from ddp_cli.locks import acquire_lock
lock = acquire_lock(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def test_a_lock_excludes_other_processes_until_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError):
            acquire_lock(path, blocking=False)
        holder.kill()
    lock = acquire_lock(path, blocking=False)
    with pytest.raises(BlockingIOError):
        acquire_lock(path, blocking=False)
    lock.release()
    acquire_lock(path).release()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_file_system_without_locks_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, blocking: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        lock = acquire_lock(tmp_path / "lock", blocking)
        assert not lock.is_locked
        lock.release()


def test_a_lock_in_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acquire_lock(tmp_path / "missing/lock")
