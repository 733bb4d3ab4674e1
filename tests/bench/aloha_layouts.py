"""Episodes of real content in other layouts: `python tests/bench/aloha_layouts.py FOLDER ... --out OUT`.

FOLDER: datasets of LeRobot's first format (an arrow table and a video per episode) of one robot, such as
lerobot/aloha_sim_insertion_human of 2024. OUT/act holds files episode_0.hdf5, ... with JPEG images, OUT/lerobot the
same episodes in format v3.0, whose videos are copied frame by frame. `--pieces N` cuts every episode into N.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from ddp_cli.data.parquet import write_table
from ddp_cli.video.decoder import iter_frames
from ddp_cli.video.video import VideoWriter
from ddp_cli.video.video_info import read_video_info

STATE, ACTION = "observation.state", "action"
Episode = dict[str, Any]


def read_version_1(folder: Path) -> tuple[list[Episode], float]:
    """Episodes {state, action (n, d), camera name: (n, H, W, 3)}, and their rate [Hz]."""
    (table_path,) = folder.glob("train/*.arrow")
    table = pa.ipc.open_stream(table_path.read_bytes()).read_all()
    cameras = [name for name in table.column_names if name.startswith("observation.image")]
    episodes, rate = [], 0.0
    for i in np.unique(table["episode_index"]):
        rows = table.filter(pa.compute.equal(table["episode_index"], i))
        episode = {name: np.array(rows[name].to_pylist(), np.float32) for name in (STATE, ACTION)}
        for camera in cameras:
            path = folder / rows[camera][0].as_py()["path"]
            info = read_video_info(path)
            rate = info.rate
            images = list(iter_frames(path, (info.height, info.width)))
            episode[camera.rpartition(".")[2]] = np.stack(images[: rows.num_rows])
        episodes.append(episode)
    return episodes, rate


def cut(episode: Episode, pieces: int) -> Iterator[Episode]:
    parts = {name: np.array_split(values, pieces) for name, values in episode.items()}
    for k in range(pieces):
        yield {name: values[k] for name, values in parts.items()}


def encode_jpeg(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=95)
    return content.getvalue()


def write_act(folder: Path, episodes: list[Episode]) -> None:
    """As ACT stores them on a robot: a JPEG per step, padded with zeros to one length."""
    folder.mkdir(parents=True)
    for i, episode in enumerate(episodes):
        with h5py.File(folder / f"episode_{i}.hdf5", "w") as f:
            f["action"], f["observations/qpos"] = episode[ACTION], episode[STATE]
            for camera in episode.keys() - {ACTION, STATE}:
                encoded = [encode_jpeg(image) for image in episode[camera]]
                length = max(map(len, encoded))
                padded = [np.frombuffer(x.ljust(length, b"\0"), np.uint8) for x in encoded]
                f[f"observations/images/{camera}"] = np.stack(padded)


def write_lerobot(folder: Path, episodes: list[Episode], rate: float) -> None:
    """Format v3.0: all episodes in one table, and in one video per camera."""
    cameras = sorted(episodes[0].keys() - {ACTION, STATE})
    lengths = np.array([len(episode[ACTION]) for episode in episodes])
    ends = np.cumsum(lengths)
    starts, zeros, n = ends - lengths, np.zeros(len(episodes), int), int(ends[-1])
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    rows = {name: np.concatenate([episode[name] for episode in episodes]) for name in (STATE, ACTION)}
    rows |= {
        "timestamp": frame_index / rate, "frame_index": frame_index, "index": np.arange(n),
        "episode_index": np.repeat(np.arange(len(episodes)), lengths), "task_index": np.zeros(n, int),
    }  # fmt: skip
    write_table(folder / "data/chunk-000/file-000.parquet", rows)
    listed: dict[str, Any] = {
        "episode_index": np.arange(len(episodes)), "length": lengths, "tasks": [["a task"]] * len(episodes),
        "data/chunk_index": zeros, "data/file_index": zeros, "dataset_from_index": starts,
    }  # fmt: skip
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in rows.items()
    }
    for camera in cameras:
        feature = f"observation.images.{camera}"
        listed |= {
            f"videos/{feature}/chunk_index": zeros, f"videos/{feature}/file_index": zeros,
            f"videos/{feature}/from_timestamp": starts / rate, f"videos/{feature}/to_timestamp": ends / rate,
        }  # fmt: skip
        features[feature] = {"dtype": "video", "shape": list(episodes[0][camera].shape[1:])}
        path = folder / f"videos/{feature}/chunk-000/file-000.mp4"
        path.parent.mkdir(parents=True)
        with VideoWriter(path, rate, key_frame_interval=2) as writer:  # the interval of LeRobot
            for episode in episodes:
                for image in episode[camera]:
                    writer.add(image)
    write_table(folder / "meta/episodes/chunk-000/file-000.parquet", listed)
    info = {
        "codebase_version": "v3.0", "fps": rate, "features": features, "total_episodes": len(episodes),
        "total_frames": n, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (folder / "meta/info.json").write_text(json.dumps(info))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pieces", type=int, default=1)
    args = parser.parse_args()
    episodes: list[Episode] = []
    for folder in args.folders:
        read, rate = read_version_1(folder)
        episodes += [piece for episode in read for piece in cut(episode, args.pieces)]
    write_act(args.out / "act", episodes)
    write_lerobot(args.out / "lerobot", episodes, rate)
    print(f"{len(episodes)} episodes of {sum(len(e[ACTION]) for e in episodes)} steps, {rate:g} Hz, in {args.out}")


if __name__ == "__main__":
    main()
