"""Other work on the machine while a benchmark measures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "sample_data" / "square-policy"
N_CORES = len(os.sched_getaffinity(0))


@contextmanager
def background_load(enabled: bool) -> Iterator[None]:
    """An evaluation of the sample policy, with as many workers as there are cores, that does not end by itself."""
    if not enabled:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddp_cli", "eval", POLICY, "--episodes", 100_000, "--workers", N_CORES]
        process = subprocess.Popen(
            [*map(str, command), "--out", f"{folder}/report.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(20)  # its workers have started
        try:
            yield
        finally:
            process.terminate()
            process.wait()
