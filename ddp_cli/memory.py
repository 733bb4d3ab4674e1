"""Memory of this machine: how much is available, how much of it training data may use, and the reuse of freed
buffers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path


def memory_budget(memory_gb: float) -> float:
    """Memory that decoded images may take [bytes]: `memory_gb`, or half of what is available if it is 0."""
    return memory_gb * 1e9 or available_memory() / 2


def available_memory() -> int:
    """Memory that this process can still allocate [bytes], by the machine and by the limit of its control group."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        stat = (group / "memory.stat").read_text()
        cache = int(stat.split("inactive_file ")[1].split()[0])  # counted as used, freed on demand
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text()) + cache))
    except (OSError, IndexError, ValueError):  # no control group, or one without a limit
        return free


def keep_freed_memory() -> None:
    """Make glibc reuse large buffers instead of returning them to the kernel after every operation.

    On a CPU the page faults of new buffers cost a third of a training step. No effect with other C libraries.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
