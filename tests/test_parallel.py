"""Processes that die: what is done is kept, what is not is done again, and nothing is lost silently."""

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
from ddp_cli.parallel import FailedItem, begin, fault_tolerant_map, ordered_map


def make(folder: Path, deadly: dict[int, int]) -> Callable[[int], int]:
    """Squares; an item in `deadly` kills its process so many times."""

    def square(item: int) -> int:
        for death in range(deadly.get(item, 0)):
            mark = folder / f"{item}-{death}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return square


def values(results: list) -> list:
    return [f"lost {r.item}" if isinstance(r, FailedItem) else r for r in results]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_death_costs_nothing(tmp_path: Path, workers: int) -> None:
    found = fault_tolerant_map(functools.partial(make, tmp_path, {4: 1}), range(9), workers)
    assert values(list(found)) == [i * i for i in range(9)]


def test_an_item_that_always_kills_is_given_up_and_no_other(tmp_path: Path) -> None:
    found = fault_tolerant_map(functools.partial(make, tmp_path, {3: 99}), range(7), 2)
    assert values(list(found)) == [0, 1, 4, "lost 3", 16, 25, 36]


def test_strict_maps_stop_at_the_first_death(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="worker process died"):
        list(ordered_map(functools.partial(make, tmp_path, {1: 1}), range(4), 2))


def forked(folder: Path) -> Callable[[int], int]:
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return abs


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import functools, pathlib; from test_parallel import forked; from ddp_cli.parallel import surviving_map; "
        f"list(surviving_map(functools.partial(forked, pathlib.Path({str(tmp_path)!r})), range(4), 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)]


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_what_was_begun_is_asked_for_later() -> None:
    assert begin(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        begin(lambda: 1 // 0).result()
