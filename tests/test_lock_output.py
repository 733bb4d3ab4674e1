"""One process at a time writes an output: `locks.lock_output`."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddp_cli.disk import atomic_file, atomic_folder
from ddp_cli.errors import DdpError
from ddp_cli.locks import lock_output

HOLD = """
import pathlib, sys
from ddp_cli.locks import lock_output
with lock_output(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen]:
    """Another process that writes `path`, until a line is written to its stdin."""
    command = [sys.executable, "-c", HOLD, str(path), "--an option"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_told_which_one_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with other_process(path) as process:
        with pytest.raises(DdpError) as error, lock_output(path):
            pytest.fail("both write")
        assert error.value.message == (
            f"'{path}' is being written by `-c {path} '--an option'` (process {process.pid} on {os.uname().nodename})."
        )
        for write in (atomic_file, atomic_folder):
            with pytest.raises(DdpError, match="is being written"), write(path):
                pytest.fail("both write")
        with lock_output(tmp_path / "other"):
            pass
        process.communicate("\n")
    with lock_output(path):
        assert [p.name for p in tmp_path.iterdir()] == [".out.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_locked_where_it_points_to(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    with other_process(link), pytest.raises(DdpError, match="target' is being written"), lock_output(target):
        pytest.fail("both write")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DdpError, match="loop' is a symbolic link to itself"), lock_output(loop):
        pass


def test_what_a_killed_process_leaves_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with other_process(path) as process:
        process.kill()
        process.wait()
    assert [p.name for p in tmp_path.iterdir()] == [".out.lock"]
    with lock_output(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    child = "    if os.fork() == 0: import time; print('forked', flush=True); time.sleep(60)\n"
    code = HOLD.replace("    print", f"{child}    print", 1)
    command = [sys.executable, "-c", f"import os\n{code}", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
    output = process.stdout.readline() + process.stdout.readline()  # of both processes, in any order
    assert "locked" in output
    assert "forked" in output
    with pytest.raises(DdpError), lock_output(tmp_path / "out"):
        pytest.fail("both write")
    process.kill()
    process.wait()
    with lock_output(tmp_path / "out"):
        pass
    os.killpg(process.pid, 9)  # the forked process


def test_a_process_waits_where_it_is_told_to(tmp_path: Path) -> None:
    path, messages = tmp_path / "out", []
    with other_process(path) as process:

        def wait(message: str) -> None:
            messages.append(message)
            process.stdin.write("\n")
            process.stdin.flush()

        with lock_output(path, wait=wait):
            assert process.wait() == 0
    assert len(messages) == 1
    assert messages[0].startswith(f"'{path}' is being written by ")
    assert messages[0].endswith(": waiting for it")


def test_the_thread_that_holds_the_lock_may_take_it_again_but_no_other(tmp_path: Path) -> None:
    path, errors = tmp_path / "out", []

    def write() -> None:
        try:
            with lock_output(path):
                pass
        except DdpError as e:
            errors.append(e.message)

    with lock_output(path):
        with lock_output(tmp_path / "folder/../out"), atomic_file(path) as partial:
            partial.write_text("content")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert f"process {os.getpid()} " in errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_are_created_and_removed_again_if_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_output(tmp_path / "a/b/out"):
        assert (tmp_path / "a/b").is_dir()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(tmp_path / "a/b/out") as partial:
        partial.touch()
    assert (tmp_path / "a/b/out").exists()


def test_an_output_in_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def read_only(path: str | Path, flags: int, *args: int, **kwargs: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match="Read-only file system") as error, lock_output(tmp_path / "out"):
        pytest.fail("written")
    assert error.value.filename == str(tmp_path / "out")


def test_outputs_are_written_on_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with atomic_file(tmp_path / "out") as partial:
        partial.write_text("content")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_lock_of_a_file_that_its_last_holder_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the file after another process has opened it, and before that process locks it."""
    real_flock, calls = fcntl.flock, []

    def remove_and_lock(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".out.lock").unlink()
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with lock_output(tmp_path / "out"):
        assert [p.name for p in tmp_path.iterdir()] == [".out.lock"]
    assert len(calls) == 2


COUNT = """
import pathlib, sys
from ddp_cli.locks import lock_output
path = pathlib.Path(sys.argv[1])
for _ in range(50):
    with lock_output(path, wait=lambda _: None):
        count = int(path.read_text()) if path.exists() else 0
        path.write_text(str(count + 1))
"""


def test_processes_that_wait_for_one_another_write_one_by_one(tmp_path: Path) -> None:
    """Each removes the lock file for which others wait, and the folder is new."""
    path = tmp_path / "new/count"
    code = COUNT.replace("\npath =", "\nimport ddp_cli.disk; ddp_cli.disk.LOCK_POLL_S = 0.001\npath =")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert path.read_text() == "200"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_takes_no_files_is_an_error() -> None:
    with pytest.raises(OSError, match="no file can be created there"), lock_output(Path("/proc/page.html")):
        pass
