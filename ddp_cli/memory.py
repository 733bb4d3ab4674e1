"""Memory of this machine: how much is available, how much of it training data may use, and the reuse of freed
buffers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def memory_budget(memory_gb: float) -> float:
    """Memory that decoded images may take [bytes]: `memory_gb`, or half of what is available if it is 0."""
    return memory_gb * 1e9 or available_memory() / 2


def available_memory() -> int:
    """Memory that this process can still allocate [bytes], by the machine and by the limits of its control groups."""
    try:
        meminfo = (ROOT / "proc/meminfo").read_text()
        free = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_available_in_groups()]))


def _available_in_groups() -> Iterator[int]:
    """What the control group of this process (versions 1 and 2) and each one around it has left of its limit [bytes].

    A batch system such as SLURM limits a group far below the root.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in (ROOT / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for controllers, path in groups:
        if "memory" in controllers.split(","):
            mount, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            mount, limit, used = "", "memory.max", "memory.current"
        else:
            continue
        top = ROOT / "sys/fs/cgroup" / mount
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or without a limit
                available = int((folder / limit).read_text()) - int((folder / used).read_text())
                yield available + _reclaimable(folder)
            if folder == top:
                break


def _reclaimable(group: Path) -> int:
    """Memory of a control group that counts as used, but is freed on demand [bytes]; 0 where that is not known."""
    try:
        return int((group / "memory.stat").read_text().split("inactive_file ")[1:][-1].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


def keep_freed_memory() -> None:
    """Make glibc reuse large buffers instead of returning them to the kernel after every operation.

    On a CPU the page faults of new buffers cost a third of a training step. No effect with other C libraries.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
