from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.conversion import convert
from ddp_cli.data.demos import DemoFile
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.sim.simulator import Simulator


def test_the_store_holds_what_a_rollout_would_see(lift_demos: Path, lift_store: Store) -> None:
    """Replays the second demo through the controller and compares every observation."""
    with DemoFile(lift_demos) as file:
        start, demo = file.lengths()[0], file.read("demo_1")
        sim = Simulator(file.task)
    sim.reset(demo.seed)
    for i, action in enumerate(demo.actions):
        np.testing.assert_array_equal(sim.state(), demo.states[i])
        seen = sim.observe("state")
        if i % 8 == 0:
            seen |= sim.observe("image")
        for key, value in seen.items():
            np.testing.assert_array_equal(value, lift_store.read(key)[start + i], err_msg=f"{key} at step {i}")
        np.testing.assert_allclose(lift_store.read("action")[start + i], action, atol=1e-7)
        sim.step(action)
    sim.close()


def test_several_processes_write_the_same_store(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(lift_demos, tmp_path / "two.zarr", "fast", 2, lambda *c: calls.append(c))
    other = Store(tmp_path / "two.zarr")
    for key in ("agentview_image", "robot0_eye_in_hand_image", "object", "robot0_eef_pos", "action"):
        np.testing.assert_array_equal(other.read(key), lift_store.read(key))
    assert calls[0][0] == 0
    assert calls[-1] == (lift_store.episode_ends[-1],) * 2


def test_an_interrupted_conversion_goes_on(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(lift_demos, tmp_path / "s.zarr", "fast", 1, interrupt)
    assert not (tmp_path / "s.zarr").exists()
    calls: list[int] = []
    convert(lift_demos, tmp_path / "s.zarr", "fast", 1, lambda done, _: calls.append(done))
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
        convert(copy, tmp_path / "s.zarr", "fast", 1, lambda *_: None)
    assert list(tmp_path.iterdir()) == [copy]


def test_attributes_say_where_the_store_comes_from(lift_demos: Path, lift_store: Store) -> None:
    attrs = lift_store.attrs
    with DemoFile(lift_demos) as file:
        assert attrs["source"] == {"file": "lift.hdf5", "sha256": file.sha256(), "demos": file.names}
    assert (attrs["task"], attrs["render"], attrs["format"], attrs["complete"]) == ("lift", "fast", 1, True)
    assert attrs["action"]["convention"] == "delta"
    assert set(attrs["versions"]) == {"robosuite", "mujoco"}
