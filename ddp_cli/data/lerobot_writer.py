"""LeRobot datasets (format v3.0), out: a folder as `lerobot.py` describes it.

Pictures are kept without loss, in RGB: `ddp convert` makes the same store of the dataset, array for array. LeRobot's
own readers decode this, browsers may not play it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lerobot_reader import ACTION, DATA, INFO, OBJECT, OURS, STATE, VERSION, VIDEO, feature_of
from ddp_cli.data.parquet import check_installed, write_table
from ddp_cli.data.store import Store
from ddp_cli.disk import atomic_folder
from ddp_cli.tasks import CONTROL_HZ, IMAGE_SIZE
from ddp_cli.video.video import VideoWriter

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
SENTENCES = {
    "lift": "Lift the cube.",
    "can": "Put the can into its compartment.",
    "square": "Put the square nut on its peg.",
}
"""What a policy that reads is told; of a described task, its name."""

Progress = Callable[[int, int], None]


def write_lerobot(store: Store, out: Path, progress: Progress) -> int:
    """Writes `store` as a dataset; returns the number of steps. It exists only once it is whole."""
    check_installed()
    with atomic_folder(out) as partial:
        return _write(store, partial, progress)


def _write(store: Store, out: Path, progress: Progress) -> int:
    columns, total = _columns(store), int(store.episode_ends[-1])
    stats = {name: _statistics(values) for name, values in columns.items()}
    for done, key in enumerate(store.pictures):
        totals = _PixelStatistics()
        path = out / VIDEO.format(video_key=feature_of(key), chunk_index=0, file_index=0)
        with VideoWriter(path, lossless=True) as video:
            for begin, end in store.spans:
                for frame in totals.add(store.read(key, rows=slice(begin, end))):
                    video.add(frame)
                progress(done * total + end, len(store.pictures) * total)
        stats[feature_of(key)] = totals.statistics()
    write_table(out / DATA.format(chunk_index=0, file_index=0), columns)
    write_table(out / EPISODES, _episodes(store))
    write_table(out / "meta/tasks.parquet", {"task_index": [0], "task": [_sentence(store)]}, index="task")
    _json(out / "meta/stats.json", stats)
    _json(out / OURS, {key: value for key, value in store.attrs.items() if key != "complete"})
    _json(out / INFO, _info(store, columns))
    return total


def _columns(store: Store) -> dict[str, NDArray[Any]]:
    """Everything that has a value per step, by LeRobot's names."""
    starts, lengths = np.array(store.spans).T[0], np.diff(store.episode_ends, prepend=0)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.arange(len(episode)) - starts[episode]
    return {
        STATE: np.concatenate([store.read(key) for key in store.task.low_dim], axis=1),
        **({OBJECT: store.read("object")} if store.task.object else {}),
        ACTION: store.read("action"),
        "timestamp": (frame / CONTROL_HZ).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(len(episode)),
        "task_index": np.zeros_like(episode),
    }


def _episodes(store: Store) -> dict[str, Any]:
    begins, ends = np.array(store.spans).T
    first = np.zeros_like(begins)
    rows: dict[str, Any] = {
        "episode_index": np.arange(len(ends)),
        "tasks": [[_sentence(store)]] * len(ends),
        "length": ends - begins,
        "data/chunk_index": first,
        "data/file_index": first,
        "dataset_from_index": begins,
        "dataset_to_index": ends,
        "meta/episodes/chunk_index": first,
        "meta/episodes/file_index": first,
    }
    for key in store.pictures:
        name = f"videos/{feature_of(key)}"
        rows |= {f"{name}/chunk_index": first, f"{name}/file_index": first}
        rows |= {f"{name}/from_timestamp": begins / CONTROL_HZ, f"{name}/to_timestamp": ends / CONTROL_HZ}
    return rows


def _sentence(store: Store) -> str:
    return SENTENCES.get(store.task.name, store.task.name)


def _info(store: Store, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    parts = {STATE: store.task.low_dim, OBJECT: store.task.object}
    video = {
        "video.height": IMAGE_SIZE, "video.width": IMAGE_SIZE, "video.channels": 3, "video.codec": "h264",
        "video.pix_fmt": "gbrp", "video.fps": CONTROL_HZ, "video.is_depth_map": False, "has_audio": False,
    }  # fmt: skip
    shape, names = [IMAGE_SIZE, IMAGE_SIZE, 3], ["height", "width", "channels"]
    features: dict[str, Any] = {
        feature_of(key): {"dtype": "video", "shape": shape, "names": names, "info": video} for key in store.pictures
    }
    for name, values in columns.items():
        features[name] = {
            "dtype": str(values.dtype),
            "shape": list(values.shape[1:]) or [1],
            "names": [f"{key}_{i}" for key, width in parts[name].items() for i in range(width)]
            if name in parts
            else None,
        }
    episodes = len(store.episode_ends)
    return {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": episodes,
        "total_frames": int(store.episode_ends[-1]),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA,
        "video_path": VIDEO if store.pictures else None,
        "features": features,
    }


def _statistics(values: NDArray[Any]) -> dict[str, Any]:
    flat = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    return {name: x.tolist() for name, x in found.items()} | {"count": [len(values)]}


class _PixelStatistics:
    """What is left of pictures for their statistics."""

    def __init__(self) -> None:
        self._seen = np.zeros((3, 256), np.int64)  # how often each channel had each value
        self._count = 0

    def add(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Counts and returns `pictures` (n, H, W, 3)."""
        self._seen += np.stack([np.bincount(pictures[..., c].ravel(), minlength=256) for c in range(3)])
        self._count += len(pictures)
        return pictures

    def statistics(self) -> dict[str, Any]:
        """Per channel, of pictures from 0 to 1, (3, 1, 1)."""
        values, share = np.arange(256) / 255, self._seen / self._seen.sum(1, keepdims=True)
        mean = share @ values
        found = {
            "min": [values[seen > 0].min() for seen in self._seen],
            "max": [values[seen > 0].max() for seen in self._seen],
            "mean": mean,
            "std": np.sqrt(share @ values**2 - mean**2),
        }
        return {name: np.reshape(x, (3, 1, 1)).tolist() for name, x in found.items()} | {"count": [self._count]}


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")
