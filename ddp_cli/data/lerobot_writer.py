"""Writes LeRobot datasets (format v3.0), in the layout described in lerobot_reader.py.

Images are encoded losslessly, in RGB: `ddp convert` turns the dataset into the same store, array for array. LeRobot's
own readers decode these videos; browsers may not play them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lerobot_layout import (
    ACTION_FEATURE,
    DATA_PATH,
    INFO_PATH,
    OBJECT_FEATURE,
    STATE_FEATURE,
    STORE_ATTRIBUTES_PATH,
    VERSION,
    VIDEO_PATH,
    feature_of,
)
from ddp_cli.data.lerobot_names import observable_names
from ddp_cli.data.parquet import check_installed, write_table
from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_folder
from ddp_cli.schema import Camera
from ddp_cli.video.video import VideoWriter

EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
KEY_FRAME_INTERVAL = 8  # short, since training reads frames in random order
INSTRUCTIONS = {
    "lift": "Lift the cube.",
    "can": "Put the can into its compartment.",
    "square": "Put the square nut on its peg.",
}
"""Task descriptions for language-conditioned policies; other tasks use their name."""

Progress = Callable[[int, int], None]
"""Called with the number of images written and their total."""


def write_lerobot(store: Store, out: Path, progress: Progress) -> int:
    """Writes `store` as a dataset; returns the number of steps. `out` appears only when complete."""
    check_installed()
    with atomic_folder(out) as partial:
        return _write(store, partial, progress)


def _write(store: Store, out: Path, progress: Progress) -> int:
    columns, total = _step_columns(store), int(store.episode_ends[-1])
    stats = {name: _statistics(values) for name, values in columns.items()}
    for cameras_done, key in enumerate(store.image_keys):
        pixel_statistics = _PixelStatistics()
        path = out / VIDEO_PATH.format(video_key=feature_of(key), chunk_index=0, file_index=0)
        with VideoWriter(path, store.task.schema.rate, lossless=True, key_frame_interval=KEY_FRAME_INTERVAL) as video:
            for begin, end in store.episode_bounds:
                images = store.read(key, rows=slice(begin, end))
                pixel_statistics.add(images)
                for image in images:
                    video.add(image)
                progress(cameras_done * total + end, len(store.image_keys) * total)
        stats[feature_of(key)] = pixel_statistics.to_json()
    write_table(out / DATA_PATH.format(chunk_index=0, file_index=0), columns)
    write_table(out / EPISODES_PATH, _episode_columns(store))
    write_table(out / "meta/tasks.parquet", {"task_index": [0], "task": [_instruction(store)]}, index="task")
    _write_json(out / "meta/stats.json", stats)
    _write_json(out / STORE_ATTRIBUTES_PATH, {key: value for key, value in store.attrs.items() if key != "complete"})
    _write_json(out / INFO_PATH, _info(store, columns))
    return total


def _step_columns(store: Store) -> dict[str, NDArray[Any]]:
    """All features with a value per step, except images."""
    starts, lengths = np.array(store.episode_bounds).T[0], np.diff(store.episode_ends, prepend=0)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.arange(len(episode)) - starts[episode]
    return {
        STATE_FEATURE: np.concatenate([store.read(key) for key in store.task.low_dim], axis=1),
        **({OBJECT_FEATURE: store.read("object")} if store.task.object_dim else {}),
        ACTION_FEATURE: store.read("action"),
        "timestamp": (frame / store.task.schema.rate).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(len(episode)),
        "task_index": np.zeros_like(episode),
    }


def _episode_columns(store: Store) -> dict[str, Any]:
    begins, ends = np.array(store.episode_bounds).T
    zeros = np.zeros_like(begins)
    columns: dict[str, Any] = {
        "episode_index": np.arange(len(ends)),
        "tasks": [[_instruction(store)]] * len(ends),
        "length": ends - begins,
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "dataset_from_index": begins,
        "dataset_to_index": ends,
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": zeros,
    }
    for key in store.image_keys:
        name = f"videos/{feature_of(key)}"
        columns |= {f"{name}/chunk_index": zeros, f"{name}/file_index": zeros}
        rate = store.task.schema.rate
        columns |= {f"{name}/from_timestamp": begins / rate, f"{name}/to_timestamp": ends / rate}
    return columns


def _instruction(store: Store) -> str:
    return INSTRUCTIONS.get(store.task.name, store.task.name)


def _info(store: Store, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    names = {
        STATE_FEATURE: observable_names(store.task.low_dim),
        OBJECT_FEATURE: observable_names(store.task.robosuite.object),
    }
    rate = store.task.schema.rate
    fps = int(rate) if rate.is_integer() else rate
    features: dict[str, Any] = {
        feature_of(key): _video_feature(store.task.schema.cameras[key], fps) for key in store.image_keys
    }
    for name, values in columns.items():
        features[name] = {
            "dtype": str(values.dtype),
            "shape": list(values.shape[1:]) or [1],
            "names": names.get(name),
        }
    episodes = len(store.episode_ends)
    return {
        "codebase_version": VERSION,
        "robot_type": "_".join(store.task.robosuite.robots).lower(),
        "total_episodes": episodes,
        "total_frames": int(store.episode_ends[-1]),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if store.image_keys else None,
        "features": features,
    }


def _video_feature(camera: Camera, fps: float) -> dict[str, Any]:
    video = {
        "video.height": camera.height, "video.width": camera.width, "video.channels": camera.channels,
        "video.codec": "h264", "video.pix_fmt": "gbrp", "video.fps": fps, "video.is_depth_map": False,
        "has_audio": False,
    }  # fmt: skip
    return {
        "dtype": "video", "shape": list(camera.shape), "names": ["height", "width", "channels"], "info": video,
    }  # fmt: skip


def _statistics(values: NDArray[Any]) -> dict[str, Any]:
    flat = values.reshape(len(values), -1).astype(np.float64)
    statistics = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    return {name: x.tolist() for name, x in statistics.items()} | {"count": [len(values)]}


class _PixelStatistics:
    """Statistics of images, accumulated as a histogram."""

    def __init__(self) -> None:
        self._histogram = np.zeros((3, 256), np.int64)  # per channel
        self._count = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """Counts `images` (n, H, W, 3)."""
        self._histogram += np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
        self._count += len(images)

    def to_json(self) -> dict[str, Any]:
        """Per channel, of pixels scaled to [0, 1], (3, 1, 1)."""
        values, frequencies = np.arange(256) / 255, self._histogram / self._histogram.sum(1, keepdims=True)
        mean = frequencies @ values
        statistics = {
            "min": [values[counts > 0].min() for counts in self._histogram],
            "max": [values[counts > 0].max() for counts in self._histogram],
            "mean": mean,
            "std": np.sqrt(frequencies @ values**2 - mean**2),
        }
        return {name: np.reshape(x, (3, 1, 1)).tolist() for name, x in statistics.items()} | {"count": [self._count]}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")
