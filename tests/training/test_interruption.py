"""Training that ends at the worst moment: killed, on a full disk, before it has begun, or trained twice."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config
from training.run_helpers import (
    assert_equal_training_state,
    create,
    ignore_message,
    release,
    resume,
    saved_steps,
    train_new_run,
)

from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.run import run_training

pytestmark = pytest.mark.slow

KILL_ITSELF = """
import os, signal, sys
import ddp_cli.training.trainer as trainer
from ddp_cli.cli import app
place, name, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
calls = 0
def killing(function, path_of):
    def wrapped(*args, **kwargs):
        global calls
        calls += name in path_of(args[0])
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
if place == "step":
    trainer.Trainer.step = killing(trainer.Trainer.step, lambda _: "")
elif place == "fsync":
    os.fsync = killing(os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
elif place == "replace":
    os.replace = killing(os.replace, str)
app()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from Linux's /proc")
@pytest.mark.parametrize(
    ("place", "name", "number", "steps"),
    [
        ("step", "", 6, [4]),  # between two checkpoints
        ("fsync", ".step-00000008.partial", 1, [4]),  # the second checkpoint has been written and is not synced
        ("fsync", ".step-00000008.partial", 4, [4]),  # its files are synced, its folder is not
        ("replace", ".step-00000008.partial", 1, [4]),  # it is synced and has not got its name
        ("replace", ".last.partial", 2, [4, 8]),  # it has its name, the links point to the first
    ],
)
def test_resume_after_sigkill_is_bit_exact(
    lift_zarr: Path, tmp_path: Path, place: str, name: str, number: int, steps: list
) -> None:
    """A killed process loses nothing: the resumed run ends like one that was never killed."""
    settings = {"n_layer": 1, "n_emb": 16, "n_head": 2, "batch_size": 4, "checkpoint_every": 4}
    command = ["train", "--task", "lift", "--data", lift_zarr, "--steps", 9, "--runs", tmp_path, "--preset", "laptop"]
    command += [x for k, v in settings.items() for x in ("--set", f"{k}={v}")]
    command = [str(x) for x in (*command, "--name", "killed")]
    result = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", KILL_ITSELF, place, name, str(number), *command], capture_output=True, text=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    folder = tmp_path / "lift/killed"
    assert saved_steps(folder) == steps
    resumed = resume(folder)
    assert resumed.trainer.step_number == steps[-1]
    assert list((folder / "checkpoints").glob(".step*")) == []
    run_training(resumed, Callbacks())
    release(resumed)
    uninterrupted = train_new_run(Store(lift_zarr), tmp_path / "uninterrupted", resumed.trainer.config)
    assert_equal_training_state(uninterrupted, resumed)
    assert saved_steps(folder) == saved_steps(tmp_path / "uninterrupted") == [4, 8, 9]


def test_a_full_disk_leaves_the_last_checkpoint(lift_store: Store, tmp_path: Path, monkeypatch) -> None:
    run = create(tmp_path / "run", tiny_config(steps=6, checkpoint_every=2), lift_store)
    step, write_bytes = run.trainer.step, Path.write_bytes

    def write_and_fail(path: Path, data: bytes) -> int:
        write_bytes(path, data[:100])
        raise OSError(28, "No space left on device")

    def step_on_full_disk() -> dict:
        if run.trainer.step_number == 3:
            monkeypatch.setattr(Path, "write_bytes", write_and_fail)
        return step()

    run.trainer.step = step_on_full_disk
    with pytest.raises(OSError, match="No space"):
        run_training(run, Callbacks())
    release(run)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.is_dir() and not p.is_symlink()] == [
        "step-00000002"
    ]
    assert resume(tmp_path / "run").trainer.step_number == 2


def test_a_run_that_fails_to_start_leaves_nothing(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            create(tmp_path / "run", tiny_config(), lift_store)
    assert not (tmp_path / "run").exists()


def test_a_new_run_replaces_an_incomplete_one_but_nothing_else(lift_store: Store, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)  # as after SIGKILL
    create(tmp_path / "run", tiny_config(), lift_store)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(DdpError, match="exists"):
        create(tmp_path / "other", tiny_config(), lift_store)


def test_a_second_process_is_refused(lift_store: Store, tmp_path: Path) -> None:
    run = create(tmp_path / "run", tiny_config(), lift_store)
    code = "import sys, pathlib, ddp_cli.training.run_folder as f; f.open_run_folder(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    refused = subprocess.run(command, capture_output=True, text=True)  # noqa: PLW1510
    assert f"another process is training '{tmp_path / 'run'}'. Wait for it, or stop it first." in refused.stderr
    with pytest.raises(DdpError, match="another process"):
        resume(tmp_path / "run")
    release(run)
    resume(tmp_path / "run", ignore_message)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_training_works_on_file_systems_without_locks(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    train_new_run(lift_store, tmp_path / "run", tiny_config(steps=2), stop_at=1)
    run_training(resume(tmp_path / "run"), Callbacks())
    assert saved_steps(tmp_path / "run")[-1] == 2
