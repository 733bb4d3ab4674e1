"""Time and memory of `ddp convert`, `train` and `eval` over 1, 10 and 100 times the data, and over numbers of workers.

    PYTHONPATH=.:tests/data python tests/bench/scaling.py [--what convert train eval] [--out scaling.json]

Memory is the largest sum, over all processes of a command, of their proportional set size: pages that several processes
share count once. Data: the sample demonstrations of lift (convert), random images (train), episodes of the
sample policy of square (eval).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from random_stores import write_store

ROOT = Path(__file__).parents[2]
FACTORS = (1, 10, 100)
DEMOS, STEPS, EPISODES = 1, 600, 1  # of factor 1
POLL_S = 0.2
MB = 1e6


class Usage:
    """What the processes of a session use: the peak of their memory [bytes], and processor time [s]."""

    def __init__(self, session: int) -> None:
        self.session, self.peak = session, 0
        self._ticks: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            processes = dict(_processes_of(self.session))
            self._ticks |= processes
            self.peak = max(self.peak, sum(_pss(pid) for pid in processes))

    def stop(self) -> tuple[int, float]:
        self._stop.set()
        self._thread.join()
        return self.peak, sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")


def _processes_of(session: int) -> Iterator[tuple[int, int]]:
    """The processes of a session, with their processor time so far [ticks]."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            yield int(path.parent.name), int(fields[11]) + int(fields[12])


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(*command: object, threads: int = 1) -> dict[str, float]:
    """Wall time [s], processor time [s] and peak memory [MB] of a `ddp` command and its workers."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}  # the number of processes that train
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ddp_cli", *map(str, command)], start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    usage = Usage(process.pid)
    _, errors = process.communicate()
    seconds, (peak, processor_s) = time.perf_counter() - start, usage.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{errors}")
    return {"s": round(seconds, 1), "processor_s": round(processor_s, 1), "peak_mb": round(peak / MB)}


def scale_convert(folder: Path, factor: int, workers: int) -> dict[str, Any]:
    demos = ROOT / "sample_data" / "lift.hdf5"
    store = folder / "converted.zarr"
    result = measure(
        "convert",
        demos,
        "--out",
        store,
        "--workers",
        workers,
        "--check",
        0,
        "--overwrite",
        "--only",
        f":{DEMOS * factor}",
    )
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return {"demos": DEMOS * factor, **result, "store_mb": round(size / MB, 1)}


def scale_train(folder: Path, factor: int, workers: int) -> dict[str, Any]:
    """Start and 40 steps. Batches are drawn from all images, so they have to be loaded first."""
    store = folder / f"random-{factor}.zarr"
    if not store.exists():
        write_store(store, [STEPS // 4] * 4 * factor)
    runs = folder / "runs"
    options = ("--allow-unverified", "--steps", 40, "--runs", runs, "--name", "a", "--set", "object_loss=0")
    result = measure("train", "--data", store, *options, threads=workers)
    lines = [json.loads(line) for line in next(runs.rglob("metrics.jsonl")).read_text().splitlines()]
    shutil.rmtree(runs)
    rate = [line["steps_per_s"] for line in lines if "steps_per_s" in line][-1]
    return {"images_mb": round(STEPS * factor * 2 * 84 * 84 * 3 / MB), **result, "steps_per_s": round(rate, 2)}


def scale_eval(folder: Path, factor: int, workers: int) -> dict[str, Any]:
    policy = ROOT / "sample_data" / "square-policy"
    report = folder / "report.json"
    result = measure("eval", policy, "-n", EPISODES * factor, "--workers", workers, "--out", report, "--overwrite")
    return {"episodes": EPISODES * factor, **result}


SCALED = {"convert": scale_convert, "train": scale_train, "eval": scale_eval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=SCALED, default=list(SCALED))
    parser.add_argument("--factors", nargs="+", type=int, default=FACTORS)
    parser.add_argument("--workers", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in args.what:
            # Each factor with two workers, and each number of workers with the middle factor.
            cells = {(factor, 2) for factor in args.factors} | {(args.factors[-2:][0], n) for n in args.workers}
            for factor, workers in sorted(cells):
                row = {"command": what, "factor": factor, "workers": workers}
                rows.append(row | SCALED[what](Path(folder), factor, workers))
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
