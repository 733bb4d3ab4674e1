"""What a worker process of a cluster does: it makes a function once, and calls it on items."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from ddp_cli.cluster.node import check_software
from ddp_cli.cluster.packaging import Package, call_unpacked
from ddp_cli.parallel import sendable_error


class Work(NamedTuple):
    """What all items of a map have in common."""

    key: str
    make_function: Package
    software: dict[str, str]
    """Versions on the machine where the command runs."""


class Worker:
    """A process that a cluster starts."""

    def __init__(self) -> None:
        os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa renders in the calling thread
        self._key = ""
        self._function: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Return when the process has started."""

    def call(self, work: Work, item: bytes) -> bytes:
        """Call the function of `work` on a pickled item: its result and None, or None and its exception, pickled.

        Pickled here, as between processes of one machine: arrays that Ray itself transfers are read-only.
        """
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = (self._make(work)(pickle.loads(item)), None)  # noqa: S301 - sent by the command that this serves
        except BaseException as e:  # noqa: BLE001 - raised by the command
            outcome = (None, sendable_error(e))
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)

    def _make(self, work: Work) -> Callable[[Any], Any]:
        if self._function is None or self._key != work.key:
            self._function = None  # release a simulator before the next one is made
            check_software(work.software)
            self._function = call_unpacked(work.make_function)
            self._key = work.key
        return self._function
