"""Collections of scripted demonstrations: exact, independent of workers, and never lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.collection import collect
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.errors import DataError, WorkerError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

LIFT = get_task("lift")


def contents(path: Path) -> dict[str, object]:
    """Every dataset and attribute of an HDF5 file."""
    entries: dict[str, object] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        entries.update({f"{name}@{k}": v for k, v in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            entries[name] = item[:].tobytes()

    with h5py.File(path) as f:
        f.visititems(visit)
    return entries


@pytest.mark.slow
def test_the_file_does_not_depend_on_the_number_of_workers(lift_demos: Path, tmp_path: Path) -> None:
    collect(get_task("lift"), 2, tmp_path / "two.hdf5", 1000, 2, lambda *_: None)
    expected, actual = contents(lift_demos), contents(tmp_path / "two.hdf5")
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(actual[key], value), key


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_demos_succeed_and_replay_exactly(task: str, tmp_path: Path) -> None:
    """Open-loop replay from the first state gives every recorded state bit for bit, and succeeds."""
    spec = get_task(task)
    result = collect(spec, 1, tmp_path / "d.hdf5", 1003, 1, lambda *_: None)
    assert (result.demos, result.attempts) == (1, 1 + result.failures)
    with DemoFile(tmp_path / "d.hdf5") as file:
        demo = file.read("demo_0")
    sim = Simulator(spec)
    sim.reset(99)  # another state, which must not matter
    sim.step(np.ones(7))
    if spec.robosuite.model_varies:
        sim.load_xml(demo.xml)
    sim.set_state(demo.states[0])
    outcomes = []
    for state, action in zip(demo.states, demo.actions, strict=True):
        np.testing.assert_array_equal(sim.state(), state)
        outcomes.append(sim.step(action))
    assert outcomes[-10:] == [True] * 10
    assert "robosuite/models/assets" in demo.xml
    assert str(Path.home()) not in demo.xml
    sim.close()


def stop_after(demos: int, error: BaseException) -> Callable[[int, int, int], None]:
    """A `progress` function that raises `error` when `demos` are recorded."""

    def progress(count: int, *_: int) -> None:
        if count == demos:
            raise error

    return progress


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), WorkerError("crashed."), OSError(28, "No space left"), ValueError("boom")]
)
def test_finished_demos_survive_every_error(error: BaseException, lift_demos: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.hdf5"
    with pytest.raises(type(error)) as raised:
        collect(LIFT, 2, out, 1000, 1, stop_after(1, error))
    assert raised.value.__notes__ == [f"1 demonstration is kept in '{out}.partial': the same command continues."]
    demo_counts: list[int] = []
    collect(LIFT, 2, out, 1000, 1, lambda demos, *_: demo_counts.append(demos))
    assert demo_counts == [1, 2]
    assert contents(out) == contents(lift_demos)
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_before_the_first_demo_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom") as raised:
        collect(LIFT, 2, tmp_path / "d.hdf5", 1000, 1, stop_after(0, ValueError("boom")))
    assert not hasattr(raised.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """An output of which one demo of two is recorded."""
    out = tmp_path / "d.hdf5"
    with pytest.raises(KeyboardInterrupt):
        collect(LIFT, 1, out, 1000, 1, stop_after(1, KeyboardInterrupt()))
    return out


def test_more_episodes_continue_an_interrupted_collection(interrupted: Path, lift_demos: Path) -> None:
    demo_counts: list[int] = []
    result = collect(LIFT, 2, interrupted, 1000, 1, lambda demos, *_: demo_counts.append(demos))
    assert demo_counts == [1, 2]
    assert contents(interrupted) == contents(lift_demos)
    assert (result.demos, result.attempts, result.failures) == (2, 2, 0)


def test_another_collection_does_not_replace_recorded_demos(interrupted: Path) -> None:
    folder = interrupted.with_name("d.hdf5.partial")
    files = sorted(folder.iterdir())
    for task, seed, difference in (("lift", 1001, "seed 1000 instead of 1001"), ("can", 1000, "task lift instead of")):
        with pytest.raises(DataError, match=f"holds 1 demonstration of another collection: {difference}") as raised:
            collect(get_task(task), 2, interrupted, seed, 1, lambda *_: None)
        assert f"`ddp collect --task lift --seed 1000 -n 1 --out {interrupted}`" in raised.value.hint
    identity = json.loads((folder / "collection.json").read_text())
    identity["versions"]["mujoco"] = "3.3.0"
    (folder / "collection.json").write_text(json.dumps(identity))
    with pytest.raises(DataError, match=r"mujoco 3\.3\.0 instead of .* and the versions that it began with"):
        collect(LIFT, 2, interrupted, 1000, 1, lambda *_: None)
    assert sorted(folder.iterdir()) == files


def test_another_environment_does_not_continue_a_collection(tmp_path: Path) -> None:
    out, task = tmp_path / "d.hdf5", replace(LIFT, name="mine")
    with pytest.raises(KeyboardInterrupt):
        collect(task, 1, out, 1000, 1, stop_after(1, KeyboardInterrupt()))
    other_arm = replace(task, simulator=task.robosuite.model_copy(update={"robots": ("IIWA",)}))
    for other in (replace(task, horizon=80), other_arm):
        with pytest.raises(DataError, match="another collection: environment .* instead of") as raised:
            collect(other, 1, out, 1000, 1, lambda *_: None)
        assert "the file of the task that it began with" in raised.value.hint
    recorded = out.with_name("d.hdf5.partial") / "collection.json"  # of an earlier version, once without the key
    identity = json.loads(recorded.read_text())
    recorded.write_text(json.dumps({key: value for key, value in identity.items() if key != "environment"}))
    with pytest.raises(KeyboardInterrupt):
        collect(task, 2, out, 1000, 1, stop_after(1, KeyboardInterrupt()))
    assert json.loads(recorded.read_text()) == identity
    assert collect(task, 1, out, 1000, 1, lambda *_: None).demos == 1


def test_recorded_demos_are_not_dropped_for_fewer_episodes(interrupted: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(LIFT, 2, interrupted, 1000, 1, stop_after(2, KeyboardInterrupt()))
    with pytest.raises(DataError, match=r"already holds 2 demonstrations, but -n is 1\. Ask for -n 2 or more"):
        collect(LIFT, 1, interrupted, 1000, 1, lambda *_: None)
    assert len(list(interrupted.with_name("d.hdf5.partial").glob("*.npz"))) == 2


def test_a_damaged_demo_is_named_and_recorded_again(interrupted: Path, lift_demos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(LIFT, 2, interrupted, 1000, 1, stop_after(2, KeyboardInterrupt()))
    first = interrupted.with_name("d.hdf5.partial") / "attempt-00000000.npz"
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    first.write_bytes(damaged)
    with pytest.raises(DataError, match=r"attempt-00000000\.npz' is damaged\. Delete it, and run the same command"):
        collect(LIFT, 2, interrupted, 1000, 1, lambda *_: None)
    first.unlink()
    collect(LIFT, 2, interrupted, 1000, 1, lambda *_: None)
    assert contents(interrupted) == contents(lift_demos)


def test_other_files_at_the_place_of_the_folder_are_kept(tmp_path: Path) -> None:
    partial = tmp_path / "d.hdf5.partial"
    partial.write_text("recorded by version 0.1")
    with pytest.raises(DataError, match=r"unfinished recording of an earlier version\. .*`ddp convert .*partial`"):
        collect(LIFT, 1, tmp_path / "d.hdf5", 1000, 1, lambda *_: None)
    assert partial.read_text() == "recorded by version 0.1"
    partial.unlink()
    partial.mkdir()
    (partial / "notes.txt").touch()
    with pytest.raises(DataError, match="was not written by `ddp collect`"):
        collect(LIFT, 1, tmp_path / "d.hdf5", 1000, 1, lambda *_: None)
    assert (partial / "notes.txt").exists()


@pytest.mark.slow
def test_demos_survive_kills_at_any_moment(tmp_path: Path) -> None:
    """The number of recorded demos never falls, and the result is that of an uninterrupted collection."""
    collect(LIFT, 12, tmp_path / "expected.hdf5", 1000, 1, lambda *_: None)
    out, folder = tmp_path / "d.hdf5", tmp_path / "d.hdf5.partial"
    command = [sys.executable, "-m", "ddp_cli", "collect", "--task", "lift", "-n", "12", "-j", "1", "--out", str(out)]
    rng, recorded = random.Random(0), [0]
    while len(recorded) <= 4:
        process = subprocess.Popen(command)
        while len(list(folder.glob("*.npz"))) < recorded[-1] + 2 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        recorded.append(len(list(folder.glob("*.npz"))))
    assert recorded == sorted(recorded)
    assert recorded[-1] >= 8 or out.exists()
    if not out.exists():
        subprocess.run(command, check=True)
    assert contents(out) == contents(tmp_path / "expected.hdf5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.hdf5", "expected.hdf5"]
