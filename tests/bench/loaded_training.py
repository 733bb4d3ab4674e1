"""Training on a CPU by processes against threads, idle and beside other work.

    python tests/bench/loaded_training.py STORE

The baseline is one process with as many threads, which `ddp train` used before. The load is an evaluation of the sample
policy with as many workers as there are cores. Steps/s of the laptop preset, medians over the rounds; each measurement
is a run of its own, without its start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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

WITH_THREADS = """
import sys
from ddp_cli.training import cpu_workers
cpu_workers.count_processes = lambda config, device: 1
from ddp_cli.cli import app
app()
"""


def steps_per_s(store: Path, command: list[str], n_steps: int) -> float:
    """Of a run of `n_steps`, between its first log of metrics and its end."""
    with tempfile.TemporaryDirectory() as runs:
        options = ["train", "--data", store, "--steps", n_steps, "--runs", runs, "--name", "a", "--allow-unverified"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(N_CORES)}
        subprocess.run([*command, *map(str, options)], env=environment, check=True, capture_output=True)
        metrics = next(Path(runs).rglob("metrics.jsonl"))
        lines = [json.loads(line) for line in metrics.read_text().splitlines() if "steps_per_s" in line]
    first, last = lines[0], lines[-1]
    seconds = last["step"] / last["steps_per_s"] - first["step"] / first["steps_per_s"]
    return (last["step"] - first["step"]) / seconds


@contextmanager
def load(enabled: bool) -> Iterator[None]:
    """An evaluation that lasts longer than a measurement."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    commands = {
        "threads": [sys.executable, "-c", WITH_THREADS],
        "processes": [sys.executable, "-m", "ddp_cli"],
    }
    for state in ("idle", "beside ddp eval"):
        rates: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                with load(state != "idle"):
                    rates[name].append(steps_per_s(args.store, command, args.steps))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["processes"] / medians["threads"]
        print(json.dumps({"state": state, "cores": N_CORES, **medians, "ratio": ratio, "rounds": rates}), flush=True)


if __name__ == "__main__":
    main()
