"""Handlers of signals, and whether Ctrl-C was pressed.

Libraries that are being imported may replace the KeyboardInterrupt by another exception, without its cause; one that is
raised in a finalizer or in a callback of a weak reference is printed and dropped.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers

_received = threading.Event()
RETRY_S = 0.02  # the callback has returned by then


def install() -> None:
    """Notes Ctrl-C from now on, unless it is ignored, as in a program that a shell runs in the background."""

    def handle(_number: int, _frame: object) -> None:
        _received.set()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)
        sys.unraisablehook = _raise_later


def was_received() -> bool:
    """Whether Ctrl-C was pressed since `install`."""
    return _received.is_set()


def is_ignored(number: signal.Signals) -> bool:
    """Whether the signal is ignored, as SIGHUP is in a program that `nohup` started: it outlives its terminal."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def signals_handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Handles signals in the `with` block, and restores their handlers at its end. In the main thread only."""
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise_later(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupts the main thread again, where the exception can be raised. Other exceptions are printed, as usual."""

    def interrupt() -> None:
        time.sleep(RETRY_S)
        _thread.interrupt_main()

    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(interrupt, ())
    else:
        sys.__unraisablehook__(unraisable)
