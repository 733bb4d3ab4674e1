"""Stops a robot whose control loop hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Watchdog:
    """Calls `stop`, from a thread of its own, when `feed` was not called for `timeout` [s]; `expired` is True then."""

    def __init__(self, timeout: float, stop: Callable[[], None]) -> None:
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
