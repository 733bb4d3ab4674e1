"""Kills commands at random moments: `python tests/bench/kills.py --times 10 --seed 0 [--commands collect,train]`.

Each command runs once undisturbed, which gives the expected result and its duration. Then it is started and killed
(SIGKILL, with all its processes) after a random part of that duration, `--times` times in the same folder, and run to
its end. The result must be the same, and nothing else may be left in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from ddp_cli.commands.options import sample_demos

TINY = ["n_layer=1", "n_emb=16", "n_head=2", "batch_size=4", "noise_samples=1", "num_inference_steps=2", "fusion=0"]
SETTINGS = [argument for setting in TINY for argument in ("--set", setting)]


@dataclass(frozen=True)
class Case:
    """A command in a folder with the inputs `inputs`: its arguments, and what its result is."""

    arguments: list[str]
    result: Callable[[Path], str]
    outputs: set[str]
    inputs: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    """Arguments to add once the run exists."""


def file_digest(name: str) -> Callable[[Path], str]:
    return lambda folder: hashlib.sha256((folder / name).read_bytes()).hexdigest()


def store_digest(name: str) -> Callable[[Path], str]:
    """Hash of the decoded arrays of a store."""

    def digest(folder: Path) -> str:
        root, value = zarr.open_group(folder / name, mode="r"), hashlib.sha256()
        for key, array in sorted(root["data"].arrays()):
            value.update(key.encode() + np.asarray(array[:]).tobytes())
        return value.hexdigest() + str(root.attrs["complete"])

    return digest


def checkpoint_digest(folder: Path) -> str:
    """Hash of the weights of the last checkpoint of the run."""
    return file_digest("runs/lift/r/checkpoints/last/model.safetensors")(folder)


def report_digest(folder: Path) -> str:
    """The outcomes of a report; times vary."""
    report = json.loads((folder / "report.json").read_text())
    return json.dumps([(e["seed"], e["success"], e["steps"]) for e in report["episodes"]])


def export_digest(folder: Path) -> str:
    graphs = sorted((folder / "policy").glob("*.onnx"))
    return "".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in graphs)


TRAIN = ["train", "--task", "lift", "--data", "lift.zarr", "--name", "r", "--runs", "runs", *SETTINGS]
CASES = {
    "collect": Case(
        ["collect", "--task", "lift", "-n", "12", "--out", "demos.hdf5"], file_digest("demos.hdf5"), {"demos.hdf5"}
    ),
    "convert, rendering": Case(
        ["convert", "lift.hdf5", "--only", ":20", "--out", "out.zarr"], store_digest("out.zarr"), {"out.zarr"},
        ("lift.hdf5",),
    ),
    "convert, copying": Case(
        ["convert", "lift.zarr", "--out", "out.zarr"], store_digest("out.zarr"), {"out.zarr"}, ("lift.zarr",)
    ),
    "decode": Case(
        [*TRAIN, "--steps", "3", "--set", "memory_gb=0.001"], checkpoint_digest, {"runs", "lift.zarr.decoded"},
        ("lift.zarr",), ("--resume",),
    ),
    "train": Case(
        [*TRAIN, "--steps", "150", "--set", "checkpoint_every=10"], checkpoint_digest, {"runs"}, ("lift.zarr",),
        ("--resume",),
    ),
    "eval": Case(
        ["eval", "checkpoint", "-n", "6", "--out", "report.json", "--json"], report_digest, {"report.json"},
        ("checkpoint",),
    ),
    "export": Case(["export", "checkpoint", "--out", "policy"], export_digest, {"policy"}, ("checkpoint",)),
}  # fmt: skip


def start(case: Case, folder: Path) -> subprocess.Popen[bytes]:
    arguments = case.arguments
    if case.resume and (folder / "runs/lift/r/config.json").exists():
        arguments = ["train", "--task", "lift", "--name", "r", "--runs", "runs", *case.resume]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ddp_cli.cli", *arguments], cwd=folder, start_new_session=True, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(case: Case, folder: Path) -> None:
    process = start(case, folder)
    error = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(case.arguments)}: exit code {process.returncode}: {error[-1000:]}")


def copy_inputs(case: Case, inputs: Path, folder: Path) -> None:
    for name in case.inputs:
        (shutil.copytree if (inputs / name).is_dir() else shutil.copy)(inputs / name, folder / name)


def try_case(case: Case, inputs: Path, times: int, rng: random.Random) -> str:
    """Kills a command, and describes the outcome."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_inputs(case, inputs, folder)
        started = time.perf_counter()
        finish(case, folder)
        duration, expected = time.perf_counter() - started, case.result(folder)
    with tempfile.TemporaryDirectory() as name:
        folder, kills, moments = Path(name), 0, []
        copy_inputs(case, inputs, folder)
        while kills < times:
            process, delay = start(case, folder), rng.uniform(0.2, 1) * duration
            try:
                process.communicate(timeout=delay)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                moments.append(round(delay, 1))
                continue
            if case.result(folder) != expected:  # it ended first: start again
                return f"FAULT: another result after {kills} kills at {moments}"
            for output in case.outputs:
                path = folder / output
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not (folder / next(iter(case.outputs))).exists() or case.resume:
            finish(case, folder)
        left = {path.name for path in folder.iterdir()} - case.outputs - set(case.inputs)
        same = case.result(folder) == expected
    outcome = "the same result" if same else "FAULT: another result"
    return f"{outcome} after kills at {moments} s of {duration:.1f} s" + (
        f"; FAULT: left {sorted(left)}" if left else ""
    )


def make_inputs(folder: Path) -> None:
    """Demonstrations, a store and a checkpoint."""
    demos = sample_demos("lift")
    assert demos is not None
    shutil.copy(demos, folder / "lift.hdf5")
    convert = ["convert", "lift.hdf5", "--only", ":20", "--check", "0", "--out", "lift.zarr"]
    for arguments in (convert, [*TRAIN, "--steps", "2"]):
        subprocess.run([sys.executable, "-m", "ddp_cli.cli", *arguments], cwd=folder, check=True)
    shutil.copytree((folder / "runs/lift/r/checkpoints/last").resolve(), folder / "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=";".join(CASES), help="separated by ';'")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        for command in args.commands.split(";"):
            print(
                f"{command}: {try_case(CASES[command], Path(name), args.times, random.Random(args.seed))}", flush=True
            )


if __name__ == "__main__":
    main()
