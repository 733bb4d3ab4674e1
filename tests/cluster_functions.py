"""Functions that run in the processes of a cluster. This file imports little: every process does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ddp_cli.errors import DataError


def make_square(folder: str, kills: dict[int, int]) -> Callable[[int], int]:
    """A function that squares its item; it kills its process `kills[item]` times before."""

    def square(item: int) -> int:
        for kill in range(kills.get(item, 0)):
            marker = Path(folder, f"{item}-{kill}")
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return square


def make_process_names() -> Callable[[float], int]:
    def wait(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    return wait


def make_refuser() -> Callable[[int], int]:
    def refuse(item: int) -> int:
        raise DataError(f"item {item} is wrong.", "Choose another.")

    return refuse


def make_reader(folder: Path) -> Callable[[str], tuple[Path, bytes]]:
    """A function that reads a file; it reads all of them when it is made."""
    content = {path.name: path.read_bytes() for path in folder.rglob("*.bin")}
    return lambda name: (folder, content[name])
