"""Signals that end a training after a checkpoint: Ctrl-C, SIGTERM, and SIGHUP, when the terminal is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ddp_cli import console

if TYPE_CHECKING:
    from collections.abc import Callable


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a signal has arrived; a second Ctrl-C or SIGTERM interrupts at once."""
    requested = asked = False
    in_terminal = console.is_terminal()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal requested, asked
        if asked:
            raise KeyboardInterrupt
        requested = asked = True
        console.note("stopping: saving a checkpoint (press Ctrl-C again to stop without saving)")

    def hang_up(_signal: int, _frame: FrameType | None) -> None:
        # A shell and the system may both send it when a terminal is closed, and SIGTERM with it: neither is a second
        # request, which would lose the checkpoint.
        nonlocal requested
        requested = True
        if in_terminal:
            console.silence()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it: the training outlives its terminal
        handlers[signal.SIGHUP] = hang_up
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
