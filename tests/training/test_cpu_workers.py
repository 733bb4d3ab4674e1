"""`ddp train` on a CPU with several processes of one thread each, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny_config
from training.run_helpers import saved_steps

from ddp_cli.core.checkpoint import load_policy
from ddp_cli.training.cpu_workers import count_processes

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="child processes are found in Linux's /proc"
)


def train(folder: Path, store: Path, name: str, threads: int, *options: object) -> subprocess.Popen[str]:
    settings = {**TINY, "batch_size": 33, "precision": "fp32"}
    command = [sys.executable, "-m", "ddp_cli", "train", "--task", "lift", "--name", name]
    if "--resume" not in options:
        command += ["--data", str(store), *(x for key, value in settings.items() for x in ("--set", f"{key}={value}"))]
    temporary = folder / "temporary files"  # with a space, and a percent sign in URLs
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*command, *map(str, options)], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": str(temporary)},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it wrote to stderr; its exit code must be `code`."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return err


def wait_for_step(folder: Path, process: subprocess.Popen[str], after: int = 0) -> None:
    """Until there is a checkpoint of a step after `after`."""
    deadline = time.monotonic() + 240
    while not (folder.exists() and max(saved_steps(folder), default=0) > after):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [x for child in map(int, children) for x in (child, *descendants(child))]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"), [(64, 1, 3), (47, 1, 2), (64, 2, 2), (31, 1, 1), (2, 1, 1)]
)
def test_no_process_has_fewer_than_16_samples(batch_size: int, accumulate: int, expected: int) -> None:
    torch.set_num_threads(3)
    config = tiny_config(batch_size=batch_size, accumulate=accumulate)
    assert count_processes(config, torch.device("cpu")) == expected
    assert count_processes(config, torch.device("meta")) == 1


@pytest.mark.slow
def test_two_processes_train_like_one_and_ctrl_c_saves(lift_zarr: Path, tmp_path: Path) -> None:
    """Bit for bit, where one process adds up the gradients of the same halves of the batch."""
    one = train(tmp_path, lift_zarr, "one", 1, "--steps", 30, "--set", "accumulate=2")
    assert "processes" not in finish(one)
    two = train(tmp_path, lift_zarr, "two", 2, "--steps", 30)
    assert "on cpu, 2 processes" in finish(two)
    runs = tmp_path / "runs/lift"
    weights, expected = (load_policy(runs / name / "checkpoints/last")[0].state_dict() for name in ("two", "one"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)

    long = train(tmp_path, lift_zarr, "long", 2, "--steps", 1_000_000, "--set", "checkpoint_every=1")
    wait_for_step(runs / "long", long)
    long.send_signal(signal.SIGINT)
    message = finish(long, 130)
    step = saved_steps(runs / "long")[-1]
    assert f"step-{step:08d}; resume with" in message
    again = train(tmp_path, lift_zarr, "long", 2, "--resume")
    wait_for_step(runs / "long", again, after=step)
    again.terminate()
    assert f"resuming runs/lift/long at step {step} of 1000000" in finish(again, 130)


@needs_proc
@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_and_workers_end_with_the_main_process(
    lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    options = ["--steps", 1_000_000, "--set", "checkpoint_every=1"]
    process = train(tmp_path, lift_zarr, "a", 2, *options)
    wait_for_step(tmp_path / "runs/lift/a", process)
    worker = max(descendants(process.pid))
    os.kill(worker, signal.SIGKILL)
    message = finish(process, 1)
    assert "error: a training process crashed (killed, or out of memory). --resume continues" in message

    process = train(tmp_path, lift_zarr, "b", 2, *options)
    wait_for_step(tmp_path / "runs/lift/b", process)
    others = descendants(process.pid)
    assert others
    process.kill()
    process.communicate()
    assert list((tmp_path / "temporary").glob("ddp-train-*")) == []
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in others if Path(f"/proc/{pid}").exists()] == []


KILLED_WORKER = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import tiny_config
from ddp_cli.training import cpu_workers
from ddp_cli.training.distributed import Processes

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    cpu_workers._work = kill
    torch.set_num_threads(2)
    with cpu_workers.cpu_workers(tiny_config(batch_size=32), torch.device("cpu"), Processes(), kill):
        pass
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_starts_is_an_error(tmp_path: Path) -> None:
    """The main process does not wait for it."""
    script, temporary = tmp_path / "killed_worker.py", tmp_path / "temporary"
    script.write_text(KILLED_WORKER)
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parents[1])], env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "WorkerError: a training process crashed (killed, or out of memory)." in done.stderr
    assert list(temporary.glob("ddp-train-*")) == []
