from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Recorded

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError, DataError, SimulatorError
from ddp_cli.sim.simulator import Simulator

UNCHECKED, STATE = ConvertOptions(check=0), ConvertOptions("state", check=0)


def quiet(*_: object) -> None:
    """No progress."""


def test_the_store_holds_what_a_rollout_would_see(lift_demos: Path, lift_store: Store) -> None:
    """Replays the second demo through the controller and compares every observation."""
    with DemoFile(lift_demos) as file:
        start, demo = len(file.read("demo_0").actions), file.read("demo_1")
        sim = Simulator(file.task)
    sim.reset(demo.seed)
    for i, action in enumerate(demo.actions):
        np.testing.assert_array_equal(sim.state(), demo.states[i])
        seen = sim.observe("state")
        if i % 8 == 0:
            seen |= sim.observe("image")
        for key, value in seen.items():
            np.testing.assert_array_equal(value, lift_store.read(key)[start + i], err_msg=f"{key} at step {i}")
        sim.step(action)
    sim.close()


def test_the_store_teaches_what_was_intended(lift_demos: Path, lift_store: Store) -> None:
    with DemoFile(lift_demos) as file:
        demos = list(file)
    np.testing.assert_allclose(lift_store.read("action"), np.concatenate([d.target_actions for d in demos]), atol=1e-7)
    assert all(np.abs(d.target_actions - d.actions)[:, :6].mean() > 0.01 for d in demos)  # they were disturbed


def test_demos_that_do_not_say_what_was_intended_teach_what_was_done(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        for name in ("demo_0", "demo_1"):
            del f[f"data/{name}/intended"]
        executed = np.concatenate([f[f"data/{name}/actions"][:] for name in ("demo_0", "demo_1")])
    convert(copy, tmp_path / "s.zarr", 1, quiet, STATE)
    np.testing.assert_allclose(Store(tmp_path / "s.zarr").read("action"), executed, atol=1e-7)


def test_a_store_for_state_policies_has_no_pictures_and_the_same_numbers(
    lift_demos: Path, lift_store: Store, tmp_path: Path
) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, quiet, STATE)
    store = Store(tmp_path / "s.zarr")
    for key in (*lift_store.task.vectors("state"), "action"):
        np.testing.assert_array_equal(store.read(key), lift_store.read(key))
    with pytest.raises(DataError, match="no array data/agentview_image") as caught:
        store.read("agentview_image")
    assert "without --obs state" in caught.value.hint


def test_several_processes_write_the_same_store(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(lift_demos, tmp_path / "two.zarr", 2, lambda _, *c: calls.append(c), UNCHECKED)
    other = Store(tmp_path / "two.zarr")
    for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_pos", "action"):
        np.testing.assert_array_equal(other.read(key), lift_store.read(key))
    assert calls[0][0] == 0
    assert calls[-1] == (lift_store.episode_ends[-1],) * 2


def test_an_interrupted_conversion_goes_on(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    def interrupt(_what: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(lift_demos, tmp_path / "s.zarr", 1, interrupt, UNCHECKED)
    assert not (tmp_path / "s.zarr").exists()
    calls: list[int] = []
    convert(lift_demos, tmp_path / "s.zarr", 1, lambda _, done, __: calls.append(done), UNCHECKED)
    assert calls[0] == lift_store.episode_ends[0]  # the first episode was kept
    np.testing.assert_array_equal(
        Store(tmp_path / "s.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def test_a_bad_demo_leaves_nothing(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bad.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        f["data/demo_1/actions"][0, 0] = np.nan
    with pytest.raises(DataError, match="demo_1"):
        convert(copy, tmp_path / "s.zarr", 1, quiet, UNCHECKED)
    assert list(tmp_path.iterdir()) == [copy]


def test_attributes_say_where_the_store_comes_from(lift_demos: Path, lift_store: Store) -> None:
    attrs = lift_store.attrs
    with DemoFile(lift_demos) as file:
        assert attrs["source"] == {
            "file": "lift.hdf5",
            "sha256": file.sha256(),
            "demos": file.names,
            "left_out": {},
            "observations": [],
        }
    assert (attrs["task"], attrs["render"], attrs["format"], attrs["complete"]) == ("lift", "fast", 1, True)
    assert attrs["action"]["convention"] == "delta"
    assert set(attrs["versions"]) == {"robosuite", "mujoco"}


def test_a_described_task_is_stored_as_it_was_seen(door: Recorded, tmp_path: Path) -> None:
    """Each door stands where its recorded model has it, which the states do not say."""
    convert(door.demos, tmp_path / "s.zarr", 1, quiet, UNCHECKED, door.task)
    store = Store(tmp_path / "s.zarr")
    assert store.task == door.task
    places = store.read("object")[[0, 10], :3]
    assert np.abs(places[0] - places[1]).max() > 1e-3
    for key in door.seen[0]:
        seen, stored = np.stack([s[key] for s in door.seen]), store.read(key)
        assert stored.dtype == seen.dtype
        if key == "frontview_image":  # the recorded XML is rounded
            assert np.abs(stored.astype(float) - seen).mean() < 0.5
        else:
            np.testing.assert_allclose(stored, seen, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"x_image": "frontviw"}}, "no camera 'frontviw', did you mean 'frontview'"),
        ({"low_dim": {"robot0_joint_acc": 7}}, "'robot0_joint_acc' does not follow from the recorded state"),
        ({"object": {"door_pos": 4}}, "'door_pos' has width 3, not 4"),
    ],
)
def test_what_does_not_fit_the_environment_is_refused(
    door: Recorded, tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        convert(door.demos, tmp_path / "s.zarr", 1, quiet, UNCHECKED, dataclasses.replace(door.task, **changes))
    assert list(tmp_path.iterdir()) == []


def test_states_of_another_size_are_refused(door: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(door.demos.read_bytes())
    with h5py.File(path, "r+") as f:
        for demo in f["data"].values():
            states = demo["states"][:, :-1]
            del demo["states"]
            demo["states"] = states
    with pytest.raises(SimulatorError, match=r"22 values does not fit Door \(23\)"):
        convert(path, tmp_path / "s.zarr", 1, quiet, UNCHECKED, door.task)
