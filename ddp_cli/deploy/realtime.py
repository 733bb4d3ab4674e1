"""Real-time priority of the thread that answers robots."""

from __future__ import annotations

import os

from ddp_cli.errors import ConfigError


def enter_realtime() -> None:
    """Let this thread run whenever it is ready, before all of normal priority. Threads and processes that it starts
    inherit that.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (AttributeError, OSError) as e:
        reason = "this system has none" if isinstance(e, AttributeError) else "the system does not permit it"
        raise ConfigError(
            f"--realtime: {reason}.", "Run as root, or with a limit for real-time priorities (`ulimit -r 1`)."
        ) from e


def leave_realtime() -> None:
    """Return this thread to normal priority: only the short work of replies is urgent."""
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
