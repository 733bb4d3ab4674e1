"""Datasets of every format are described; the last row says what `ddp convert` does, with the same reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ddp, ok, ok_json, refused
from data.lerobot_datasets import (
    edit_feature,
    edit_info,
    forget_origin,
    read_column,
    to_version_2,
    video,
    write_column,
    write_version_1,
)

from ddp_cli.data.inspection import describe_source, inspect_source
from ddp_cli.data.store import Store
from ddp_cli.tasks import get_task

ROWS = ["kind", "robot", "episodes", "steps", "rate", "features", "videos", "files", "ddp convert"]


def test_own_dataset(lerobot: Path, lift_store: Store) -> None:
    contents = inspect_source(lerobot)
    steps = int(lift_store.episode_ends[-1])
    assert list(contents) == ROWS
    assert contents["kind"] == "LeRobot dataset, format v3.0"
    assert (contents["robot"], contents["episodes"], contents["steps"]) == ("panda", 2, steps)
    assert (contents["rate"], contents["files"]) == ("20 Hz", "all 3 are there")
    assert "observation.images.agentview video [84, 84, 3]; " in contents["features"]
    assert "action float32 [7]; " in contents["features"]
    assert contents["videos"].startswith("observation.images.agentview: 1 files of 84x84, 20 Hz, h264; ")
    assert contents["ddp convert"] == (
        f"writes a store of the task 'lift': 2 episodes, {steps} steps, delta actions, not verified; images are "
        "decoded."
    )
    assert dict(describe_source(contents)) == {name: str(value) for name, value in contents.items()}


def test_dataset_of_other_tools(lerobot: Path) -> None:
    forget_origin(lerobot)
    plan = "takes agentview, robot0_eye_in_hand, state, environment_state and the actions as they were recorded"
    assert inspect_source(lerobot)["ddp convert"].startswith(plan)
    plan = inspect_source(lerobot, get_task("lift"))["ddp convert"]
    assert "With --actions delta it writes a store of the task 'lift': 2 episodes" in plan
    assert "With --actions absolute it rejects this dataset: episode 0: its actions are goals" in plan
    wrong_task = inspect_source(lerobot, get_task("can"))["ddp convert"]
    assert "observation.environment_state has shape [10]" in wrong_task


def convert_and_inspect(dataset: Path, *options: str) -> tuple[str, str]:
    """The reason that `ddp convert` gives, and the one of `ddp inspect`."""
    error = refused(ddp("convert", dataset, "--out", dataset.parent / "x.zarr", *options))
    plan = ok_json("inspect", dataset, *options[:2])["ddp convert"]
    assert plan.startswith("rejects this dataset: ")
    return error, plan.removeprefix("rejects this dataset: ")


def test_version_2(lerobot: Path, lift_store: Store) -> None:
    """All reasons hold against a task of robosuite: the format, the rate and the robot."""
    forget_origin(lerobot)
    to_version_2(lerobot)
    edit_info(lerobot, fps=30)
    edit_feature(lerobot, "action", shape=[26], names=[[f"joint_{i}" for i in range(26)]])
    contents = inspect_source(lerobot)
    assert contents["kind"] == "LeRobot dataset, format v2.1"
    assert contents["episodes"] == 2
    assert contents["files"] == (
        "4 of 6 are missing, the first is videos/chunk-000/observation.images.agentview/episode_000000.mp4"
    )
    error, reason = convert_and_inspect(lerobot, "--task", "lift", "--actions", "delta")
    assert "it was recorded at 30 Hz, expected 20 Hz; its actions have shape [26]" in error
    assert reason == (
        "it has LeRobot format v2.1, expected v3.0; it was recorded at 30 Hz, expected 20 Hz; its actions have shape "
        "[26] (joint_0, joint_1, joint_2, ...), expected a width of 7 or 10; 4 of its 6 files are missing, the first "
        "is 'videos/chunk-000/observation.images.agentview/episode_000000.mp4'."
    )


def test_version_2_names_rows_and_files_that_differ(lerobot: Path) -> None:
    """Some tools call the chunk `chunk_index` in its templates."""
    to_version_2(lerobot)
    edit_info(lerobot, data_path="data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet", total_episodes=3)
    episodes = lerobot / "meta/episodes.jsonl"
    first, second = (json.loads(line) for line in episodes.read_text().splitlines())
    episodes.write_text(json.dumps(first | {"length": 7}) + "\n" + json.dumps(second))
    contents = inspect_source(lerobot)
    assert contents["episodes"] == "2 found, 3 declared"
    assert contents["damaged"] == f"episode 0 has {first['length']} rows, meta/episodes.jsonl says 7"
    assert contents["files"].startswith("7 of 9 are missing, the first is videos/")


def test_version_1(tmp_path: Path, lift_store: Store) -> None:
    for name in ("a", "b"):
        write_version_1(tmp_path / name, lift_store.read("agentview_image")[:12])
    contents = inspect_source(tmp_path / "a")
    assert contents["kind"] == "LeRobot dataset, format v1"
    assert (contents["episodes"], contents["steps"], contents["rate"]) == (1, 12, "10 Hz")
    assert contents["videos"] == "observation.image: 1 files of 84x84, 20 Hz, h264"
    assert "observation.state float [3]" in contents["features"]
    error, reason = convert_and_inspect(tmp_path / "a", "--task", "lift", "--actions", "delta")
    assert "it has LeRobot format v1, expected v3.0; it was recorded at 10 Hz, expected 20 Hz" in error
    assert reason.split(";")[:2] == error.split(": ", 2)[2].split(";")[:2]
    (tmp_path / "b/videos/observation.image_episode_000000.mp4").unlink()
    assert inspect_source(tmp_path / "b")["files"] == (
        "1 of 2 are missing, the first is videos/observation.image_episode_000000.mp4"
    )
    for command in ("inspect", "convert"):
        assert "holds 2 LeRobot datasets. Name one of them: a, b." in refused(ddp(command, tmp_path))


def test_damaged_files_are_described(lerobot: Path) -> None:
    video(lerobot).write_bytes(b"nothing")
    contents = inspect_source(lerobot)
    assert contents["videos"].startswith("observation.images.agentview: 1 files, the first is damaged or not a video; ")
    (lerobot / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    assert "file-000.parquet' is damaged or not a parquet file." in inspect_source(lerobot)["damaged"]


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, -1, 1e300, True, ["x"], {"x": {}}])
@pytest.mark.parametrize(
    "name",
    ["codebase_version", "fps", "features", "data_path", "video_path", "total_episodes", "total_frames", "robot_type"],
)
def test_any_info_is_described(lerobot: Path, name: str, value: object) -> None:
    """No value of info.json ends `ddp inspect`."""
    edit_info(lerobot, **{name: value})
    contents = inspect_source(lerobot)
    assert contents["ddp convert"]
    json.dumps(contents)
    if name in ("fps", "features", "data_path", "codebase_version"):
        assert contents["ddp convert"].startswith("rejects this dataset: ")


def test_notes_are_printed(lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    names = [f"robot0_eef_quat_{i}" for i in range(4)] + [f"robot0_eef_pos_{i}" for i in range(3)]
    edit_feature(lerobot, "observation.state", names=[*names, "robot0_gripper_qpos_0", "robot0_gripper_qpos_1"])
    assert "quaternion of step 0 has norm" in refused(ddp("convert", lerobot, "--out", tmp_path / "d.zarr"))
    write_column(
        lerobot, "observation.state", read_column(lerobot, "observation.state")[:, [3, 4, 5, 6, 0, 1, 2, 7, 8]]
    )
    note = "observation.state: values reordered as their names say"
    assert f"note: {note}\n" in ok(ddp("convert", lerobot, "--out", tmp_path / "d.zarr")).stdout
    assert ok_json("convert", lerobot, "--out", tmp_path / "e.zarr")["notes"] == [note]
    np.testing.assert_array_equal(Store(tmp_path / "d.zarr").read("robot0_eef_pos"), lift_store.read("robot0_eef_pos"))
