"""LeRobot datasets. Written ones were also loaded with lerobot 0.4.4, and one it wrote (AV1 video) was converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import ddp, misused, ok, ok_json, refused

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.lerobot_reader import LeRobotDataset, feature_of, read_lerobot
from ddp_cli.data.lerobot_writer import write_lerobot
from ddp_cli.data.parquet import write_table
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.tasks import get_task
from ddp_cli.video.video import VideoWriter, read_video

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


@pytest.fixture(scope="module")
def written_dataset(lift_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lerobot") / "lift"
    write_lerobot(lift_store, path, no_progress)
    return path


@pytest.fixture
def dataset(written_dataset: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(written_dataset, tmp_path / "lift"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_feature(dataset: Path, name: str, shape: object) -> None:
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    edit(dataset / "meta/info.json", features=features | {name: {"dtype": "float32", "shape": shape}})


def keys(store: Store) -> list[str]:
    return [*store.image_keys, *store.task.vectors("state"), "action"]


def test_round_trip_restores_the_store(lift_store: Store, written_dataset: Path, tmp_path: Path) -> None:
    read_lerobot(LeRobotDataset(written_dataset), tmp_path / "back.zarr", None, 3, no_progress)
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


def test_round_trip_without_images(lift_demos: Path, tmp_path: Path) -> None:
    convert(lift_demos, tmp_path / "s.zarr", 1, no_progress, ConvertOptions("state", check=0))
    write_lerobot(Store(tmp_path / "s.zarr"), tmp_path / "d", no_progress)
    read_lerobot(LeRobotDataset(tmp_path / "d"), tmp_path / "back.zarr", None, 3, no_progress)
    store, back = Store(tmp_path / "s.zarr"), Store(tmp_path / "back.zarr")
    assert (back.attrs["obs"], back.image_keys) == ("state", [])
    np.testing.assert_array_equal(back.read("object"), store.read("object"))


def test_layout_matches_what_lerobot_reads(lift_store: Store, written_dataset: Path) -> None:
    """Rows, timestamps and statistics as its loader expects them."""
    info = json.loads((written_dataset / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 20, 2)
    rows = pyarrow.parquet.read_table(written_dataset / DATA).to_pydict()
    first, total = (int(end) for end in lift_store.episode_ends)
    assert rows["index"] == list(range(total))
    assert rows["episode_index"] == [0] * first + [1] * (total - first)
    assert rows["frame_index"][first - 1 : first + 2] == [first - 1, 0, 1]
    assert rows["timestamp"][first + 1] == pytest.approx(0.05)
    second = pyarrow.parquet.read_table(written_dataset / EPISODES).to_pylist()[1]
    video = f"videos/{feature_of('agentview_image')}"
    assert (second["dataset_from_index"], second["dataset_to_index"], second["length"]) == (first, total, total - first)
    assert second[f"{video}/from_timestamp"] == pytest.approx(first / 20)
    frames = read_video(written_dataset / video / "chunk-000/file-000.mp4")
    np.testing.assert_array_equal(frames[first], lift_store.read("agentview_image")[first])
    stats = json.loads((written_dataset / "meta/stats.json").read_text())
    images = lift_store.read("agentview_image").reshape(-1, 3) / 255
    for name, value in (("mean", images.mean(0)), ("std", images.std(0)), ("max", images.max(0))):
        np.testing.assert_allclose(np.ravel(stats["observation.images.agentview"][name]), value, atol=1e-9)
    np.testing.assert_allclose(stats["action"]["std"], lift_store.read("action").std(0), atol=1e-6)


def test_dataset_of_other_tools_needs_task_and_actions(dataset: Path, lift_store: Store, tmp_path: Path) -> None:
    (dataset / "meta/ddp.json").unlink()
    with pytest.raises(DdpError, match=r"does not name its task\. Name it, for example --task"):
        LeRobotDataset(dataset)
    with pytest.raises(DdpError, match="its action convention"):
        LeRobotDataset(dataset, get_task("lift"))
    with pytest.raises(DdpError, match=r"environment_state has shape \[10\], expected \[14\] for the task 'square'"):
        LeRobotDataset(dataset, get_task("square"), "delta")
    read_lerobot(LeRobotDataset(dataset, get_task("lift"), "delta"), tmp_path / "d.zarr", "1:", 3, no_progress)
    last = Store(tmp_path / "d.zarr")
    begin = int(lift_store.episode_ends[0])
    for key in keys(lift_store):
        np.testing.assert_array_equal(last.read(key), lift_store.read(key, rows=slice(begin, None)))
    assert last.attrs["render"] == "full"


def test_absolute_actions_with_axis_angle_rotation(dataset: Path, tmp_path: Path) -> None:
    """Many tools record 7 values; a store holds rotation-6d."""
    (dataset / "meta/ddp.json").unlink()
    rows = pyarrow.parquet.read_table(dataset / DATA).to_pydict()
    rows["action"] = np.tile(np.array([0.1, 0.2, 1.0, 0, 0, np.pi / 2, -1], np.float32), (len(rows["index"]), 1))
    rows |= {name: np.array(rows[name], np.float32) for name in rows if name.startswith("observation")}
    write_table(dataset / DATA, rows)
    read_lerobot(LeRobotDataset(dataset, get_task("lift"), "absolute"), tmp_path / "d.zarr", None, 3, no_progress)
    quarter_turn = [0.1, 0.2, 1.0, 0, -1, 0, 1, 0, 0, -1]
    np.testing.assert_allclose(Store(tmp_path / "d.zarr").read("action")[3], quarter_turn, atol=1e-6)


def test_episodes_may_be_in_any_order(dataset: Path, lift_store: Store, tmp_path: Path) -> None:
    """LeRobot starts new files as it likes, and the rows of a file may be in any order of episodes."""
    rows = pyarrow.parquet.read_table(dataset / EPISODES).to_pydict()
    columns = {name: list(reversed(values)) for name, values in rows.items()}
    write_table(dataset / EPISODES, columns)
    read_lerobot(LeRobotDataset(dataset), tmp_path / "d.zarr", None, 3, no_progress)
    np.testing.assert_array_equal(
        Store(tmp_path / "d.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def video(dataset: Path) -> Path:
    return dataset / "videos/observation.images.agentview/chunk-000/file-000.mp4"


def damage_video(dataset: Path, content: bytes | None) -> None:
    video(dataset).unlink()
    if content is not None:
        video(dataset).write_bytes(content)


def shorten_video(dataset: Path) -> None:
    frames = read_video(video(dataset))
    with VideoWriter(video(dataset), lossless=True) as writer:
        for frame in frames[:-3]:
            writer.add(frame)


def overwrite_column(dataset: Path, name: str, value: float) -> None:
    rows = {key: np.array(column) for key, column in pyarrow.parquet.read_table(dataset / DATA).to_pydict().items()}
    rows[name][...] = value
    write_table(dataset / DATA, rows)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "meta/info.json").write_text("{"), r"info\.json' is missing or not a JSON object"),
        (lambda d: edit(d / "meta/info.json", codebase_version="v2.1"), "'v2.1', expected 'v3.0'.*dataset_v21_to_v30"),
        (lambda d: edit(d / "meta/info.json", fps=30), "recorded at 30 Hz, expected 20 Hz"),
        (lambda d: edit(d / "meta/info.json", features=3), "does not describe its features"),
        (lambda d: edit_feature(d, "action", []), "does not describe its features"),
        (lambda d: edit_feature(d, "observation.state", [None, 9]), "does not describe its features"),
        (lambda d: edit(d / "meta/info.json", data_path="../../x"), r"data_path is '\.\./\.\./x'"),
        (lambda d: edit(d / "meta/info.json", data_path="{nobody}"), "data_path is '{nobody}'"),
        (lambda d: (d / EPISODES).unlink(), "has no episodes"),
        (lambda d: (d / EPISODES).write_bytes(b"PAR1"), "is damaged or not a parquet file"),
        (lambda d: write_table(d / EPISODES, {"episode_index": ["x"], "length": [3]}), "episode_index is 'x'"),
        (lambda d: (d / DATA).unlink(), r"no file '.*data/chunk-000/file-000\.parquet'"),
        (lambda d: (d / DATA).write_bytes((d / DATA).read_bytes()[:-9]), "is damaged or not a parquet file"),
        (lambda d: write_table(d / DATA, {"action": [1, 2]}), "has no column 'observation.state'"),
        (lambda d: damage_video(d, b""), "is damaged or not a video"),
        (lambda d: damage_video(d, None), r"no file '.*\.mp4'"),
        (shorten_video, "images have shape .*, expected"),
        (lambda d: overwrite_column(d, "action", np.nan), "episode 0: action is not finite"),
        (lambda d: overwrite_column(d, "episode_index", 7), "episode 0: 0 rows for"),
    ],
)  # fmt: skip
def test_damage_is_reported_and_leaves_nothing(dataset: Path, tmp_path: Path, damage, message: str) -> None:
    damage(dataset)
    with pytest.raises(DdpError, match=message):
        read_lerobot(LeRobotDataset(dataset), tmp_path / "d.zarr", None, 3, no_progress)
    assert [path.name for path in tmp_path.iterdir()] == ["lift"]


def test_interrupted_write_leaves_nothing(lift_store: Store, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lerobot(lift_store, tmp_path / "d", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_conversion_is_resumed(written_dataset: Path, lift_store: Store, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_lerobot(LeRobotDataset(written_dataset), tmp_path / "d.zarr", None, 3, interrupt)
    steps_done: list[int] = []
    read_lerobot(LeRobotDataset(written_dataset), tmp_path / "d.zarr", None, 3, lambda done, _: steps_done.append(done))
    assert steps_done == list(lift_store.episode_ends)
    np.testing.assert_array_equal(
        Store(tmp_path / "d.zarr").read("agentview_image"), lift_store.read("agentview_image")
    )


def test_convert_to_lerobot_and_back(lift_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'lerobot'" in misused(ddp("convert", lift_zarr, "--to", "lerobots", "--out", "d"))
    assert "--out" in refused(ddp("convert", lift_zarr, "--to", "lerobot"))
    slicing = refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", "d", "--only", ":1"))
    assert "--only does not apply" in slicing
    assert ok_json("convert", lift_zarr, "--to", "lerobot", "--out", "d")["episodes"] == 2
    assert "--overwrite" in refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", "d"))
    assert "--check does not apply" in refused(ddp("convert", "d", "--check", "1"))
    assert "has delta actions, not absolute ones" in refused(ddp("convert", "d", "--actions", "absolute"))
    assert "'foo'" in misused(ddp("convert", lift_zarr, "--out", "x.zarr", "--actions", "foo"))
    assert "cannot be replaced" in refused(ddp("convert", lift_zarr, "--to", "lerobot", "--out", ".", "--overwrite"))
    assert "--to does not apply" in refused(ddp("convert", "d", "--to", "lerobot"))
    output = ok(ddp("convert", "d")).stdout
    assert "data/lift.zarr: 2 episodes" in output
    assert "not verified" in output
