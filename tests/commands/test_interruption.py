"""Full disks, Ctrl-C and closed terminals, in real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, ddp, ok_json

from ddp_cli.core.checkpoint import file_hash
from ddp_cli.tasks import TASKS
from ddp_cli.training.stop_signals import stop_on_signal

pytestmark = pytest.mark.slow

SETTINGS = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy does not succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=30))


@pytest.mark.parametrize("command", ["collect", "convert", "train", "rollout", "rollout --grid 1x2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    command: str, lift_demos: Path, lift_zarr: Path, trained: Path, tmp_path: Path
) -> None:
    """The kernel refuses to write files beyond 20 kB, in a real process."""
    arguments = {
        "collect": ["--task", "lift", "--episodes", "1", "--out", "out.hdf5", "--workers", "1"],
        "convert": [lift_demos, "--out", "out.zarr", "--workers", "1"],
        "train": ["--task", "lift", "--data", lift_zarr, "--steps", "1", "--name", "x", *SETTINGS],
        "rollout": [trained / "lift/tiny", "--video", "out.mp4", "--inference-steps", "1"],
    }[command.split(maxsplit=1)[0]]
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "import ddp_cli.cli; ddp_cli.cli.app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert "disk is full" in errors[0]
    assert "Traceback" not in done.stderr
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".hdf5", ".safetensors", ".mp4", ".partial")]
    assert left == []
    assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "out.zarr.partial").exists()
    assert not (tmp_path / "out.hdf5.partial").exists()


def test_a_full_disk_keeps_recorded_demonstrations(lift_demos: Path, tmp_path: Path) -> None:
    """The demonstrations fit, their HDF5 file does not; the same command finishes it without recording again."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "import ddp_cli.cli; ddp_cli.cli.app()"
    )
    command = ["collect", "--task", "lift", "-n", "2", "--seed", "1000", "--out", "out.hdf5", "-j", "1"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(
        "error: the disk is full. Free some space, or choose an output on another disk, and run the same command "
        "again. 2 demonstrations are kept in 'out.hdf5.partial': the same command continues.\n"
    )
    recorded = {path: path.stat().st_mtime_ns for path in Path("out.hdf5.partial").glob("*.npz")}
    assert len(recorded) == 2
    assert ok_json(*command)["demos"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.hdf5"]


def test_ctrl_c_saves_and_resume_goes_on(lift_zarr: Path) -> None:
    args = ["train", "--task", "lift", "--data", str(lift_zarr), "--steps", "100000", "--name", "long", *SETTINGS]
    process = subprocess.Popen([sys.executable, "-m", "ddp_cli.cli", *args], stderr=subprocess.PIPE, text=True)
    metrics = Path("runs/lift/long/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--name long --resume" in stderr
    assert "Traceback" not in stderr
    saved = json.loads(Path("runs/lift/long/checkpoints/last/config.json").read_text())
    assert 0 < saved["step"] < 100000

    # shorten the run, so that going on comes to an end
    state = Path("runs/lift/long/checkpoints/last/train_state.pt")
    import torch

    content = torch.load(state, weights_only=True)
    torch.save(content | {"total": saved["step"] + 2}, state)
    saved["sha256"][state.name] = file_hash(state)
    state.with_name("config.json").write_text(json.dumps(saved))
    result = ok_json("train", "--task", "lift", "--name", "long", "--resume")
    assert result["steps"] == saved["step"] + 2


IN_A_TERMINAL = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it is ignored
os.open(os.ttyname(0), os.O_RDWR)  # the leader of a session gets it as its terminal
import ddp_cli.cli
ddp_cli.cli.app()
"""


def test_a_closed_terminal_saves_a_checkpoint(lift_zarr: Path) -> None:
    """All processes get SIGHUP then, some of them twice, and nothing can be printed."""
    args = ["train", "--task", "lift", "--data", str(lift_zarr), "--steps", "100000", "--name", "long", *SETTINGS]
    args += ["--set", "batch_size=32"]  # for two processes
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *args], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    os.close(slave)
    metrics, printed = Path("runs/lift/long/metrics.jsonl"), b""
    deadline = time.monotonic() + 240
    try:
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                printed += os.read(master, 10_000)
        os.close(master)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(timeout=120) == 130, printed.decode()
    finally:
        process.kill()
    saved = json.loads(Path("runs/lift/long/checkpoints/last/config.json").read_text())
    assert 0 < saved["step"] < 100000


@pytest.fixture
def default_sighup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize("numbers", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)])
def test_sigterm_and_sighup_together_are_one_request(numbers: tuple[signal.Signals, ...]) -> None:
    with stop_on_signal() as should_stop:
        for number in numbers:
            signal.raise_signal(number)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sighup_does_not_interrupt() -> None:
    for handler in (signal.SIG_DFL, signal.SIG_IGN):  # `nohup` ignores it
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with stop_on_signal() as should_stop:
                if handler is signal.SIG_DFL:
                    assert not should_stop()
                for _ in range(2):
                    signal.raise_signal(signal.SIGHUP)
                assert should_stop() == (handler is signal.SIG_DFL)
            assert signal.getsignal(signal.SIGHUP) is handler
        finally:
            signal.signal(signal.SIGHUP, before)


def test_ctrl_c_in_other_commands_exits_130(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    import ddp_cli.evaluation.rollout

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ddp_cli.evaluation.rollout, "run_episode", interrupt)
    result = ddp("rollout", trained / "lift/tiny")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
