"""Files as other tools write them, which convert exactly, or are refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ddp, ok, refused

from ddp_cli.data.actions import rotation_6d_to_axis_angle
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions, plan_conversion
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.inspection import inspect_source
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow

STATE = ConvertOptions("state", check=0)


@pytest.fixture
def path(lift_demos: Path, tmp_path: Path) -> Path:
    """A copy of two demos that tests change."""
    return Path(shutil.copy(lift_demos, tmp_path / "d.hdf5"))


def to_store(path: Path, options: ConvertOptions = STATE, task: str | None = None) -> Store:
    out = path.with_suffix(".zarr")
    convert(path, out, 1, lambda *_: None, options, get_task(task) if task else None)
    return Store(out)


def assert_same_arrays(store: Store, expected: Store) -> None:
    np.testing.assert_array_equal(store.episode_ends, expected.episode_ends)
    for key in (*store.image_keys, *store.task.vectors("state"), "action"):
        np.testing.assert_array_equal(store.read(key), expected.read(key), err_msg=key)


def test_rows_behind_num_samples_are_left_out(path: Path, lift_store: Store) -> None:
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            for key in ("states", "actions", "intended"):
                values = demo[key][:]
                del demo[key]
                demo[key] = np.concatenate([values, np.zeros((6, values.shape[1]))])
    assert_same_arrays(to_store(path), lift_store)
    contents = inspect_source(path)
    assert contents["notes"] == ["the arrays of 2 demos are longer than num_samples: the rows behind are left out"]
    assert contents["steps"] == lift_store.episode_ends[-1]


def test_num_samples_beyond_the_arrays_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        f["data/demo_1"].attrs["num_samples"] = 1000
    with pytest.raises(DataError, match=r"demo_1: num_samples is 1000, but there are \d+ actions"):
        to_store(path)


def test_demos_whose_time_jumps_are_refused_or_skipped(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        demo = f["data/demo_1"]
        for key in ("states", "actions", "intended"):
            values = np.delete(demo[key][:], slice(10, 14), axis=0)
            del demo[key]
            demo[key] = values
        demo.attrs["num_samples"] = len(demo["actions"])
    with pytest.raises(DataError, match="demo_1: the time changes by 0.25 s after step 9.*frames were cut out"):
        to_store(path)
    assert to_store(path, ConvertOptions("state", check=0, skip_bad=True)).attrs["source"]["demos"] == ["demo_0"]
    assert inspect_source(path)["bad"]["demo_1"].startswith("the time changes by 0.25 s after step 9")


def relabel_actions(path: Path, names: tuple[str, ...]) -> Store:
    """Overwrites the actions of some demos by absolute ones, but not the environment's arguments."""
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            del demo["intended"]  # the actions that were executed are the ones to imitate
    absolute = path.with_name("absolute.zarr")
    convert(path, absolute, 1, lambda *_: None, ConvertOptions("state", "absolute", check=0))
    store = Store(absolute)
    actions = rotation_6d_to_axis_angle(store.read("action"))
    with h5py.File(path, "r+") as f:
        for i, (begin, end) in enumerate(store.episode_bounds):
            if f"demo_{i}" in names:
                f[f"data/demo_{i}/actions"][:] = actions[begin:end]
    return store


def test_absolute_actions_of_a_file_that_declares_delta_ones(path: Path) -> None:
    """As the published project's conversion script writes them."""
    absolute = relabel_actions(path, ("demo_0", "demo_1"))
    store = to_store(path, ConvertOptions("state", check=2))
    assert (store.attrs["action"]["convention"], store.check["result"]) == ("absolute", "passed")
    assert store.check["chunk_mm_p90"] < 1
    np.testing.assert_allclose(store.read("action"), absolute.read("action"), atol=1e-6)
    contents = inspect_source(path)
    assert contents["actions"] == "absolute"
    assert contents["notes"] == ["the file declares delta actions, but their values are absolute goal poses"]
    with pytest.raises(DataError, match=r"holds absolute actions \(their values are goal poses\). Leave --actions out"):
        to_store(path, ConvertOptions("state", "delta"))


def test_a_demo_with_absolute_actions_among_delta_ones_is_refused(path: Path) -> None:
    relabel_actions(path, ("demo_1",))
    with pytest.raises(DataError, match="demo_1: its actions are absolute goal poses, those of other demos are not"):
        to_store(path)


def test_clipped_actions_are_counted(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            del demo["intended"]
            demo["actions"][:, :3] *= 1000
    assert "of the steps have action values beyond [-1, 1]: they are clipped" in inspect_source(path)["notes"][0]
    assert np.abs(to_store(path).read("action")).max() == 1


def test_a_task_is_enough_for_a_file_that_does_not_describe_its_environment(path: Path, lift_store: Store) -> None:
    with h5py.File(path, "r+") as f:
        del f["data"].attrs["env_args"]
    with pytest.raises(DataError, match="does not name its environment.*--task lift"):
        to_store(path)
    store = to_store(path, ConvertOptions("state", check=1), "lift")
    assert_same_arrays(store, lift_store)
    assert store.check["result"] == "passed"
    output = ok(ddp("inspect", path, "--task", "lift")).output
    assert "the file does not describe its environment" in output


def test_demos_of_any_name_are_in_numeric_order(path: Path, lift_store: Store) -> None:
    with h5py.File(path, "r+") as f:
        f["data"].move("demo_0", "episode_9")
        f["data"].move("demo_1", "episode_10")
        f["data"].create_group("statistics")  # no demo: it has no actions
    store = to_store(path)
    assert store.attrs["source"]["demos"] == ["episode_9", "episode_10"]
    assert_same_arrays(store, lift_store)


@pytest.fixture
def without_states(path: Path, lift_store: Store) -> Path:
    """A file with observations and actions only, as from a real robot."""
    with h5py.File(path, "r+") as f:
        for i, (begin, end) in enumerate(lift_store.episode_bounds):
            demo = f[f"data/demo_{i}"]
            del demo["states"], demo["intended"]
            demo["actions"][:] = lift_store.read("action", rows=slice(begin, end))
            for key in (*lift_store.image_keys, *lift_store.task.vectors("state")):
                demo[f"obs/{key}"] = lift_store.read(key, rows=slice(begin, end))
    return path


def test_observations_and_actions_without_states_are_copied_but_not_verified(
    without_states: Path, lift_store: Store
) -> None:
    store = to_store(without_states, ConvertOptions())
    assert_same_arrays(store, lift_store)
    assert store.check["result"] == "not verified"
    assert "holds no simulator states" in store.check["why"]
    plan = inspect_source(without_states)["plan"]
    assert plan.startswith("copies the observations from the file. The store will not be verified")


def test_values_of_a_file_without_states_are_checked(without_states: Path) -> None:
    """There is nothing to replay, but the end effector has to move as the actions say."""
    original, out = without_states.read_bytes(), without_states.with_name("s.zarr")

    def fault(change: Callable[[h5py.Group], None], names: tuple[str, ...] = ("demo_0", "demo_1")) -> str:
        without_states.write_bytes(original)
        with h5py.File(without_states, "r+") as f:
            for name in names:
                change(f["data"][name])
        return " ".join(refused(ddp("convert", without_states, "--out", out)).split())

    def write(key: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
        def change(demo: h5py.Group) -> None:
            demo[key][:] = function(demo[key][:])

        return change

    assert "fit the motion of" in fault(write("actions", lambda x: x[:, [1, 0, 2, 3, 4, 5, 6]]))
    assert Store(to_store(without_states, ConvertOptions("state", check=0)).path).check["result"] == "not verified"
    assert "demo_1: the end effector moves against its actions" in fault(
        write("actions", lambda x: x * [-1, -1, -1, 1, 1, 1, 1]), ("demo_1",)
    )
    assert "demo_0: the gripper opens when its actions close it" in fault(
        write("actions", lambda x: x * [1, 1, 1, 1, 1, 1, -1]), ("demo_0",)
    )
    assert "demo_1: robot0_eef_pos is" in fault(write("obs/robot0_eef_pos", lambda x: 1000 * x), ("demo_1",))
    assert "demo_1: the gripper value of its actions is 0 to 1" in fault(
        write("actions", lambda x: np.concatenate([x[:, :6], (x[:, 6:] + 1) / 2], 1)), ("demo_1",)
    )
    result = to_store(without_states, ConvertOptions("state", skip_bad=True))
    assert list(result.attrs["source"]["left_out"]) == ["demo_1"]


def test_what_is_missing_in_a_file_without_states_is_named(without_states: Path) -> None:
    with pytest.raises(DataError, match="no simulator states, from which absolute actions would be computed"):
        to_store(without_states, ConvertOptions(actions="absolute"))
    with h5py.File(without_states, "r+") as f:
        del f["data/demo_1/obs/agentview_image"]
    reason = "holds no simulator states, so what is not recorded cannot be computed: demo_1 has no obs/agentview_image"
    assert reason in " ".join(refused(ddp("convert", without_states, "--out", "s.zarr")).split())
    assert reason in inspect_source(without_states)["plan"]
    store = to_store(without_states)
    assert (store.image_keys, store.check["result"]) == ([], "not verified")


def test_recordings_of_other_simulators_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        f["data"].attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-v0", "type": 2})
    with pytest.raises(DataError, match="Isaac-Stack-Cube-v0 is not an environment of robosuite"):
        to_store(path)
    assert inspect_source(path)["plan"] == (
        "rejects this file: Isaac-Stack-Cube-v0 is not an environment of robosuite."
    )


def test_rerender_does_not_read_recorded_observations(path: Path) -> None:
    """It is the way on where they are damaged."""
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            demo.create_dataset("obs/agentview_image", (len(demo["actions"]), 84, 84, 3), "u1", chunks=(1, 84, 84, 3))
    with DemoFile(path) as demos:
        with pytest.raises(DataError, match="chunks of demo_0/obs/agentview_image were never written"):
            plan_conversion(demos, ConvertOptions())
        plan = plan_conversion(demos, ConvertOptions(rerender=True))
    assert (plan.recorded_keys, plan.computed, len(plan.demo_names)) == ((), {}, 2)
