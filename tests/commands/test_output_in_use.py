"""Every command that writes an output refuses, or waits, while another process is writing it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ddp, ok, refused

from ddp_cli.commands import train_setup
from ddp_cli.data.store import Store
from ddp_cli.tasks import get_task

HOLD = """
import pathlib, sys
from ddp_cli.locks import lock_output
with lock_output(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


class Inputs(NamedTuple):
    demos: Path
    store: Path
    checkpoint: Path


@pytest.fixture
def inputs(lift_demos: Path, lift_zarr: Path, trained: Path) -> Inputs:
    return Inputs(lift_demos, lift_zarr, trained / "lift/tiny/checkpoints/last")


@pytest.fixture
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that is writing the output of the parameter."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / request.param)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


COMMANDS = [
    ("out.zarr", ["convert", "{demos}", "--check", "0", "--out"]),
    ("out.zarr", ["convert", "{store}", "--out"]),
    ("out", ["convert", "{store}", "--to", "lerobot", "--out"]),
    ("out.hdf5", ["convert", "{store}", "--to", "robomimic", "--out"]),
    ("out.png", ["preview", "{store}", "--out"]),
    ("out.gif", ["preview", "{store}", "--out"]),
    ("out.png", ["plot", "{run}", "--out"]),
    ("out.json", ["eval", "{checkpoint}", "-n", "1", "--out"]),
    ("out.mp4", ["rollout", "{checkpoint}", "--video"]),
    ("out", ["export", "{checkpoint}", "--episodes", "0", "--out"]),
    ("out", ["export", "{checkpoint}", "--format", "ddp", "--out"]),
    ("out.hdf5", ["collect", "--task", "lift", "-n", "1", "--out"]),
]


@pytest.mark.parametrize(("holder", "command"), COMMANDS, indirect=["holder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_another_process_writes_is_refused(
    holder: subprocess.Popen, command: list[str], overwrite: bool, inputs: Inputs, tmp_path: Path
) -> None:
    (output,) = [path.name[1:].removesuffix(".lock") for path in tmp_path.iterdir()]
    places = inputs._asdict() | {"run": inputs.checkpoint.parents[1]}
    arguments = [word.format(**places) for word in command]
    line = refused(ddp(*arguments, tmp_path / output, *(["--overwrite"] if overwrite else [])))
    assert f"'{tmp_path / output}' is being written by " in line
    assert f"(process {holder.pid} on " in line
    assert [path.name for path in tmp_path.iterdir()] == [f".{output}.lock"]


@pytest.mark.parametrize("holder", ["data/lift-state.zarr"], indirect=True)
def test_train_waits_for_the_store_that_another_train_makes(
    holder: subprocess.Popen, lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages: list[str] = []

    def finish_store(message: str) -> None:
        """The other process completes the store and ends."""
        if message.startswith("convert "):  # progress, where the conversion takes seconds
            return
        messages.append(message)
        ok(ddp("convert", lift_demos, "--obs", "state", "--check", "0", "--out", "made.zarr"))
        Path("made.zarr").rename("data/lift-state.zarr")
        holder.communicate("\n")

    monkeypatch.setattr("ddp_cli.console.note", finish_store)
    store = train_setup.find_or_make_store(get_task("lift"), "state")
    assert store == Path("data/lift-state.zarr")
    assert len(Store(store).episode_ends) == 2  # of the other process, not of the sample demonstrations
    assert len(messages) == 1
    assert f"(process {holder.pid} on " in messages[0]
    assert messages[0].endswith(": waiting for it")
