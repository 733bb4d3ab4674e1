"""Training on a CPU by processes against threads, idle and beside other work.

    python tests/bench/loaded_training.py STORE [--preset paper]

The baseline is one process with as many threads, which `ddp train` used before. The load is an evaluation of the sample
policy with as many workers as there are cores. Steps/s, medians over the rounds; each measurement is a run of its own,
without its start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from background_load import N_CORES, background_load

WITH_THREADS = """
import sys
from ddp_cli.training import cpu_workers
cpu_workers.count_processes = lambda config, device: 1
from ddp_cli.cli import app
app()
"""


def steps_per_s(command: list[str], store: Path, n_steps: int, runs: Path | str, *options: str) -> float:
    """Of `ddp train` for `n_steps`, between its first log of metrics and its end. The run is RUNS/TASK/a."""
    arguments = ["train", "--data", store, "--steps", n_steps, "--runs", runs, "--name", "a", "--allow-unverified"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(N_CORES)}
    subprocess.run([*command, *map(str, arguments), *options], env=environment, check=True, capture_output=True)
    metrics = next(Path(runs).rglob("metrics.jsonl"))
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if "steps_per_s" in line]
    first, last = lines[0], lines[-1]
    seconds = last["step"] / last["steps_per_s"] - first["step"] / first["steps_per_s"]
    return (last["step"] - first["step"]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", default="laptop")
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
                with background_load(state != "idle"), tempfile.TemporaryDirectory() as runs:
                    rate = steps_per_s(command, args.store, args.steps, runs, "--preset", args.preset)
                    rates[name].append(rate)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["processes"] / medians["threads"]
        print(json.dumps({"state": state, "cores": N_CORES, **medians, "ratio": ratio, "rounds": rates}), flush=True)


if __name__ == "__main__":
    main()
