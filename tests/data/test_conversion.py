from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import DOOR, Recorded

from ddp_cli.data.check_summary import check_summary
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.observations import MODEL_CURRENT
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError, SimulatorError
from ddp_cli.sim.simulator import Simulator
from ddp_cli.task_file import task_from_json

pytestmark = pytest.mark.slow

IMAGE_OPTIONS, STATE_OPTIONS = ConvertOptions(check=0), ConvertOptions("state", check=0)


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


def test_stored_observations_are_those_of_a_rollout(lift_demos: Path, lift_store: Store) -> None:
    """Replays the second demo through the controller and compares every observation."""
    with DemoFile(lift_demos) as file:
        start, demo = len(file.read("demo_0").actions), file.read("demo_1")
        sim = Simulator(file.task)
    sim.reset(demo.seed)
    for i, action in enumerate(demo.actions):
        np.testing.assert_array_equal(sim.state(), demo.states[i])
        obs = sim.observe("state")
        if i % 8 == 0:
            obs |= sim.observe("image")
        for key, value in obs.items():
            np.testing.assert_array_equal(value, lift_store.read(key)[start + i], err_msg=f"{key} at step {i}")
        sim.step(action)
    sim.close()


def test_stored_actions_are_the_intended_ones(lift_demos: Path, lift_store: Store) -> None:
    with DemoFile(lift_demos) as file:
        demos = list(file)
    np.testing.assert_allclose(lift_store.read("action"), np.concatenate([d.target_actions for d in demos]), atol=1e-7)
    assert all(np.abs(d.target_actions - d.actions)[:, :6].mean() > 0.01 for d in demos)  # they were disturbed


def test_stored_actions_are_the_executed_ones_without_intended_ones(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        for name in ("demo_0", "demo_1"):
            del f[f"data/{name}/intended"]
        executed = np.concatenate([f[f"data/{name}/actions"][:] for name in ("demo_0", "demo_1")])
    convert(copy, tmp_path / "s.zarr", 1, no_progress, STATE_OPTIONS)
    np.testing.assert_allclose(Store(tmp_path / "s.zarr").read("action"), executed, atol=1e-7)


def test_a_state_store_has_no_images_and_the_same_low_dim_observations(
    lift_demos: Path, lift_store: Store, tmp_path: Path
) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, no_progress, STATE_OPTIONS)
    store = Store(tmp_path / "s.zarr")
    for key in (*lift_store.task.vectors("state"), "action"):
        np.testing.assert_array_equal(store.read(key), lift_store.read(key))
    with pytest.raises(DataError, match="no array data/agentview_image") as caught:
        store.read("agentview_image")
    assert "without --obs state" in caught.value.hint


def test_the_store_does_not_depend_on_the_number_of_workers(
    lift_demos: Path, lift_store: Store, tmp_path: Path
) -> None:
    calls: list[tuple[int, int]] = []
    convert(lift_demos, tmp_path / "two.zarr", 2, lambda _, *c: calls.append(c), IMAGE_OPTIONS)
    other = Store(tmp_path / "two.zarr")
    for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_pos", "action"):
        np.testing.assert_array_equal(other.read(key), lift_store.read(key))
    assert calls[0][0] == 0
    assert calls[-1] == (lift_store.episode_ends[-1],) * 2


def test_an_interrupted_conversion_is_resumed(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(lift_demos, tmp_path / "s.zarr", 1, interrupt, IMAGE_OPTIONS)
    assert not (tmp_path / "s.zarr").exists()
    calls: list[int] = []
    convert(lift_demos, tmp_path / "s.zarr", 1, lambda _, done, __: calls.append(done), IMAGE_OPTIONS)
    assert calls[0] == lift_store.episode_ends[0]  # the first episode was written already
    np.testing.assert_array_equal(
        Store(tmp_path / "s.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def test_an_invalid_demo_leaves_no_output(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bad.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        f["data/demo_1/actions"][0, 0] = np.nan
    with pytest.raises(DataError, match="demo_1"):
        convert(copy, tmp_path / "s.zarr", 1, no_progress, IMAGE_OPTIONS)
    assert list(tmp_path.iterdir()) == [copy]


def test_attributes_record_the_source(lift_demos: Path, lift_store: Store) -> None:
    attrs = lift_store.attrs
    with DemoFile(lift_demos) as file:
        assert attrs["source"] == {
            "file": "lift.hdf5",
            "sha256": file.sha256(),
            "demos": file.names,
            "left_out": {},
            "observations": [],
        }
    assert (attrs["task"], attrs["render"], attrs["format"], attrs["complete"]) == ("lift", "fast", 2, True)
    assert attrs["action"]["convention"] == "delta"
    assert set(attrs["versions"]) == {"robosuite", "mujoco"}


def test_observations_of_a_task_from_a_file_are_stored(door: Recorded, tmp_path: Path) -> None:
    """The position of the door is part of its recorded model, not of the states."""
    convert(door.demos, tmp_path / "s.zarr", 1, no_progress, IMAGE_OPTIONS, door.task)
    store = Store(tmp_path / "s.zarr")
    assert store.task == door.task
    door_positions = store.read("object")[[0, 10], :3]
    assert np.abs(door_positions[0] - door_positions[1]).max() > 1e-3
    for key in door.observations[0]:
        observed, stored = np.stack([obs[key] for obs in door.observations]), store.read(key)
        assert stored.dtype == observed.dtype
        if key == "frontview_image":  # the recorded XML is rounded
            assert np.abs(stored.astype(float) - observed).mean() < 0.5
        else:
            np.testing.assert_allclose(stored, observed, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"x_image": "frontviw"}}, "no camera 'frontviw', did you mean 'frontview'"),
        ({"low_dim": {"robot0_joint_acc": 7}}, "'robot0_joint_acc' is not determined by the recorded state"),
        ({"object": {"door_pos": 4}}, "'door_pos' has width 3, not 4"),
    ],
)
def test_tasks_that_do_not_fit_the_environment_are_refused(
    door: Recorded, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(door.demos, tmp_path / "s.zarr", 1, no_progress, IMAGE_OPTIONS, task_from_json(DOOR | changes))
    assert list(tmp_path.iterdir()) == []


def test_states_of_the_wrong_width_are_refused(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            states = demo["states"][:, :-1]
            del demo["states"]
            demo["states"] = states
    with pytest.raises(SimulatorError, match=r"22 values does not fit Door \(23 values\)"):
        convert(path, tmp_path / "s.zarr", 1, no_progress, IMAGE_OPTIONS, door.task)


def test_a_model_that_does_not_load_is_replaced_by_todays(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            del demo.attrs["model"]
            demo.attrs["model_file"] = "<mujoco/>"
    result = convert(path, tmp_path / "s.zarr", 1, no_progress, ConvertOptions(obs="state"), door.task)
    assert MODEL_CURRENT in check_summary(result.check)
