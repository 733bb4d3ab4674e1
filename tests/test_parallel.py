"""Processes that die: what is done is kept, what is not is done again, and nothing is lost silently."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_cli.errors import WorkerError
from ddp_cli.parallel import Lost, ordered_map, surviving_map


def make(folder: Path, deadly: dict[int, int]) -> Callable[[int], int]:
    """Squares; an item in `deadly` kills its process so many times."""

    def square(item: int) -> int:
        for time in range(deadly.get(item, 0)):
            mark = folder / f"{item}-{time}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return square


def values(results: list) -> list:
    return [f"lost {r.item}" if isinstance(r, Lost) else r for r in results]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_death_costs_nothing(tmp_path: Path, workers: int) -> None:
    found = surviving_map(functools.partial(make, tmp_path, {4: 1}), range(9), workers)
    assert values(list(found)) == [i * i for i in range(9)]


def test_an_item_that_always_kills_is_given_up_and_no_other(tmp_path: Path) -> None:
    found = surviving_map(functools.partial(make, tmp_path, {3: 99}), range(7), 2)
    assert values(list(found)) == [0, 1, 4, "lost 3", 16, 25, 36]


def test_strict_maps_stop_at_the_first_death(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="worker process died"):
        list(ordered_map(functools.partial(make, tmp_path, {1: 1}), range(4), 2))
