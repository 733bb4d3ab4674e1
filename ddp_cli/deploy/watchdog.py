"""Stops a robot whose control loop hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

TIMEOUT_PERIODS, MIN_TIMEOUT = 10, 0.5
"""Control periods and seconds without a step after which a robot is stopped: whichever is longer."""


def timeout_of(control_hz: float) -> float:
    """The timeout of a control loop [s]."""
    return max(MIN_TIMEOUT, TIMEOUT_PERIODS / control_hz)


class Watchdog:
    """Calls `stop`, from a thread of its own, when `feed` was not called for `timeout` [s]; `expired` is True then.

    Without a `timeout` it never does: a simulator that does not run in real time stands still meanwhile.
    """

    def __init__(self, timeout: float | None, stop: Callable[[], None]) -> None:
        self.expired = False
        self._timeout, self._stop = timeout, stop
        self._fed, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="ddp-watchdog", daemon=True)

    def feed(self) -> None:
        self._fed.set()

    def _watch(self) -> None:
        while self._fed.wait(self._timeout):
            if self._closed:
                return
            self._fed.clear()
        self.expired = True
        self._stop()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._fed.set()
        self._thread.join(self._timeout)
