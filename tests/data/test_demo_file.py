from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Recorded

from ddp_cli.data.demo_file import Demo, DemoFile
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.errors import DataError
from ddp_cli.tasks import get_task, task_from_json

ENV_ARGS = {"env_name": "Lift", "env_kwargs": {}}


def demo(length: int = 5, seed: int = 1, xml: str = "<mujoco/>") -> Demo:
    rng = np.random.default_rng(seed)
    return Demo(rng.normal(size=(length, 32)), rng.uniform(-1, 1, (length, 7)), xml, seed)


def disturbed(length: int = 5) -> Demo:
    return dataclasses.replace(demo(length), intended=np.random.default_rng(9).uniform(-1, 1, (length, 7)))


def write(path: Path, *demos: Demo) -> Path:
    with DemoWriter(path, ENV_ARGS, {"a": 1}) as writer:
        for d in demos:
            writer.append(d)
        writer.finish()
    return path


def test_round_trip_is_exact_and_shares_the_model(tmp_path: Path) -> None:
    written = [demo(5, 1), disturbed(7), demo(4, 3, "<other/>")]
    path = write(tmp_path / "d.hdf5", *written)
    with DemoFile(path) as file:
        assert [len(demo.actions) for demo in file] == [5, 7, 4]
        assert file.task.name == "lift"
        for a, b in zip(file, written, strict=True):
            np.testing.assert_array_equal(a.states, b.states)
            np.testing.assert_array_equal(a.actions, b.actions)
            np.testing.assert_array_equal(a.target_actions, b.target_actions)
            assert (a.intended is None) == (b.intended is None)
            assert (a.xml, a.seed) == (b.xml, b.seed)
    with h5py.File(path) as f:
        assert f["data"].attrs["total"] == 16
        assert f["data"].attrs["demos"] == 3
        assert len(f["models"]) == 2


def test_demos_are_read_in_numeric_order_with_gaps(tmp_path: Path) -> None:
    path = write(tmp_path / "d.hdf5", *(demo(3, i) for i in range(12)))
    with h5py.File(path, "r+") as f:
        del f["data/demo_1"]
    with DemoFile(path) as file:
        assert file.names == ["demo_0", *(f"demo_{i}" for i in range(2, 12))]


def test_robomimics_own_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "robomimic.hdf5"
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs["env_args"] = '{"env_name": "Lift", "env_version": "1.5.1", "type": 1}'
        group = f.create_group("data/demo_1")
        group["states"], group["actions"] = demo().states, demo().actions
        group.attrs["model_file"] = "<mujoco/>"
    with DemoFile(path) as file:
        assert file.read("demo_1").xml == "<mujoco/>"


def test_robosuites_own_layouts_are_read(tmp_path: Path) -> None:
    """1.4 and 1.5 keep the model beside the states, 1.0 in a folder beside the file."""
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs.update({"env": "Lift", "env_info": "{}", "repository_version": "1.0.0"})
        for number, model in ((1, "model_1.xml"), (3, "<mujoco/>"), (12, "lost.xml")):
            group = f.create_group(f"data/demo_{number}")
            group["states"], group["actions"] = demo(seed=number).states, demo(seed=number).actions
            group.attrs["model_file"] = model
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model_1.xml").write_text("<old/>")
    with DemoFile(path) as file:
        assert [d.xml for d in file] == ["<old/>", "<mujoco/>", ""]
        assert (file.origin.version, file.origin.tool) == ("1.0.0", "robosuite's collector")


def test_a_model_is_looked_for_beside_the_file_only(tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_text("<secret/>")
    (tmp_path / "d").mkdir()
    path = write(tmp_path / "d/d.hdf5", demo())
    with h5py.File(path, "r+") as f:
        f["data/demo_0"].attrs["model_file"] = "../secret.xml"
    with DemoFile(path) as file:
        assert file.read("demo_0").xml == ""


def test_filters_choose_demos(tmp_path: Path) -> None:
    path = write(tmp_path / "d.hdf5", *(demo(3, i) for i in range(12)))
    with h5py.File(path, "r+") as f:
        f["mask/valid"] = np.array([b"demo_11", b"demo_2"])
        f["mask/gone"] = np.array([b"demo_12"])
        f["mask/empty"] = np.zeros(0, "S8")
    with DemoFile(path, subset="valid") as file:
        assert file.names == ["demo_2", "demo_11"]
        assert file.filters == ["empty", "gone", "valid"]
    for subset, words in (
        ("vali", "did you mean 'valid'.*empty, gone, valid"),
        ("gone", "demo_12"),
        ("empty", "no demo"),
    ):
        with pytest.raises(DataError, match=words):
            DemoFile(path, subset=subset)


def test_an_interrupted_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    with pytest.raises(KeyboardInterrupt), DemoWriter(path, ENV_ARGS, {"a": 1}) as writer:
        writer.append(demo(5, 1))
        writer.append(None)
        raise KeyboardInterrupt
    assert not path.exists()
    with DemoWriter(path, ENV_ARGS, {"a": 1}) as writer:
        assert writer.counts == {"demos": 1, "attempts": 2, "failures": 1, "total": 5}
        writer.append(demo(7, 2))
        writer.finish()
    with DemoFile(path) as file:
        assert [len(demo.actions) for demo in file] == [5, 7]
    assert list(tmp_path.iterdir()) == [path]


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    with pytest.raises(KeyboardInterrupt), DemoWriter(path, ENV_ARGS, {"a": 1}) as writer:
        writer.append(demo())
        raise KeyboardInterrupt
    with DemoWriter(path, ENV_ARGS, {"a": 2}) as writer:
        assert writer.counts["attempts"] == 0


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), DemoWriter(tmp_path / "d.hdf5", ENV_ARGS, {}) as writer:
        writer.append(demo())
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def broken(tmp_path: Path, kind: str) -> Path:
    path = write(tmp_path / "d.hdf5", demo(5, 1), demo(5, 2))
    if kind == "text":
        path.write_text("not a dataset")
        return path
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path
    with h5py.File(path, "r+") as f:
        data = f["data"]
        if kind == "no data":
            del f["data"]
        elif kind == "no demos":
            del data["demo_0"], data["demo_1"]
        elif kind == "no actions":
            del data["demo_1/actions"]
        elif kind == "no env_args":
            del data.attrs["env_args"]
        elif kind == "env_args no JSON":
            data.attrs["env_args"] = "Lift"
        elif kind == "unknown environment":
            data.attrs["env_args"] = '{"env_name": "DoorOpen"}'
        elif kind == "other task":
            data.attrs["env_args"] = '{"env_name": "PickPlaceCan"}'
        elif kind == "NaN":
            data["demo_1/actions"][3, 2] = np.nan
        elif kind == "infinite state":
            data["demo_1/states"][0, 0] = np.inf
        elif kind == "lengths differ":
            del data["demo_1/states"]
            data["demo_1/states"] = np.zeros((4, 32))
        elif kind == "empty":
            del data["demo_1/states"], data["demo_1/actions"]
            data["demo_1/states"], data["demo_1/actions"] = np.zeros((0, 32)), np.zeros((0, 7))
        elif kind == "intentions of another length":
            data["demo_1/intended"] = np.zeros((4, 7))
        elif kind == "intention NaN":
            data["demo_1/intended"] = np.full((5, 7), np.nan)
        elif kind == "two arms":
            del data["demo_1/actions"]
            data["demo_1/actions"] = np.zeros((5, 14))
        elif kind == "text actions":
            del data["demo_1/actions"]
            data["demo_1/actions"] = np.array([b"x"] * 5)
        elif kind == "no model":
            del f["models"]
        elif kind == "absurd size":
            del data["demo_1/states"]
            data["demo_1"].create_dataset("states", (10**12, 32), "f8", chunks=(1000, 32))
        elif kind == "data is an array":
            del f["data"]
            f["data"] = np.zeros(3)
        elif kind == "demo is an array":
            del data["demo_1"]
            data["demo_1"] = np.zeros(3)
        elif kind == "states are a group":
            del data["demo_1/states"]
            data.create_group("demo_1/states")
        elif kind == "a link into nothing":
            del data["demo_1/actions"]
            data["demo_1/actions"] = h5py.SoftLink("/nowhere")
        elif kind == "another file":
            del data["demo_1/actions"]
            data["demo_1/actions"] = h5py.ExternalLink("/etc/passwd", "/x")
    return path


CASES = {
    "text": "is not an HDF5 file",
    "truncated": "damaged or truncated",
    "no data": "no group 'data'",
    "no demos": "no demonstrations",
    "no actions": "demo_1 has no actions",
    "no env_args": "does not say its environment",
    "env_args no JSON": "env_args is no JSON object",
    "unknown environment": "'DoorOpen'.*NutAssemblySquare",
    "other task": "demo_0.*32 values, the task 'can' has 71",
    "NaN": r"demo_1.*actions\[3, 2\] is nan",
    "infinite state": r"demo_1.*states\[0, 0\] is inf",
    "lengths differ": "demo_1.*4 states for 5 actions",
    "empty": "demo_1.*0 states for 0 actions",
    "intentions of another length": r"demo_1.*\(4, 7\), actions \(5, 7\)",
    "intention NaN": r"demo_1.*intended\[0, 0\] is nan",
    "two arms": r"demo_1.*\(5, 14\)",
    "text actions": "demo_1 has no actions",
    "no model": "demo_0.*model",
    "absurd size": r"demo_1: states claims a shape of \(1000000000000, 32\)",
    "data is an array": "no group 'data'",
    "demo is an array": "demo_1 has no states",
    "states are a group": "demo_1 has no states",
    "a link into nothing": "demo_1 has no actions",
    "another file": "demo_1",
}


@pytest.mark.parametrize("kind", CASES)
def test_every_fault_is_named(tmp_path: Path, kind: str) -> None:
    with (
        pytest.raises(DataError, match=CASES[kind]),
        DemoFile(broken(tmp_path, kind)) as file,
    ):
        list(file)


def test_a_described_task_reads_its_own_environment(door: Recorded, tmp_path: Path) -> None:
    with DemoFile(door.demos, door.task) as file:
        assert file.task is door.task
        assert [d.states.shape for d in file] == [(10, 23), (10, 23)]
    with pytest.raises(DataError, match="door.hdf5': no task.*'Door'.*--task file.json"):
        DemoFile(door.demos)
    with pytest.raises(DataError, match="recorded in Door, the task 'lift' is of Lift.*--task"):
        DemoFile(door.demos, get_task("lift"))
    path = write(tmp_path / "lift.hdf5", demo())
    other = task_from_json({"name": "lift_side", "env_name": "Lift"})
    with DemoFile(path, other) as file:
        assert file.task.name == "lift_side"


def test_a_described_task_takes_the_states_of_the_first_demo(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        del f["data/demo_1/states"]
        f["data/demo_1/states"] = np.zeros((10, 22))
    with (
        pytest.raises(DataError, match="demo_1: states have 22 values, those of demo_0 have 23"),
        DemoFile(path, door.task) as file,
    ):
        list(file)


def test_a_model_that_varies_must_be_recorded(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        del f["data/demo_1"].attrs["model"]
    with (
        pytest.raises(DataError, match='demo_1 has no recorded model.*"model_varies": false'),
        DemoFile(path, door.task) as file,
    ):
        list(file)
    with DemoFile(path, dataclasses.replace(door.task, model_varies=False)) as file:
        assert file.read("demo_1").xml == ""
