"""What the index columns of a LeRobot dataset must fulfil. value_checks.py checks the values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.invariants import check_time
from ddp_cli.data.parquet import COPY_AGAIN
from ddp_cli.errors import DataError

Floats = NDArray[np.float64]


def check_indices(rows: dict[str, Floats], length: int, first: int | None, fps: float, location: str) -> None:
    """DataError unless the index columns of `rows` (n,) count the steps of one episode, and its time goes on at `fps`.

    `length` and `first` are the number of steps and the index of the first in the dataset, as declared.
    """
    count = len(rows["episode_index"])
    if length == 0 or count != length:
        raise DataError(f"{location}: {count} rows for {length} steps.", COPY_AGAIN)
    for name, begin in (("frame_index", 0), ("index", first)):
        if name not in rows or begin is None:
            continue
        wrong = np.flatnonzero(rows[name] != begin + np.arange(count))
        if len(wrong):
            step = int(wrong[0])
            raise DataError(
                f"{location}: {name} is {rows[name][step]:g} in row {step}, expected {begin + step}: frames are "
                "missing or in another order.",
                "Copy or record the dataset again.",
            )
    if "timestamp" in rows:
        check_finite("timestamp", rows["timestamp"], location)
        check_time(rows["timestamp"], f"{location}, timestamp", fps)


def check_finite(name: str, values: NDArray[Any], location: str) -> None:
    """DataError unless all `values` are finite."""
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DataError(
            f"{location}: {name} is not finite in step {step}.",
            "Leave it out: --only takes a slice of the episodes, such as :3 or 4:.",
        )


def find_overlaps(parts: Iterable[tuple[int, int, int]], tolerance: int = 0) -> Iterator[tuple[int, int]]:
    """The first frame and the episode of every part of a video that begins more than `tolerance` frames before the end
    of another one. `parts` are (first frame, frame after the last, episode).
    """
    for (_, end, _), (begin, _, episode) in itertools.pairwise(sorted(parts)):
        if begin < end - tolerance:
            yield begin, episode
