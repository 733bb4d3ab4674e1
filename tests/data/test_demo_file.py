from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import DOOR, Recorded

from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.demo_writer import DemoWriter
from ddp_cli.errors import DataError
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import get_task

ENV_ARGS = {"env_name": "Lift", "env_kwargs": {}}


def make_demo(length: int = 5, seed: int = 1, xml: str = "<mujoco/>") -> Demo:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(length, 32))
    states[:, 0] = np.arange(length) / 20  # time
    return Demo(states, rng.uniform(-1, 1, (length, 7)), xml, seed)


def make_disturbed_demo(length: int = 5) -> Demo:
    demo = make_demo(length)
    return dataclasses.replace(demo, intended=demo.actions + np.random.default_rng(9).uniform(-0.1, 0.1, (length, 7)))


def write_demos(path: Path, *demos: Demo) -> Path:
    with DemoWriter(path, ENV_ARGS, {"a": 1}) as writer:
        for demo in demos:
            writer.append(demo)
        writer.finish()
    return path


def test_round_trip_is_exact_and_shares_models(tmp_path: Path) -> None:
    written = [make_demo(5, 1), make_disturbed_demo(7), make_demo(4, 3, "<other/>")]
    path = write_demos(tmp_path / "d.hdf5", *written)
    with DemoFile(path) as file:
        assert [len(demo.actions) for demo in file] == [5, 7, 4]
        assert file.task.name == "lift"
        for demo, expected in zip(file, written, strict=True):
            np.testing.assert_array_equal(demo.states, expected.states)
            np.testing.assert_array_equal(demo.actions, expected.actions)
            np.testing.assert_array_equal(demo.target_actions, expected.target_actions)
            assert (demo.intended is None) == (expected.intended is None)
            assert (demo.xml, demo.seed) == (expected.xml, expected.seed)
    with h5py.File(path) as f:
        assert f["data"].attrs["total"] == 16
        assert f["data"].attrs["demos"] == 3
        assert len(f["models"]) == 2


def test_demos_are_in_numeric_order_despite_gaps(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "d.hdf5", *(make_demo(3, i) for i in range(12)))
    with h5py.File(path, "r+") as f:
        del f["data/demo_1"]
    with DemoFile(path) as file:
        assert file.names == ["demo_0", *(f"demo_{i}" for i in range(2, 12))]


def test_robomimic_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "robomimic.hdf5"
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs["env_args"] = '{"env_name": "Lift", "env_version": "1.5.1", "type": 1}'
        group = f.create_group("data/demo_1")
        group["states"], group["actions"] = make_demo().states, make_demo().actions
        group.attrs["model_file"] = "<mujoco/>"
    with DemoFile(path) as file:
        assert file.read("demo_1").xml == "<mujoco/>"


def test_robosuite_layouts_are_read(tmp_path: Path) -> None:
    """1.4 and 1.5 store the model XML in the file, 1.0 in a folder beside it."""
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs.update({"env": "Lift", "env_info": "{}", "repository_version": "1.0.0"})
        for number, model in ((1, "model_1.xml"), (3, "<mujoco/>"), (12, "lost.xml")):
            group = f.create_group(f"data/demo_{number}")
            group["states"], group["actions"] = make_demo(seed=number).states, make_demo(seed=number).actions
            group.attrs["model_file"] = model
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model_1.xml").write_text("<old/>")
    with DemoFile(path) as file:
        assert [demo.xml for demo in file] == ["<old/>", "<mujoco/>", ""]
        assert (file.info.version, file.info.tool) == ("1.0.0", "robosuite's collector")


def test_model_files_are_only_read_from_the_folder_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_text("<secret/>")
    (tmp_path / "d").mkdir()
    path = write_demos(tmp_path / "d/d.hdf5", make_demo())
    with h5py.File(path, "r+") as f:
        f["data/demo_0"].attrs["model_file"] = "../secret.xml"
    with DemoFile(path) as file:
        assert file.read("demo_0").xml == ""


def test_filter_keys_select_demos(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "d.hdf5", *(make_demo(3, i) for i in range(12)))
    with h5py.File(path, "r+") as f:
        f["mask/valid"] = np.array([b"demo_11", b"demo_2"])
        f["mask/partly"] = np.array([b"demo_12", b"demo_3", b"demo_14"])
        f["mask/gone"] = np.array([b"demo_12"])
        f["mask/empty"] = np.zeros(0, "S8")
    with DemoFile(path, filter_key="valid") as file:
        assert file.names == ["demo_2", "demo_11"]
        assert file.filter_keys == ["empty", "gone", "partly", "valid"]
        assert file.notes == []
    with DemoFile(path, filter_key="partly") as file:
        assert file.names == ["demo_3"]
        assert "lists 3 demonstrations, of which the file holds 1 (demo_12, ... missing)" in file.notes[0]
    for filter_key, message in (
        ("vali", "did you mean 'valid'.*empty, gone, partly, valid"),
        ("gone", "none of the demonstrations in the file"),
        ("empty", "lists no demonstration"),
    ):
        with pytest.raises(DataError, match=message):
            DemoFile(path, filter_key=filter_key)


def test_an_error_removes_the_partial_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), DemoWriter(tmp_path / "d.hdf5", ENV_ARGS, {}) as writer:
        writer.append(make_demo())
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def test_failed_attempts_are_counted(tmp_path: Path) -> None:
    with DemoWriter(tmp_path / "d.hdf5", ENV_ARGS, {}) as writer:
        writer.append(make_demo(5))
        writer.finish(attempts=3)
    with h5py.File(tmp_path / "d.hdf5") as f:
        assert {key: f["data"].attrs[key] for key in ("demos", "attempts", "failures", "total")} == {
            "demos": 1, "attempts": 3, "failures": 2, "total": 5,
        }  # fmt: skip


Change = Callable[[h5py.File], None]
"""Damages an open file."""


def replaced(path: str, value: object = None) -> Change:
    """Replaces the object at `path` by `value`; None removes it."""

    def change(f: h5py.File) -> None:
        if path in f:
            del f[path]
        if value is not None:
            f[path] = value

    return change


def with_attribute(name: str, value: object) -> Change:
    """Sets an attribute of `data`; None removes it."""

    def change(f: h5py.File) -> None:
        del f["data"].attrs[name]
        if value is not None:
            f["data"].attrs[name] = value

    return change


def with_value(path: str, index: tuple[int, int], value: float) -> Change:
    def change(f: h5py.File) -> None:
        f[path][index] = value

    return change


def without_demos(f: h5py.File) -> None:
    del f["data/demo_0"], f["data/demo_1"]


def without_steps(f: h5py.File) -> None:
    replaced("data/demo_1/states", np.zeros((0, 32)))(f)
    replaced("data/demo_1/actions", np.zeros((0, 7)))(f)


def with_group_of_states(f: h5py.File) -> None:
    del f["data/demo_1/states"]
    f.create_group("data/demo_1/states")


def with_huge_states(f: h5py.File) -> None:
    del f["data/demo_1/states"]
    f["data/demo_1"].create_dataset("states", (10**12, 32), "f8", chunks=(1000, 32))


ACTIONS, STATES, INTENDED = (f"data/demo_1/{key}" for key in ("actions", "states", "intended"))
FAULTS: dict[str, tuple[Change, str]] = {
    "no data": (replaced("data"), "no group 'data'"),
    "no demos": (without_demos, "no demonstrations"),
    "no actions": (replaced(ACTIONS), "demo_1 has no actions"),
    "no env_args": (with_attribute("env_args", None), "does not name its environment"),
    "env_args not JSON": (with_attribute("env_args", "Lift"), "env_args is not a JSON object"),
    "unknown environment": (with_attribute("env_args", '{"env_name": "DoorOpen"}'), "'DoorOpen'.*NutAssemblySquare"),
    "other task": (
        with_attribute("env_args", '{"env_name": "PickPlaceCan"}'),
        "demo_0.*32 values, those of the task 'can' have 71",
    ),
    "NaN": (with_value(ACTIONS, (3, 2), np.nan), r"demo_1.*actions\[3, 2\] is nan"),
    "infinite state": (with_value(STATES, (0, 0), np.inf), r"demo_1.*states\[0, 0\] is inf"),
    "lengths differ": (replaced(STATES, np.zeros((4, 32))), "demo_1.*4 states for 5 actions"),
    "empty": (without_steps, "demo_1: num_samples is 5, but there are 0 actions"),
    "intended of another length": (replaced(INTENDED, np.zeros((4, 7))), r"demo_1.*\(4, 7\), but actions \(5, 7\)"),
    "intended NaN": (replaced(INTENDED, np.full((5, 7), np.nan)), r"demo_1.*intended\[0, 0\] is nan"),
    "two arms": (replaced(ACTIONS, np.zeros((5, 14))), r"demo_1.*\(5, 14\)"),
    "text actions": (replaced(ACTIONS, np.array([b"x"] * 5)), "demo_1 has no actions"),
    "no model": (replaced("models"), "demo_0.*model"),
    "absurd size": (with_huge_states, "1000000000 of 1000000000 chunks of demo_1/states were never written"),
    "data is an array": (replaced("data", np.zeros(3)), "no group 'data'"),
    "demo is an array": (replaced("data/demo_1", np.zeros(3)), "demo_1 has no actions"),
    "states are a group": (with_group_of_states, "demo_1 has no states"),
    "dangling link": (
        replaced(ACTIONS, h5py.SoftLink("/nowhere")),
        "data/demo_1/actions is a link to '/nowhere', which does not exist",
    ),
    "link to a missing file": (
        replaced(ACTIONS, h5py.ExternalLink("gone.hdf5", "/x")),
        "data/demo_1/actions is a link to the file 'gone.hdf5', which is missing",
    ),
    "demo in a missing file": (
        replaced("data/demo_1", h5py.ExternalLink("gone.hdf5", "/x")),
        "data/demo_1 is a link to the file 'gone.hdf5'",
    ),
    "link to another kind of file": (replaced(ACTIONS, h5py.ExternalLink("/etc/passwd", "/x")), "demo_1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_the_fault(tmp_path: Path, fault: str) -> None:
    path = write_demos(tmp_path / "d.hdf5", make_demo(5, 1), make_demo(5, 2))
    change, message = FAULTS[fault]
    with h5py.File(path, "r+") as f:
        change(f)
    with pytest.raises(DataError, match=message), DemoFile(path) as file:
        list(file)


def test_files_that_are_not_hdf5_or_truncated_are_refused(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "d.hdf5", make_demo(5, 1), make_demo(5, 2))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged or truncated"):
        DemoFile(path)
    path.write_text("not a dataset")
    with pytest.raises(DataError, match="is not an HDF5 file"):
        DemoFile(path)


def test_a_task_from_a_file_reads_demos_of_its_environment(door: Recorded, tmp_path: Path) -> None:
    with DemoFile(door.demos, door.task) as file:
        assert file.task is door.task
        assert [demo.states.shape for demo in file] == [(10, 23), (10, 23)]
    with DemoFile(door.demos) as file:
        assert file.task is get_task("door")
    with pytest.raises(DataError, match="recorded in Door, but the task 'lift' uses Lift.*--task"):
        DemoFile(door.demos, get_task("lift"))
    path = write_demos(tmp_path / "lift.hdf5", make_demo())
    lift_side = task_from_json({"name": "lift_side", "env_name": "Lift"})
    with DemoFile(path, lift_side) as file:
        assert file.task.name == "lift_side"


def test_states_of_a_task_from_a_file_must_match_the_first_demo(door: Recorded, tmp_path: Path) -> None:
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


def test_varying_models_must_be_recorded(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        del f["data/demo_1"].attrs["model"]
    with (
        pytest.raises(DataError, match='demo_1 has no recorded model.*"model_varies": false'),
        DemoFile(path, door.task) as file,
    ):
        list(file)
    with DemoFile(path, task_from_json(DOOR | {"model_varies": False})) as file:
        assert file.read("demo_1").xml == ""
