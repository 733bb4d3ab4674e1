"""Workers that crash: finished results are kept, items in progress are retried, failed items are reported."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_cli.errors import WorkerError
from ddp_cli.parallel import FailedItem, fault_tolerant_map, ordered_map, run_in_thread


def make_square(folder: Path, crashes: dict[int, int]) -> Callable[[int], int]:
    """A function that squares its item; it kills its process `crashes[item]` times before."""

    def square(item: int) -> int:
        for crash in range(crashes.get(item, 0)):
            marker = folder / f"{item}-{crash}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return square


def values(results: list) -> list:
    return [f"failed {r.item}" if isinstance(r, FailedItem) else r for r in results]


@pytest.mark.parametrize("workers", [2, 3])
def test_crashed_items_are_retried(tmp_path: Path, workers: int) -> None:
    results = fault_tolerant_map(functools.partial(make_square, tmp_path, {4: 1}), range(9), workers)
    assert values(list(results)) == [i * i for i in range(9)]


def test_only_the_item_that_always_crashes_fails(tmp_path: Path) -> None:
    results = fault_tolerant_map(functools.partial(make_square, tmp_path, {3: 99}), range(7), 2)
    assert values(list(results)) == [0, 1, 4, "failed 3", 16, 25, 36]


def test_ordered_map_raises_an_error_at_the_first_crash(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="worker process crashed"):
        list(ordered_map(functools.partial(make_square, tmp_path, {1: 1}), range(4), 2))


def make_sleeper(folder: Path) -> Callable[[int], int]:
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return abs


def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import functools, pathlib; from test_parallel import make_sleeper; "
        "from ddp_cli.parallel import fault_tolerant_map; "
        f"list(fault_tolerant_map(functools.partial(make_sleeper, pathlib.Path({str(tmp_path)!r})), range(4), 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if is_running(pid)]


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the process may end while its status is read
        return False


def test_run_in_thread_returns_the_result_or_raises_the_exception() -> None:
    assert run_in_thread(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0).result()


def test_workers_start_where_the_path_of_the_temporary_folder_is_long(tmp_path: Path) -> None:
    """A fork server cannot listen there."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    code = """
import functools
from ddp_cli.parallel import ordered_map, preload_workers
preload_workers("math")
print(list(ordered_map(functools.partial(functools.partial, abs), [-1, -2, -3], 2)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "[1, 2, 3]\n", done.stderr
