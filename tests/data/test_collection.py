from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.collection import collect
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.errors import WorkerError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


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
    if spec.model_varies:
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


def test_finished_demos_survive_a_worker_crash(lift_demos: Path, tmp_path: Path) -> None:
    def crash(demos: int, *_: object) -> None:
        if demos:
            raise WorkerError("a worker process died.")

    with pytest.raises(WorkerError):
        collect(get_task("lift"), 2, tmp_path / "d.hdf5", 1000, 1, crash)
    demo_counts: list[int] = []
    collect(get_task("lift"), 2, tmp_path / "d.hdf5", 1000, 1, lambda demos, *_: demo_counts.append(demos))
    assert demo_counts == [1, 2]
    assert contents(tmp_path / "d.hdf5") == contents(lift_demos)
