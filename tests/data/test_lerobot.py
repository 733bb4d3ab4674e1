"""LeRobot datasets. Written ones were also loaded with lerobot 0.4.4, and one it wrote (AV1 video) was converted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import ddp, misused, ok, ok_json, read_video, refused
from data.lerobot_datasets import ACTION, DATA, EPISODES, convert_dataset, forget_origin, no_progress, write_column

from ddp_cli.data.actions import delta_to_absolute, rotation_6d_to_axis_angle
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.lerobot_conversion import convert_lerobot
from ddp_cli.data.lerobot_layout import feature_of
from ddp_cli.data.lerobot_reader import LeRobotDataset
from ddp_cli.data.lerobot_writer import write_lerobot
from ddp_cli.data.parquet import write_table
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.tasks import get_task


def keys(store: Store) -> list[str]:
    return [*store.image_keys, *store.task.vectors("state"), "action"]


def test_round_trip_restores_the_store(lift_store: Store, written_lerobot: Path, tmp_path: Path) -> None:
    convert_lerobot(LeRobotDataset(written_lerobot), tmp_path / "back.zarr", None, 3, no_progress)
    back = Store(tmp_path / "back.zarr")
    assert set(keys(back)) == {
        "agentview_image",
        "robot0_eye_in_hand_image",
        "object",
        *get_task("lift").low_dim,
        "action",
    }
    for key in keys(lift_store):
        np.testing.assert_array_equal(back.read(key), lift_store.read(key))
    assert list(back.episode_ends) == list(lift_store.episode_ends)
    for name in ("render", "env_args", "versions", "action"):
        assert back.attrs[name] == lift_store.attrs[name]
    assert back.check["result"] == "not verified"


def test_a_round_trip_keeps_what_policies_did(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lift_store.attrs["source"], "policy_episodes", {"demo_1": False})
    monkeypatch.setitem(lift_store.attrs["source"], "takeovers", {"demo_1": [[2, 5]]})
    write_lerobot(lift_store, tmp_path / "lift", lambda *_: None)
    ok(ddp("convert", tmp_path / "lift", "--out", tmp_path / "all.zarr"))
    store = Store(tmp_path / "all.zarr")
    assert store.episode_names == lift_store.episode_names
    assert (store.policy_episodes, store.takeovers) == ({"demo_1": False}, {"demo_1": [[2, 5]]})
    ok(ddp("convert", tmp_path / "lift", "--only", ":1", "--out", tmp_path / "first.zarr"))
    assert Store(tmp_path / "first.zarr").policy_episodes == {}


def test_round_trip_without_images(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, no_progress, ConvertOptions("state", check=0))
    write_lerobot(Store(tmp_path / "s.zarr"), tmp_path / "d", no_progress)
    convert_lerobot(LeRobotDataset(tmp_path / "d"), tmp_path / "back.zarr", None, 3, no_progress)
    store, back = Store(tmp_path / "s.zarr"), Store(tmp_path / "back.zarr")
    assert (back.attrs["obs"], back.image_keys) == ("state", [])
    np.testing.assert_array_equal(back.read("object"), store.read("object"))


def test_layout_matches_what_lerobot_reads(lift_store: Store, written_lerobot: Path) -> None:
    """Rows, timestamps and statistics as its loader expects them."""
    info = json.loads((written_lerobot / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 20, 2)
    rows = pyarrow.parquet.read_table(written_lerobot / DATA).to_pydict()
    first, total = (int(end) for end in lift_store.episode_ends)
    assert rows["index"] == list(range(total))
    assert rows["episode_index"] == [0] * first + [1] * (total - first)
    assert rows["frame_index"][first - 1 : first + 2] == [first - 1, 0, 1]
    assert rows["timestamp"][first + 1] == pytest.approx(0.05)
    second = pyarrow.parquet.read_table(written_lerobot / EPISODES).to_pylist()[1]
    video = f"videos/{feature_of('agentview_image')}"
    assert (second["dataset_from_index"], second["dataset_to_index"], second["length"]) == (first, total, total - first)
    assert second[f"{video}/from_timestamp"] == pytest.approx(first / 20)
    frames = read_video(written_lerobot / video / "chunk-000/file-000.mp4")
    np.testing.assert_array_equal(frames[first], lift_store.read("agentview_image")[first])
    stats = json.loads((written_lerobot / "meta/stats.json").read_text())
    images = lift_store.read("agentview_image").reshape(-1, 3) / 255
    for name, value in (("mean", images.mean(0)), ("std", images.std(0)), ("max", images.max(0))):
        np.testing.assert_allclose(np.ravel(stats["observation.images.agentview"][name]), value, atol=1e-9)
    np.testing.assert_allclose(stats["action"]["std"], lift_store.read("action").std(0), atol=1e-6)


def test_dataset_of_other_tools_needs_task_and_actions(lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    forget_origin(lerobot)
    both = (
        r"does not name its task; it does not state its action convention\. Add --task lift, .* Add --actions delta or"
    )
    with pytest.raises(DdpError, match=both):
        LeRobotDataset(lerobot)
    with pytest.raises(DdpError, match="converted: it does not state its action convention"):
        LeRobotDataset(lerobot, get_task("lift"))
    with pytest.raises(DdpError, match=r"environment_state has shape \[10\].*, expected \[14\] for the task 'square'"):
        LeRobotDataset(lerobot, get_task("square"), "delta")
    convert_dataset(lerobot, tmp_path / "d.zarr", "delta", "1:")
    last = Store(tmp_path / "d.zarr")
    begin = int(lift_store.episode_ends[0])
    for key in keys(lift_store):
        np.testing.assert_array_equal(last.read(key), lift_store.read(key, rows=slice(begin, None)))
    assert last.attrs["render"] == "full"


def test_absolute_actions_with_axis_angle_rotation(lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    """Many tools record 7 values; a store holds rotation-6d."""
    forget_origin(lerobot)
    goals = delta_to_absolute(*(lift_store.read(key) for key in ("action", "robot0_eef_pos", "robot0_eef_quat")))
    write_column(lerobot, ACTION, rotation_6d_to_axis_angle(goals))
    convert_dataset(lerobot, tmp_path / "d.zarr", "absolute")
    np.testing.assert_allclose(Store(tmp_path / "d.zarr").read("action"), goals, atol=1e-6)


def test_episodes_may_be_in_any_order(lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    """LeRobot starts new files as it likes, and the rows of a file may be in any order of episodes."""
    rows = pyarrow.parquet.read_table(lerobot / EPISODES).to_pydict()
    columns = {name: list(reversed(values)) for name, values in rows.items()}
    write_table(lerobot / EPISODES, columns)
    convert_lerobot(LeRobotDataset(lerobot), tmp_path / "d.zarr", None, 3, no_progress)
    np.testing.assert_array_equal(
        Store(tmp_path / "d.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def test_interrupted_write_leaves_nothing(lift_store: Store, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lerobot(lift_store, tmp_path / "d", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_conversion_is_resumed(written_lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_lerobot(LeRobotDataset(written_lerobot), tmp_path / "d.zarr", None, 3, interrupt)
    steps_done: list[int] = []
    convert_lerobot(
        LeRobotDataset(written_lerobot), tmp_path / "d.zarr", None, 3, lambda done, _: steps_done.append(done)
    )
    assert steps_done == list(lift_store.episode_ends)
    np.testing.assert_array_equal(
        Store(tmp_path / "d.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def test_convert_to_lerobot_and_back(lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'lerobot'" in misused(ddp("convert", lift_zarr, "--to", "lerobots", "--out", "d"))
    assert "--out" in refused(ddp("convert", lift_zarr, "--to", "lerobot"))
    slicing = refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", "d", "--only", ":1"))
    assert "--only does not go with --to lerobot. Make a store first: `ddp convert" in slicing
    assert ok_json("convert", lift_zarr, "--to", "lerobot", "--out", "d")["episodes"] == 2
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", "d"))
    assert "--skip-bad does not apply" in refused(ddp("convert", "d", "--skip-bad"))
    assert "has delta actions, not absolute ones" in refused(ddp("convert", "d", "--actions", "absolute"))
    assert "'foo'" in misused(ddp("convert", lift_zarr, "--out", "x.zarr", "--actions", "foo"))
    assert "cannot be replaced" in refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", ".", "--overwrite"))
    assert "--to does not apply" in refused(ddp("convert", "d", "--to", "lerobot"))
    output = ok(ddp("convert", "d")).stdout
    assert "data/lift.zarr: 2 episodes" in output
    assert "not verified" in output
