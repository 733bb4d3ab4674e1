"""Pauses of episodes are left out, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from conftest import ddp, ok_json, refused

from ddp_cli.data.store import Store


def test_pauses_at_both_ends_and_in_between_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    motion = np.cumsum(rng.normal(size=(60, 2)), axis=0)
    still = np.repeat(motion[25:26], 15, axis=0)
    episodes = [
        np.concatenate([np.repeat(motion[:1], 12, axis=0), motion, np.repeat(motion[-1:], 9, axis=0)]),
        motion,
        np.concatenate([motion[:25], still, motion[25:]]),
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
    # Of the pause in between, 16 steps that are equal, half a second stays.
    assert np.diff(store.episode_ends, prepend=0).tolist() == [60, 60, 64, 20]
    assert "pauses: 32 of 236 steps left out, in 2 of 4 episodes" in result["notes"]
    np.testing.assert_array_equal(store.read("pose", rows=slice(0, 60)), pose[12:72])
    np.testing.assert_array_equal(store.read("action", rows=slice(0, 60)), pose[12:72] + 1)
    np.testing.assert_array_equal(store.read("img", rows=slice(0, 60)), img[12:72])
    rows = np.array([*range(141, 171), *range(182, 216)])
    np.testing.assert_array_equal(store.read("img", rows=slice(120, 184)), img[rows])
    ok_json(*command, "--overwrite")
    assert Store(tmp_path / "s.zarr").episode_ends[-1] == ends[-1]


def test_a_slow_motion_is_no_pause(tmp_path: Path) -> None:
    fast, slow = np.linspace(0, 0.2, 40), np.linspace(0.2, 0.24, 100)
    pose = np.concatenate([fast, slow, 0.24 + fast])[:, None].astype(np.float32)
    root = zarr.open_group(tmp_path / "r.zarr", mode="w", zarr_format=2)
    for key, value in {"pose": pose, "action": pose}.items():
        root.create_array(f"data/{key}", data=value)
    root.create_array("meta/episode_ends", data=np.array([len(pose)]))
    ok_json("convert", tmp_path / "r.zarr", "--rate", 20, "--out", tmp_path / "s.zarr", "--trim-pauses")
    assert Store(tmp_path / "s.zarr").episode_ends.tolist() == [len(pose)]


def with_pauses(source: Path, target: Path, before: int, after: int) -> None:
    """Copies demonstrations; before the first one, the robot rests in its first state, and after it in its last one."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        demo = next(iter(file["data"].values()))
        for key in ("states", "actions", "intended"):
            values = demo[key][:]
            values = np.concatenate([np.repeat(values[:1], before, 0), values, np.repeat(values[-1:], after, 0)])
            if key == "states":
                values[:, 0] = values[0, 0] + 0.05 * np.arange(len(values))
            else:
                values[:before, :6] = values[len(values) - after :, :6] = 0
            del demo[key]
            demo[key] = values
        demo.attrs["num_samples"] = len(values)


def test_pauses_of_demonstrations_in_a_simulator_are_left_out(lift_demos: Path, tmp_path: Path) -> None:
    with_pauses(lift_demos, tmp_path / "pauses.hdf5", 15, 12)
    contents = ok_json("inspect", tmp_path / "pauses.hdf5")
    assert {finding["kind"] for finding in contents["lint"]} == {"pause at start", "pause at end"}
    command = ("convert", tmp_path / "pauses.hdf5", "--obs", "state", "--check", 0, "--workers", 1)
    ok_json(*command, "--out", tmp_path / "whole.zarr")
    result = ok_json(*command, "--out", tmp_path / "trimmed.zarr", "--trim-pauses")
    whole, trimmed = Store(tmp_path / "whole.zarr"), Store(tmp_path / "trimmed.zarr")
    dropped = whole.episode_ends - trimmed.episode_ends
    assert (dropped == dropped[0]).all()  # only of the first demonstration
    assert 25 <= dropped[0] <= 33  # the demonstrations may begin and end slowly
    assert any(
        note.startswith(f"pauses: {dropped[0]} of ") and note.endswith("in 1 of 2 episodes") for note in result["notes"]
    )
    keys, n = ("action", "object", "robot0_eef_pos"), int(trimmed.episode_ends[0])
    offsets = [
        k
        for k in range(dropped[0] + 1)
        if all(np.array_equal(trimmed.read(key, rows=slice(n)), whole.read(key, rows=slice(k, k + n))) for key in keys)
    ]
    assert len(offsets) == 1
    assert 14 <= offsets[0] <= 17
    for key in keys:
        others = [store.read(key, rows=slice(store.episode_ends[0], None)) for store in (trimmed, whole)]
        np.testing.assert_array_equal(*others)


def test_episodes_in_which_a_policy_acted_stay_whole(lift_demos: Path, tmp_path: Path) -> None:
    """The policy may wait in them; the actions are those of a demonstrator in such a state."""
    with_pauses(lift_demos, tmp_path / "pauses.hdf5", 15, 12)
    with h5py.File(tmp_path / "pauses.hdf5", "r+") as file:
        steps = sum(len(demo["actions"]) for demo in file["data"].values())
        for demo in file["data"].values():
            demo.attrs["policy_steps"] = demo.attrs["num_samples"]
    assert ok_json("inspect", tmp_path / "pauses.hdf5")["lint"] == []
    command = ("convert", tmp_path / "pauses.hdf5", "--obs", "state", "--check", 0, "--workers", 1)
    ok_json(*command, "--out", tmp_path / "s.zarr", "--trim-pauses")
    assert Store(tmp_path / "s.zarr").episode_ends[-1] == steps


def test_a_trimmed_demonstration_is_replayed_as_a_whole(lift_demos: Path, tmp_path: Path) -> None:
    """Its first actions are those of the pause, and the gripper follows all actions from the first state on."""
    with_pauses(lift_demos, tmp_path / "pauses.hdf5", 15, 12)
    with h5py.File(tmp_path / "pauses.hdf5") as file:
        steps = sum(len(demo["actions"]) - 1 for demo in file["data"].values())
    result = ok_json(
        "convert", tmp_path / "pauses.hdf5", "--obs", "state", "--check", 2, "--workers", 1, "--trim-pauses",
        "--out", tmp_path / "s.zarr",
    )  # fmt: skip
    assert steps / 8 <= result["check"]["chunks"] < steps / 8 + 2


def test_stores_have_no_pauses_to_leave_out(lift_zarr: Path, tmp_path: Path) -> None:
    assert "--trim-pauses does not apply" in refused(
        ddp("convert", lift_zarr, "--trim-pauses", "--out", tmp_path / "s")
    )


def test_steps_that_command_no_motion_are_left_out(lift_demos: Path, tmp_path: Path) -> None:
    """As by keyboard: between two strokes nothing is commanded. The time in which the fingers move stays."""
    shutil.copy(lift_demos, tmp_path / "keyboard.hdf5")
    with h5py.File(tmp_path / "keyboard.hdf5", "r+") as file:
        for demo in file["data"].values():
            actions = demo["actions"][:]
            actions[:, :6] += 0.001  # every step commands something
            actions[np.arange(len(actions)) % 8 >= 2, :6] = 0
            demo["actions"][:] = actions
            del demo["intended"]
        grippers = [demo["actions"][:, 6] for demo in file["data"].values()]
    (finding,) = (f for f in ok_json("inspect", tmp_path / "keyboard.hdf5")["lint"] if f["kind"] == "no command")
    assert "demo_0" in finding["episodes"]
    command = ("convert", tmp_path / "keyboard.hdf5", "--obs", "state", "--check", 0, "--workers", 1)
    ok_json(*command, "--out", tmp_path / "s.zarr", "--trim-pauses")
    ends = Store(tmp_path / "s.zarr").episode_ends
    expected = []
    for gripper in grippers:
        steps = np.arange(len(gripper))
        kept = steps % 8 < 3  # with the step in which the arm still follows the last command
        for change in np.flatnonzero(np.diff(gripper)) + 1:
            kept |= (steps >= change) & (steps < change + 12)
        expected.append(np.count_nonzero(kept))
    assert np.diff(ends, prepend=0).tolist() == pytest.approx(expected, abs=1)  # one step of a pause at an end stays
