"""Recordings at a lower rate: which steps are kept, and what becomes of the actions."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ddp, ok, ok_json, refused

from ddp_cli.data.resampling import Resampling
from ddp_cli.data.store import Store
from ddp_cli.errors import ConfigError
from ddp_cli.schema import ActionPart

DELTA = ActionPart(name="motion", width=2, representation="delta", low=(-1, None), high=(1, 2))
GOAL = ActionPart(name="goal", width=1, representation="absolute")


@pytest.mark.parametrize(
    ("recorded", "rate", "n", "kept"),
    [
        (50, 25, 7, [0, 2, 4, 6]),
        (50, 25, 8, [0, 2, 4, 6]),
        (50, 20, 11, [0, 2, 5, 7, 10]),
        (30, 10, 1, [0]),
        (30, 10, 3, [0]),
        (0.3, 0.1, 7, [0, 3, 6]),
        (20, 20, 4, [0, 1, 2, 3]),
    ],
)
def test_steps_at_or_before_each_time_are_kept(recorded: float, rate: float, n: int, kept: list[int]) -> None:
    assert Resampling(recorded, rate).kept(n).tolist() == kept


def test_motions_are_summed_and_goals_are_those_that_were_reached_last() -> None:
    actions = np.random.default_rng(0).normal(size=(11, 3))
    resampled = Resampling(50, 20).actions(actions, (DELTA, GOAL))
    np.testing.assert_allclose(resampled[1, :2], actions[2:5, :2].sum(0))
    np.testing.assert_allclose(resampled[:, :2].sum(0), actions[:, :2].sum(0))  # nothing is lost
    np.testing.assert_array_equal(resampled[:, 2], actions[[1, 4, 6, 9, 10], 2])
    np.testing.assert_array_equal(Resampling(50, 50).actions(actions, (DELTA, GOAL)), actions)


def test_limits_of_motions_grow() -> None:
    motion, goal = Resampling(50, 20).parts((DELTA, GOAL))
    assert (motion.low, motion.high) == ((-3, None), (3, 6))
    assert goal == GOAL
    turn = ActionPart(name="turn", width=4, representation="delta", rotation="quaternion-xyzw")
    with pytest.raises(ConfigError, match="delta quaternion-xyzw, which cannot be resampled"):
        Resampling(50, 20).parts((turn,))


def test_a_recording_is_resampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "stack.hdf5", "w") as f:
        f.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack", "env_kwargs": {}})
        demo = f.create_group("data/demo_0")
        demo["actions"] = rng.normal(size=(9, 3)).astype("f4")
        demo["obs/pose"] = rng.normal(size=(9, 4)).astype("f4")
        demo["obs/front"] = rng.integers(0, 255, (9, 8, 8, 3), dtype=np.uint8)
        recorded = {key: demo[key][:] for key in ("actions", "obs/pose", "obs/front")}
    schema = ok_json("inspect", tmp_path / "stack.hdf5")["schema"]
    schema |= {"action": [DELTA.to_json(), GOAL.to_json()], "rate": 20}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    command = ("convert", tmp_path / "stack.hdf5", "--out", tmp_path / "s.zarr")
    # The file does not state its rate: --rate states it, nothing is resampled.
    ok(ddp(*command, "--rate", 20))
    assert Store(tmp_path / "s.zarr").episode_ends.tolist() == [9]
    with h5py.File(tmp_path / "stack.hdf5", "r+") as f:
        kwargs = {"env_name": "Isaac-Stack", "env_kwargs": {"control_freq": 40}}
        f["data"].attrs["env_args"] = json.dumps(kwargs)
    result = ok_json(*command, "--schema", tmp_path / "schema.json", "--overwrite")
    assert "resampled from 40 to 20 Hz; actions: motion summed, goal taken" in result["notes"]
    assert result["schema"]["action"][0]["high"] == [2.0, 4.0]
    store = Store(tmp_path / "s.zarr")
    assert (store.episode_ends.tolist(), store.task.schema.rate, store.task.horizon) == ([5], 20, 5)
    np.testing.assert_array_equal(store.read("pose"), recorded["obs/pose"][::2])
    np.testing.assert_array_equal(store.read("front"), recorded["obs/front"][::2])
    np.testing.assert_allclose(store.read("action")[0, :2], recorded["actions"][:2, :2].sum(0), rtol=1e-6)
    assert "40 Hz, 50 Hz is more" in refused(ddp(*command, "--rate", 50, "--overwrite"))
