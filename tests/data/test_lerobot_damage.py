"""Damaged and inconsistent LeRobot datasets are refused in one line, and nothing half-written stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data.lerobot_datasets import (
    ACTION,
    DATA,
    EPISODES,
    INFO,
    STATE,
    convert_dataset,
    edit_feature,
    edit_info,
    enlarge_video,
    keep_rows,
    read_column,
    shorten_video,
    video,
    write_column,
)

from ddp_cli.data.lerobot_inspection import inspect_lerobot
from ddp_cli.data.lerobot_reader import LeRobotDataset
from ddp_cli.data.parquet import write_table
from ddp_cli.data.store import Store
from ddp_cli.errors import DdpError
from ddp_cli.video.decoder import count_frames

Damage = Callable[[Path], object]


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def overwrite(dataset: Path, name: str, value: float, rows: slice = slice(None)) -> None:
    values = read_column(dataset, name)
    values[rows] = value
    write_column(dataset, name, values)


def make_ragged(dataset: Path) -> None:
    """Rows of 8 and 10 values: as many as two rows of 9."""
    rows = read_column(dataset, STATE).tolist()
    rows[3], rows[4] = rows[3][:8], [*rows[4], 0.0]
    write_column(dataset, STATE, pa.array(rows, pa.list_(pa.float32())))


def start_video_earlier(dataset: Path) -> None:
    name = "videos/observation.images.agentview/from_timestamp"
    ends = read_column_of_episodes(dataset, name.replace("from", "to"))
    write_column(dataset, name, np.array([0.0, ends[0] - 0.1]), EPISODES)


def overlap_in_video(dataset: Path) -> None:
    """Both episodes begin at the first frame."""
    name = "videos/observation.images.agentview/"
    lengths = np.array(read_column_of_episodes(dataset, "length"))
    write_column(dataset, name + "from_timestamp", np.zeros(2), EPISODES)
    write_column(dataset, name + "to_timestamp", lengths / 20, EPISODES)


def read_column_of_episodes(dataset: Path, name: str) -> list:
    return pa.parquet.read_table(dataset / EPISODES).column(name).to_pylist()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "info.json": (lambda d: (d / INFO).write_text("{"), r"info\.json' is missing or not a JSON object"),
    "version": (lambda d: edit_info(d, codebase_version="v2.1"), "LeRobot format v2.1, expected v3.0"),
    "rate": (lambda d: edit_info(d, fps=30), "it was recorded at 30 Hz, expected 20 Hz"),
    "features": (lambda d: edit_info(d, features=3), "does not describe its features"),
    "no action": (lambda d: edit_feature(d, "action", shape=[]), "'action' has no shape"),
    "shape": (lambda d: edit_feature(d, STATE, shape=[None, 9]), f"'{STATE}' has no shape"),
    "camera": (lambda d: edit_feature(d, "observation.images.agentview", shape=[96, 96, 3]), r"\[96, 96, 3\], exp"),
    "dtype": (lambda d: edit_feature(d, "observation.images.agentview", dtype="float32"), "dtype float32, exp"),
    "path outside": (lambda d: edit_info(d, data_path="../../x"), r"data_path is '\.\./\.\./x'"),
    "path template": (lambda d: edit_info(d, data_path="{nobody}"), "data_path is '{nobody}'"),
    "path width": (lambda d: edit_info(d, data_path="{file_index:09999999999d}"), "data_path is "),
    "no video path": (lambda d: edit_info(d, video_path=None), "video_path is None"),
    "no episodes": (lambda d: (d / EPISODES).unlink(), r"meta/episodes' lists no episodes"),
    "episodes": (lambda d: (d / EPISODES).write_bytes(b"PAR1"), "is damaged or not a parquet file"),
    "index": (lambda d: write_table(d / EPISODES, {"episode_index": ["x"], "length": [3]}), "episode_index is 'x'"),
    "an episode": (lambda d: keep_rows(d, [0], EPISODES), "declares 2 episodes, its tables hold 1"),
    "steps": (lambda d: edit_info(d, total_frames=9), r"declares 9 steps, its tables hold \d+"),
    "an episode twice": (lambda d: keep_rows(d, [0, 0], EPISODES), "lists episode 0 more than once"),
    "unlisted episode": (lambda d: overwrite(d, "episode_index", 7, slice(-1, None)), "rows of episode 7, which"),
    "no table": (lambda d: (d / DATA).unlink(), "1 of its 3 files is missing, the first is 'data/chunk-000/file-000"),
    "table": (lambda d: truncate(d / DATA, -9), "is damaged or not a parquet file"),
    "no column": (lambda d: write_column(d, "actions", read_column(d, ACTION)) or drop(d, ACTION), "column 'action'"),
    "width": (make_ragged, "expected 9 numbers per row in the column 'observation.state'"),
    "video": (lambda d: video(d).write_bytes(b""), "is damaged or not a video"),
    "no video": (lambda d: video(d).unlink(), "1 of its 3 files is missing, the first is 'videos/observation.images"),
    "frames of a video": (shorten_video, r"has \d+ frames, but episode 1 ends at frame \d+"),
    "size of a video": (enlarge_video, "has images of 168x168 pixels, expected 84x84"),
    "part of a video": (start_video_earlier, r"episode 1: its part of videos/observation.images.agentview lasts"),
    "parts of a video": (overlap_in_video, r"begins at frame \d+, within that of another episode"),
    "NaN": (lambda d: overwrite(d, ACTION, np.nan, slice(3, 4)), "episode 0: action is not finite in step 3"),
    "order of frames": (lambda d: keep_rows(d, [1, 0, *range(2, count(d))]), "frame_index is 1 in row 0, expected 0"),
    "a step of an episode": (lambda d: overwrite(d, "episode_index", 1, slice(0, 1)), r"0: \d+ rows for \d+ steps"),
    "index of rows": (lambda d: write_column(d, "index", read_column(d, "index") + 5), "index is 5 in row 0, exp"),
    "time": (lambda d: write_column(d, "timestamp", 2 * read_column(d, "timestamp")), "by 0.1 s after step 0, exp"),
}  # fmt: skip


def count(dataset: Path) -> int:
    return len(read_column(dataset, "index"))


def drop(dataset: Path, name: str) -> None:
    pa.parquet.write_table(pa.parquet.read_table(dataset / DATA).drop_columns([name]), dataset / DATA)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported_and_leaves_nothing(lerobot: Path, tmp_path: Path, name: str) -> None:
    """`ddp inspect` gives the same reason."""
    damage, message = DAMAGES[name]
    damage(lerobot)
    with pytest.raises(DdpError, match=message) as error:
        convert_dataset(lerobot, tmp_path / "d.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["lift"]
    if name != "info.json":
        plan = inspect_lerobot(lerobot)["ddp convert"]
        assert plan.startswith("rejects this dataset: ")
        assert error.value.message.endswith(plan.removeprefix("rejects this dataset: "))


def damage_frames(dataset: Path, part: float, change: Callable[[bytes], bytes]) -> None:
    """Changes 2 kB at `part` of the video."""
    content = bytearray(video(dataset).read_bytes())
    begin = int(part * len(content))
    content[begin : begin + 2000] = change(content[begin : begin + 2000])
    video(dataset).write_bytes(content)


def test_damaged_frames_are_found(lerobot: Path, tmp_path: Path) -> None:
    """Players conceal such damage by repeating other frames."""
    damage_frames(lerobot, 0.5, lambda part: bytes(byte ^ 16 for byte in part))
    with pytest.raises(DdpError, match=r"agentview.*mp4' is damaged"):
        convert_dataset(lerobot, tmp_path / "d.zarr")
    assert "mp4' is damaged" in inspect_lerobot(lerobot)["ddp convert"]
    assert [path.name for path in tmp_path.iterdir()] == ["lift"]


def test_zeros_among_the_frames_are_found(lerobot: Path) -> None:
    """Decoders skip them silently. Zeros between the parts of a file are padding."""
    original = video(lerobot).read_bytes()
    frames = count_frames(video(lerobot))
    for part in (0.3, 0.5, 0.7):
        damage_frames(lerobot, part, lambda part: bytes(len(part)))
        with pytest.raises(DdpError, match="mp4' is damaged"):
            count_frames(video(lerobot))
        video(lerobot).write_bytes(original)
    header, zeros = (8 + 4000).to_bytes(4, "big"), bytes(4000)
    video(lerobot).write_bytes(original + header + b"free" + zeros)
    assert count_frames(video(lerobot)) == frames
    video(lerobot).write_bytes(original + header + b"mdat" + zeros)
    with pytest.raises(DdpError, match="damaged: a part of it was overwritten with zeros, or not copied"):
        count_frames(video(lerobot))


def test_columns_of_other_types(lerobot: Path, lift_store: Store, tmp_path: Path) -> None:
    """Lists of any length in double precision, and a column whose name begins like another, change nothing."""
    write_column(lerobot, STATE, pa.array(read_column(lerobot, STATE).tolist(), pa.list_(pa.float64())))
    write_column(lerobot, "action.gripper", np.zeros(count(lerobot)))
    convert_dataset(lerobot, tmp_path / "d.zarr")
    for key in (*lift_store.task.low_dim, "action"):
        np.testing.assert_array_equal(Store(tmp_path / "d.zarr").read(key), lift_store.read(key))


def test_every_file_is_part_of_the_identity(lerobot: Path) -> None:
    hashes = [LeRobotDataset(lerobot).sha256()]
    feature = json.loads((lerobot / INFO).read_text())["features"][STATE]
    edit_feature(lerobot, STATE, names=None)
    hashes.append(LeRobotDataset(lerobot).sha256())
    edit_feature(lerobot, STATE, names=feature["names"])
    (lerobot / "meta/tasks.parquet").unlink()
    hashes.append(LeRobotDataset(lerobot).sha256())
    (lerobot / "meta/stats.json").rename(lerobot / "meta/stats2.json")
    hashes.append(LeRobotDataset(lerobot).sha256())
    assert len(set(hashes)) == 4
