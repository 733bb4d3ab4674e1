"""The memory use of a conversion does not grow with the size of its input."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.parquet import write_table
from ddp_cli.data.store import Store
from ddp_cli.video.video import VideoWriter

pytestmark = pytest.mark.slow

CONVERT = """
import resource, sys
from pathlib import Path
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions

convert(Path(sys.argv[1]), Path(sys.argv[2]), 1, lambda *_: None, ConvertOptions(check=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # kB
"""
IMAGE_KEYS = ("agentview_image", "robot0_eye_in_hand_image")
STEPS = 100  # of a demo
EPISODE_IMAGE_BYTES = STEPS * 2 * 84 * 84 * 3


def write_image_file(lift_demos: Path, lift_store: Store, path: Path, episodes: int) -> Path:
    """A file of `episodes` demos with STEPS artificial images each."""
    shutil.copy(lift_demos, path)
    with DemoFile(lift_demos) as demos, h5py.File(path, "r+") as f:
        demo = demos.read("demo_0")
        first = slice(0, len(demo.actions))
        vectors = {key: lift_store.read(key, rows=first) for key in demos.task.vectors("state")}
        rows = {key: np.resize(array, (STEPS, array.shape[1])) for key, array in vectors.items()}
        images = np.arange(STEPS, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 84, 84, 3), np.uint8)
        model = f["data/demo_0"].attrs["model"]
        for name in list(f["data"]):
            del f["data"][name]
        for i in range(episodes):
            group = f["data"].create_group(f"demo_{i}")
            group.attrs["model"] = model
            states = np.resize(demo.states, (STEPS, demo.states.shape[1]))
            states[:, 0] = np.arange(STEPS) / 20  # time
            group["states"] = states
            group["actions"] = np.resize(demo.actions, (STEPS, 7)) * (1 - i / 1000)  # no demo repeats another
            for key, value in {**rows, **dict.fromkeys(IMAGE_KEYS, images)}.items():
                group[f"obs/{key}"] = value
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs on other systems")
def test_memory_holds_a_few_episodes_at_most(lift_demos: Path, lift_store: Store, tmp_path: Path) -> None:
    peaks = []
    for episodes in (10, 60):
        path = write_image_file(lift_demos, lift_store, tmp_path / f"{episodes}.hdf5", episodes)
        command = [sys.executable, "-c", CONVERT, path, tmp_path / f"{episodes}.zarr"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024)
    assert peaks[1] - peaks[0] < 5 * EPISODE_IMAGE_BYTES, "converting 50 more episodes used more memory"


# -- recordings of any robot ------------------------------------------------------------------------

CONVERT_RECORDING = """
import resource, sys
from pathlib import Path
from ddp_cli.data.recording_conversion import convert_recording
from ddp_cli.data.recording_schema import infer_schema
from ddp_cli.data.recordings import open_recording

recording = open_recording(Path(sys.argv[1]), as_recorded=True)
schema = infer_schema(recording, rate=recording.rate or 10)
convert_recording(recording, schema, "arm", None, Path(sys.argv[2]), None, 3, lambda *_: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # kB
"""
IMAGE = (112, 160, 3)  # multiples of 16, as the video encoder wants
N_STEPS = 60


def images_of(episode: int) -> np.ndarray:
    shade = np.arange(N_STEPS, dtype=np.uint8)[:, None, None, None] + np.uint8(episode)
    return shade + np.zeros((1, *IMAGE), np.uint8)


def vectors_of(episode: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(episode)
    return {key: rng.normal(size=(N_STEPS, 6)).astype(np.float32) for key in ("state", "action")}


def write_replay_buffer(path: Path, episodes: int) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    n = episodes * N_STEPS
    for key, shape, dtype in (("state", (6,), "f4"), ("action", (6,), "f4"), ("img", IMAGE, "u1")):
        root.create_array(f"data/{key}", shape=(n, *shape), dtype=dtype, chunks=(N_STEPS, *shape))
    for i in range(episodes):
        for key, value in (vectors_of(i) | {"img": images_of(i)}).items():
            root[f"data/{key}"][i * N_STEPS : (i + 1) * N_STEPS] = value
    root.create_array("meta/episode_ends", data=np.arange(1, episodes + 1) * N_STEPS)


def write_aloha(path: Path, episodes: int) -> None:
    path.mkdir()
    for i in range(episodes):
        with h5py.File(path / f"episode_{i}.hdf5", "w") as f:
            f["action"], f["observations/qpos"] = vectors_of(i)["action"], vectors_of(i)["state"]
            f["observations/images/top"] = images_of(i)


def write_robomimic(path: Path, episodes: int) -> None:
    with h5py.File(path, "w") as f:
        for i in range(episodes):
            f[f"data/demo_{i}/actions"], f[f"data/demo_{i}/obs/state"] = vectors_of(i)["action"], vectors_of(i)["state"]
            f[f"data/demo_{i}/obs/front"] = images_of(i)


def write_lerobot(path: Path, episodes: int, version: str) -> None:
    """Version v2.1 has files for each episode, v3.0 one of each kind for all of them."""
    paths = {
        "v2.1": ("data/episode_{episode_index}.parquet", "videos/{video_key}/episode_{episode_index}.mp4"),
        "v3.0": ("data/file-{file_index}.parquet", "videos/{video_key}/file-{file_index}.mp4"),
    }[version]
    vector, video = {"dtype": "float32", "shape": [6]}, {"dtype": "video", "shape": list(IMAGE)}
    features = {"observation.state": vector, "action": vector, "observation.images.top": video}
    features |= {name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index")}
    features |= {"timestamp": {"dtype": "float32", "shape": [1]}}
    (path / "meta").mkdir(parents=True)
    info = {
        "codebase_version": version, "fps": 20, "features": features, "data_path": paths[0], "video_path": paths[1],
        "total_episodes": episodes, "total_frames": episodes * N_STEPS,
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(info))
    tables = [
        {
            "observation.state": vectors_of(i)["state"], "action": vectors_of(i)["action"],
            "timestamp": np.arange(N_STEPS) / 20, "frame_index": np.arange(N_STEPS),
            "episode_index": np.full(N_STEPS, i), "index": i * N_STEPS + np.arange(N_STEPS),
        }
        for i in range(episodes)
    ]  # fmt: skip
    groups = [[i] for i in range(episodes)] if version == "v2.1" else [list(range(episodes))]
    folder = path / "videos/observation.images.top"
    folder.mkdir(parents=True)
    for k, group in enumerate(groups):
        name = f"episode_{k}" if version == "v2.1" else f"file-{k}"
        write_table(
            path / f"data/{name}.parquet", {key: np.concatenate([tables[i][key] for i in group]) for key in tables[0]}
        )
        with VideoWriter(folder / f"{name}.mp4", 20) as writer:
            for i in group:
                for image in images_of(i):
                    writer.add(image)
    if version == "v2.1":
        lines = [json.dumps({"episode_index": i, "length": N_STEPS}) for i in range(episodes)]
        (path / "meta/episodes.jsonl").write_text("\n".join(lines))
        return
    starts, zeros = np.arange(episodes) * N_STEPS, np.zeros(episodes, int)
    key = "videos/observation.images.top"
    write_table(
        path / "meta/episodes/chunk-000/file-000.parquet",
        {
            "episode_index": np.arange(episodes), "length": np.full(episodes, N_STEPS), "dataset_from_index": starts,
            "data/chunk_index": zeros, "data/file_index": zeros, f"{key}/chunk_index": zeros,
            f"{key}/file_index": zeros,
            f"{key}/from_timestamp": starts / 20, f"{key}/to_timestamp": (starts + N_STEPS) / 20,
        },
    )  # fmt: skip


WRITERS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "replay buffer": (".zarr", write_replay_buffer),
    "ALOHA": ("", write_aloha),
    "robomimic": (".hdf5", write_robomimic),
    "LeRobot v2.1": ("", functools.partial(write_lerobot, version="v2.1")),
    "LeRobot v3.0": ("", functools.partial(write_lerobot, version="v3.0")),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs on other systems")
@pytest.mark.parametrize("kind", WRITERS)
def test_memory_holds_a_few_episodes_of_a_recording(kind: str, tmp_path: Path) -> None:
    suffix, write = WRITERS[kind]
    peaks = []
    for episodes in (4, 40):
        path = tmp_path / f"recording{episodes}{suffix}"
        write(path, episodes)
        command = [sys.executable, "-c", CONVERT_RECORDING, path, tmp_path / f"out{episodes}.zarr"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024)
    episode_bytes = N_STEPS * int(np.prod(IMAGE))
    assert peaks[1] - peaks[0] < 5 * episode_bytes, f"36 more episodes took {(peaks[1] - peaks[0]) / 1e6:.0f} MB more"
