"""Pauses at the start and the end of episodes are left out, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from conftest import ok_json

from ddp_cli.data.store import Store


def test_pauses_at_both_ends_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    motion = np.cumsum(rng.normal(size=(60, 2)), axis=0)
    still = np.repeat(motion[25:26], 15, axis=0)
    episodes = [
        np.concatenate([np.repeat(motion[:1], 12, axis=0), motion, np.repeat(motion[-1:], 9, axis=0)]),
        motion,
        np.concatenate([motion[:25], still, motion[25:]]),  # a pause in between stays
        np.repeat(motion[:1], 20, axis=0),  # nothing moves
    ]
    ends = np.cumsum([len(episode) for episode in episodes])
    pose = np.concatenate(episodes).astype(np.float32)
    root = zarr.open_group(tmp_path / "r.zarr", mode="w", zarr_format=2)
    img = rng.integers(0, 255, (ends[-1], 8, 8, 3), dtype=np.uint8)
    for key, value in {"pose": pose, "action": pose + 1, "img": img}.items():
        root.create_array(f"data/{key}", data=value)
    root.create_array("meta/episode_ends", data=ends)
    command = ("convert", tmp_path / "r.zarr", "--rate", 10, "--out", tmp_path / "s.zarr")
    result = ok_json(*command, "--trim-pauses")
    store = Store(tmp_path / "s.zarr")
    assert np.diff(store.episode_ends, prepend=0).tolist() == [60, 60, 75, 20]
    assert "pauses: 21 steps at the start or the end of 1 of 4 episodes left out" in result["notes"]
    np.testing.assert_array_equal(store.read("pose", rows=slice(0, 60)), pose[12:72])
    np.testing.assert_array_equal(store.read("action", rows=slice(0, 60)), pose[12:72] + 1)
    np.testing.assert_array_equal(store.read("img", rows=slice(0, 60)), img[12:72])
    ok_json(*command, "--overwrite")
    assert Store(tmp_path / "s.zarr").episode_ends[-1] == ends[-1]
