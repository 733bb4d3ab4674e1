"""LeRobot datasets of any robot: an arm of 14 joints at 50 Hz with three cameras, in format v3.0 and its v2.1 twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ddp, ok, ok_json, refused

from ddp_cli.data.lerobot_recording import LeRobotRecording
from ddp_cli.data.parquet import write_table
from ddp_cli.data.recording_schema import infer_schema
from ddp_cli.data.store import Store
from ddp_cli.resize import resize
from ddp_cli.video.video import VideoWriter

LENGTHS = [6, 9, 4]
CAMERAS = {"top": (32, 48), "left_wrist": (16, 24), "right_wrist": (24, 16)}
JOINTS = [f"{side}_joint_{i}" for side in ("left", "right") for i in range(7)]
RATE = 50


def make_values(episode: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Vectors (n, 14) and images (n, H, W, 3) of an episode."""
    rng, n = np.random.default_rng(episode), LENGTHS[episode]
    vectors = {name: rng.normal(size=(n, 14)).astype(np.float32) for name in ("observation.state", "action")}
    return vectors, {key: rng.integers(0, 256, (n, *size, 3), np.uint8) for key, size in CAMERAS.items()}


def write_video(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, RATE, lossless=True) as video:
        for image in images:
            video.add(image)


def columns_of(episode: int, first_row: int) -> dict[str, Any]:
    n = LENGTHS[episode]
    return make_values(episode)[0] | {
        "timestamp": np.arange(n) / RATE, "frame_index": np.arange(n), "episode_index": np.full(n, episode),
        "index": first_row + np.arange(n), "task_index": np.zeros(n, int),
    }  # fmt: skip


def write_info(path: Path, version: str, data: str, video: str) -> None:
    vector = {"dtype": "float32", "shape": [14], "names": {"motors": JOINTS}}
    features: dict[str, Any] = {"observation.state": vector, "action": vector}
    for i, (key, size) in enumerate(CAMERAS.items()):
        # The order of the declared shape differs between tools.
        features[f"observation.images.{key}"] = {"dtype": "video", "shape": [*size, 3] if i else [3, *size]}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1]}
    features["timestamp"] = {"dtype": "float32", "shape": [1]}
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(
        json.dumps({
            "codebase_version": version, "fps": RATE, "features": features, "data_path": data, "video_path": video,
            "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "chunks_size": 2,
        })
    )  # fmt: skip


def write_v3(path: Path) -> Path:
    write_info(
        path, "v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )  # fmt: skip
    ends = np.cumsum(LENGTHS)
    starts = ends - LENGTHS
    parts = [columns_of(i, int(start)) for i, start in enumerate(starts)]
    write_table(path / "data/chunk-000/file-000.parquet", {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    episodes: dict[str, Any] = {
        "episode_index": np.arange(3), "length": np.array(LENGTHS), "tasks": [["insert the peg"]] * 3,
        "data/chunk_index": np.zeros(3, int), "data/file_index": np.zeros(3, int), "dataset_from_index": starts,
    }  # fmt: skip
    for key in CAMERAS:
        feature = f"videos/observation.images.{key}"
        episodes |= {f"{feature}/{name}_index": np.zeros(3, int) for name in ("chunk", "file")}
        episodes |= {f"{feature}/from_timestamp": starts / RATE, f"{feature}/to_timestamp": ends / RATE}
        images = np.concatenate([make_values(i)[1][key] for i in range(3)])
        write_video(path / f"videos/observation.images.{key}/chunk-000/file-000.mp4", images)
    write_table(path / "meta/episodes/chunk-000/file-000.parquet", episodes)
    return path


def write_v2(path: Path) -> Path:
    write_info(
        path, "v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )  # fmt: skip
    lines, first_row = [], 0
    for i, n in enumerate(LENGTHS):
        write_table(path / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet", columns_of(i, first_row))
        for key, images in make_values(i)[1].items():
            write_video(path / f"videos/chunk-{i // 2:03d}/observation.images.{key}/episode_{i:06d}.mp4", images)
        lines.append(json.dumps({"episode_index": i, "length": n, "tasks": ["insert the peg"]}))
        first_row += n
    (path / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return path


WRITERS = {"v3.0": write_v3, "v2.1": write_v2}


@pytest.mark.parametrize("version", WRITERS)
def test_a_dataset_is_taken_as_it_is(tmp_path: Path, version: str) -> None:
    path = WRITERS[version](tmp_path / "peg")
    result = ok_json("convert", path, "--out", tmp_path / "s.zarr")
    assert (result["task"], result["episodes"], result["frames"], result["notes"]) == (
        "peg",
        3,
        19,
        ["instruction: insert the peg"],
    )
    store = Store(tmp_path / "s.zarr")
    schema = store.task.schema
    assert (schema.rate, schema.action[0].names, schema.vectors["state"].names) == (RATE, tuple(JOINTS), tuple(JOINTS))
    assert {key: camera.shape[:2] for key, camera in schema.cameras.items()} == CAMERAS
    for i, (begin, end) in enumerate(store.episode_bounds):
        vectors, images = make_values(i)
        np.testing.assert_array_equal(store.read("state", rows=slice(begin, end)), vectors["observation.state"])
        np.testing.assert_array_equal(store.read("action", rows=slice(begin, end)), vectors["action"])
        for key, expected in images.items():
            np.testing.assert_array_equal(store.read(key, rows=slice(begin, end)), expected)


@pytest.mark.parametrize("version", WRITERS)
def test_episodes_and_arrays_are_selected(tmp_path: Path, version: str) -> None:
    path = WRITERS[version](tmp_path / "peg")
    keys = "top,left=observation.state[0:7]"
    ok(ddp("convert", path, "--out", tmp_path / "s.zarr", "--only", "1:", "--keys", keys, "--task", "insertion"))
    store = Store(tmp_path / "s.zarr")
    assert (store.task.name, store.image_keys, list(store.task.low_dim)) == ("insertion", ["top"], ["left"])
    np.testing.assert_array_equal(store.read("top", rows=slice(0, 9)), make_values(1)[1]["top"])
    np.testing.assert_array_equal(store.read("left", rows=slice(0, 9)), make_values(1)[0]["observation.state"][:, :7])


def test_missing_videos_are_named_with_their_episodes(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "peg")
    (path / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    command = ("convert", path, "--out", tmp_path / "s.zarr")
    error = " ".join(refused(ddp(*command)).split())
    assert "episode 1: no file 'videos/chunk-000/observation.images.top/episode_000001.mp4'. Leave such" in error
    assert not (tmp_path / "s.zarr").exists()
    assert "1 episodes have faults, the first is episode 1" in ok_json("inspect", path)["ddp convert"]
    result = ok_json(*command, "--skip-bad")
    assert (result["episodes"], list(result["left_out"])) == (2, ["1"])
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read("top")[6:], make_values(2)[1]["top"])
    for i in (0, 2):
        (path / f"videos/chunk-{i // 2:03d}/observation.images.top/episode_{i:06d}.mp4").unlink()
    result = ok_json(*command, "--overwrite")
    assert (result["episodes"], "top" in result["schema"]["cameras"]) == (3, False)
    assert result["notes"] == [
        "observation.images.top: none of its videos is there, it is not observed", "instruction: insert the peg",
    ]  # fmt: skip


def test_frames_of_another_episode_are_not_taken(tmp_path: Path) -> None:
    """In v3.0 a video holds many episodes, and the metadata says which frames are of which."""
    path = write_v3(tmp_path / "peg")
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    columns = pq.read_table(file).to_pydict()
    name = "videos/observation.images.top"
    columns[f"{name}/from_timestamp"][1] -= 2 / RATE  # within episode 0
    columns[f"{name}/to_timestamp"][2] += 2 / RATE  # longer than its 4 steps
    write_table(file, {key: value if key == "tasks" else np.array(value) for key, value in columns.items()})
    command = ("convert", path, "--out", tmp_path / "s.zarr")
    left_out = ok_json(*command, "--skip-bad")["left_out"]
    columns[f"{name}/from_timestamp"][1] += 1 / RATE  # a frame is within the precision of times
    columns[f"{name}/to_timestamp"][2] -= 1 / RATE
    write_table(file, {key: value if key == "tasks" else np.array(value) for key, value in columns.items()})
    assert ok_json(*command, "--overwrite")["episodes"] == 3
    assert left_out == {
        "1": "its part of the video of observation.images.top begins within that of another episode",
        "2": "its part of the video of observation.images.top has 6 frames for 4 steps",
    }
    assert ok_json(*command, "--keys", "left_wrist,state", "--overwrite")["episodes"] == 3


@pytest.mark.parametrize("version", WRITERS)
def test_a_camera_that_is_not_rgb_is_left_out(tmp_path: Path, version: str) -> None:
    path = WRITERS[version](tmp_path / "peg")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.depth"] = {"dtype": "video", "shape": [48, 64, 1]}
    (path / "meta/info.json").write_text(json.dumps(info))
    fault = "its images have shape [48, 64, 1], expected 3 channels (RGB)"
    note = f"observation.images.depth: {fault}; it is not observed"
    assert note in ok_json("inspect", path)["ddp convert"]
    result = ok_json("convert", path, "--out", tmp_path / "s.zarr")
    assert (list(result["schema"]["cameras"]), result["notes"][0]) == (list(CAMERAS), note)
    error = " ".join(refused(ddp("convert", path, "--out", tmp_path / "t.zarr", "--keys", "top,depth")).split())
    assert f"has 'observation.images.depth', but {fault}. It has observation.state, action, observation" in error


@pytest.mark.parametrize("version", WRITERS)
def test_states_of_the_same_name_are_all_observed(tmp_path: Path, version: str) -> None:
    """As AgiBot names them."""
    path = WRITERS[version](tmp_path / "peg")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"] |= {
        f"observation.states.{name}.position": {"dtype": "float32", "shape": [width]}
        for name, width in (("joint", 14), ("effector", 2), ("head", 2))
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    vectors = {key: vector.width for key, vector in infer_schema(LeRobotRecording(path)).vectors.items()}
    assert vectors == {"state": 14, "joint_position": 14, "effector_position": 2, "head_position": 2}


def test_actions_that_seem_to_be_velocities_are_named(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "peg")
    info = json.loads((path / "meta/info.json").read_text())
    width = info["features"]["action"]["shape"][0]
    info["features"]["action"]["names"] = ["x.vel", *(f"joint_{i}.pos" for i in range(1, width))]
    info["features"]["observation.tactile"] = {"dtype": "float32", "shape": [4, 4]}
    (path / "meta/info.json").write_text(json.dumps(info))
    notes = ok_json("convert", path, "--out", tmp_path / "s.zarr")["notes"]
    assert any(note.startswith("the action 'x.vel' seems to be a motion") for note in notes)
    reason = "its values have shape [4, 4], expected one dimension"
    assert f"observation.tactile: {reason}; it is not observed" in notes
    error = refused(ddp("convert", path, "--out", tmp_path / "t.zarr", "--keys", "observation.tactile"))
    assert f"has 'observation.tactile', but {reason}" in " ".join(error.split())


def test_oddities_are_named(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "peg")
    write_video(path / "videos/chunk-000/observation.images.top/episode_000000.mp4", np.zeros((6, 32, 48, 3), np.uint8))
    columns = columns_of(1, 6)
    columns["timestamp"][5:] += 0.1
    del columns["index"], columns["task_index"]
    write_table(path / "data/chunk-000/episode_000001.parquet", columns)
    notes = ok_json("convert", path, "--out", tmp_path / "s.zarr")["notes"]
    assert notes == [
        "instruction: insert the peg",
        "the time between 1 of 16 steps is not 20 ms (within 10%): frames may be missing, or the clock is uneven",
        "episode 0: top has a single color in all steps",
    ]
    columns["frame_index"][4] = 9
    write_table(path / "data/chunk-000/episode_000001.parquet", columns)
    error = refused(ddp("convert", path, "--out", tmp_path / "t.zarr"))
    assert f"'{path}' episode 1: frame_index is 9 in row 4, expected 4" in " ".join(error.split())


@pytest.mark.parametrize("version", WRITERS)
def test_one_of_several_instructions_is_chosen(tmp_path: Path, version: str) -> None:
    path = WRITERS[version](tmp_path / "peg")
    command = ("convert", path, "--out", tmp_path / "s.zarr")
    assert "instruction: insert the peg" in ok_json(*command)["notes"]
    assert Store(tmp_path / "s.zarr").attrs["source"]["instructions"] == ["insert the peg"]
    if version == "v3.0":
        file = path / "meta/episodes/chunk-000/file-000.parquet"
        episodes = pq.read_table(file).to_pydict()
        pq.write_table(pa.table(episodes | {"tasks": [["insert the peg"], ["pull it out"], ["insert the peg"]]}), file)
    else:
        lines = (path / "meta/episodes.jsonl").read_text().splitlines()
        lines[1] = lines[1].replace("insert the peg", "pull it out")
        (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    error = refused(ddp(*command, "--overwrite"))
    assert "has 2 instructions, and a policy is not told which to follow: 'insert the peg', 'pull it out'." in error
    assert "of one of 2 instructions, chosen by --only-task" in ok_json("inspect", path)["ddp convert"]
    assert "no instruction of" in refused(ddp(*command, "--overwrite", "--only-task", "pull"))
    ok(ddp(*command, "--overwrite", "--only-task", "pull *"))
    assert Store(tmp_path / "s.zarr").attrs["source"]["demos"] == ["1"]
    result = ok_json(*command, "--overwrite", "--only-task", "*")
    assert result["episodes"] == 3
    assert "2 instructions as one task" in result["notes"]


@pytest.mark.parametrize("version", WRITERS)
def test_a_video_may_be_read_as_several_cameras(tmp_path: Path, version: str) -> None:
    """Those of one size share a decoder."""
    path = WRITERS[version](tmp_path / "peg")
    schema = ok_json("inspect", path)["schema"]
    schema["cameras"]["small"] = schema["cameras"]["top"] | {"height": 16, "width": 24}
    schema["cameras"] |= {"same": schema["cameras"]["top"], "small_too": schema["cameras"]["small"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for _ in range(3):  # a race
        ok(ddp("convert", path, "--schema", tmp_path / "schema.json", "--out", tmp_path / "s.zarr", "--overwrite"))
        store = Store(tmp_path / "s.zarr")
        expected = np.concatenate([make_values(i)[1]["top"] for i in range(3)])
        for key in ("top", "same"):
            np.testing.assert_array_equal(store.read(key), expected)
        for key in ("small", "small_too"):
            inner = np.s_[:, 1:-1, 1:-1]  # ffmpeg weights the edges otherwise
            np.testing.assert_allclose(store.read(key)[inner], resize(expected, (16, 24))[inner], rtol=0, atol=1.01)
