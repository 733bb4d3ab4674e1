"""Signals that end a training after a checkpoint: Ctrl-C, SIGTERM, and SIGHUP, when the terminal is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ddp_cli import console
from ddp_cli.interruption import is_ignored, signals_handled


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a signal has arrived; a second Ctrl-C or SIGTERM interrupts at once."""
    stop_requested = next_interrupts = False
    in_terminal = console.is_terminal()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested, next_interrupts
        if next_interrupts:
            raise KeyboardInterrupt
        stop_requested = next_interrupts = True
        console.note("stopping: saving a checkpoint (press Ctrl-C again to stop without saving)")

    def hang_up(_signal: int, _frame: FrameType | None) -> None:
        # A shell and the system may both send it when a terminal is closed, and SIGTERM with it: neither is a second
        # request, which would lose the checkpoint.
        nonlocal stop_requested
        stop_requested = True
        if in_terminal:
            console.silence()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if not is_ignored(signal.SIGHUP):
        handlers[signal.SIGHUP] = hang_up
    with signals_handled(handlers):
        yield lambda: stop_requested
