"""Whether Ctrl-C was pressed. Libraries that are being imported may replace the KeyboardInterrupt by another exception,
without its cause.
"""

from __future__ import annotations

import signal
import threading

_received = threading.Event()


def install() -> None:
    """Notes Ctrl-C from now on, unless it is ignored, as in a program that a shell runs in the background."""

    def handle(_number: int, _frame: object) -> None:
        _received.set()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)


def was_received() -> bool:
    """Whether Ctrl-C was pressed since `install`."""
    return _received.is_set()
