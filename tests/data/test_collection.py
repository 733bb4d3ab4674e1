from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.collection import collect
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


def contents(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        found.update({f"{name}@{k}": v for k, v in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[:].tobytes()

    with h5py.File(path) as f:
        f.visititems(visit)
    return found


def test_the_file_does_not_depend_on_the_number_of_processes(lift_demos: Path, tmp_path: Path) -> None:
    collect(get_task("lift"), 2, tmp_path / "two.hdf5", 1000, 2, lambda *_: None)
    one, two = contents(lift_demos), contents(tmp_path / "two.hdf5")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert np.array_equal(value, two[key]), key


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_demonstrations_succeed_and_replay_exactly(task: str, tmp_path: Path) -> None:
    """Open-loop replay from the first state gives every recorded state bit for bit, and succeeds."""
    spec = get_task(task)
    done = collect(spec, 1, tmp_path / "d.hdf5", 1003, 1, lambda *_: None)
    assert (done.demos, done.attempts) == (1, 1 + done.failures)
    with DemoFile(tmp_path / "d.hdf5") as file:
        demo = file.read("demo_0")
    sim = Simulator(spec)
    sim.reset(99)  # something else, to be forgotten
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


def test_what_is_finished_outlives_a_worker(lift_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddp_cli.data import collection
    from ddp_cli.errors import WorkerError

    def dies(*_: object) -> object:
        yield demo
        raise WorkerError("a worker process died.")

    with DemoFile(lift_demos) as file:
        demo = file.read("demo_0")
    with monkeypatch.context() as patch, pytest.raises(WorkerError):
        patch.setattr(collection, "ordered_map", dies)
        collect(get_task("lift"), 2, tmp_path / "d.hdf5", 1000, 1, lambda *_: None)
    seen: list[int] = []
    collect(get_task("lift"), 2, tmp_path / "d.hdf5", 1000, 1, lambda demos, *_: seen.append(demos))
    assert seen == [1, 2]
    assert contents(tmp_path / "d.hdf5") == contents(lift_demos)
