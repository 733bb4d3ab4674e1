"""Files for robomimic. One was also loaded with SequenceDataset of robomimic 0.3.0."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ddp, ok_json, refused

from ddp_cli.data.robomimic_writer import write_robomimic
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.rotation import matrix_from_6d, rotvec_to_matrix


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


def test_file_holds_everything_in_the_store(lift_store: Store, tmp_path: Path) -> None:
    steps = write_robomimic(lift_store, tmp_path / "d.hdf5", no_progress)
    with h5py.File(tmp_path / "d.hdf5") as file:
        assert file["data"].attrs["total"] == steps == lift_store.episode_ends[-1]
        env = json.loads(file["data"].attrs["env_args"])
        assert (env["env_name"], env["type"]) == ("Lift", 1)
        assert env["env_kwargs"]["camera_names"] == ["agentview", "robot0_eye_in_hand"]
        for i, (begin, end) in enumerate(lift_store.episode_bounds):
            demo = file[f"data/demo_{i}"]
            assert demo.attrs["num_samples"] == end - begin
            assert demo["dones"][:].tolist() == [0] * (end - begin - 1) + [1]
            np.testing.assert_array_equal(demo["actions"][:], lift_store.read("action", rows=slice(begin, end)))
            for key in (*lift_store.image_keys, *lift_store.task.vectors("state")):
                np.testing.assert_array_equal(demo[f"obs/{key}"][:], lift_store.read(key, rows=slice(begin, end)))


def test_failed_episodes_of_a_policy_end_without_a_reward(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lift_store.attrs["source"], "policy_episodes", {"demo_0": False, "demo_1": True})
    write_robomimic(lift_store, tmp_path / "d.hdf5", no_progress)
    with h5py.File(tmp_path / "d.hdf5") as file:
        assert [file[f"data/demo_{i}/rewards"][:].sum() for i in (0, 1)] == [0, 1]
        assert [file[f"data/demo_{i}/dones"][-1] for i in (0, 1)] == [1, 1]


def test_absolute_actions_have_axis_angle_rotations(lift_store: Store, tmp_path: Path) -> None:
    copy_store(lift_store, tmp_path / "abs.zarr", ":1", "absolute", 3, no_progress)
    store = Store(tmp_path / "abs.zarr")
    write_robomimic(store, tmp_path / "d.hdf5", no_progress)
    with h5py.File(tmp_path / "d.hdf5") as file:
        actions = file["data/demo_0/actions"][:]
        arm = json.loads(file["data"].attrs["env_args"])["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    stored = store.read("action").astype(np.float64)
    assert (actions.shape[1], arm["input_type"], arm["input_ref_frame"]) == (7, "absolute", "world")
    np.testing.assert_allclose(rotvec_to_matrix(actions[3, 3:6]), matrix_from_6d(stored[3, 3:9]), atol=1e-6)
    np.testing.assert_array_equal(actions[:, [0, 1, 2, 6]], stored[:, [0, 1, 2, 9]])


def test_interrupted_write_leaves_nothing(lift_store: Store, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_robomimic(lift_store, tmp_path / "d.hdf5", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_convert_to_robomimic(lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ok_json("convert", lift_zarr, "--to", "robomimic", "--out", "d.hdf5")["episodes"] == 2
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--to", "robomimic", "--out", "d.hdf5"))
    assert "--render does not apply" in refused(ddp("convert", lift_zarr, "--out", "x.zarr", "--render", "full"))
