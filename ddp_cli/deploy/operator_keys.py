"""Keys that the operator of a robot presses in the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SUCCESS, FAILURE, DISCARD = "s", "f", "d"
HELP = f"keys: {SUCCESS} success, {FAILURE} failure, {DISCARD} discard the episode, Ctrl-C stop"


@contextmanager
def pressed_keys() -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns the key that was pressed, or None, without waiting. Outside of a terminal no key
    ever is.
    """
    try:
        descriptor = sys.stdin.fileno()
        settings = termios.tcgetattr(descriptor)
    except (termios.error, OSError, ValueError, AttributeError):  # no terminal, a closed or replaced stdin
        yield lambda: None
        return

    def read_key() -> str | None:
        return os.read(descriptor, 1).decode(errors="replace") if select.select([descriptor], [], [], 0)[0] else None

    try:
        tty.setcbreak(descriptor)  # Ctrl-C still interrupts
        yield read_key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
