"""Edits of LeRobot datasets on disk, for tests of what other tools write and of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import read_video

from ddp_cli.data.lerobot_conversion import convert_lerobot
from ddp_cli.data.lerobot_reader import LeRobotDataset
from ddp_cli.data.parquet import write_table
from ddp_cli.data.store import Store
from ddp_cli.tasks import get_task
from ddp_cli.video.video import VideoWriter

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
INFO = "meta/info.json"
STATE, ACTION = "observation.state", "action"


def no_progress(*_: object) -> None:
    """A progress callback that does nothing."""


def convert_dataset(dataset: Path, out: Path, actions: str | None = None, only: str | None = None) -> LeRobotDataset:
    """Converts a dataset; `actions` for those that ddp did not write."""
    opened = LeRobotDataset(dataset, get_task("lift") if actions else None, actions)
    convert_lerobot(opened, out, only, 3, no_progress)
    return opened


def forget_origin(dataset: Path) -> None:
    """Makes it a dataset of another tool: without the attributes that ddp adds."""
    (dataset / "meta/ddp.json").unlink()


def edit_info(dataset: Path, **changes: object) -> None:
    path = dataset / INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_feature(dataset: Path, name: str, **changes: object) -> None:
    features = json.loads((dataset / INFO).read_text())["features"]
    edit_info(dataset, features=features | {name: features.get(name, {"dtype": "float32"}) | changes})


def read_column(dataset: Path, name: str) -> np.ndarray:
    return np.array(pq.read_table(dataset / DATA).column(name).to_pylist())


def write_column(dataset: Path, name: str, values: np.ndarray | pa.Array, file: str = DATA) -> None:
    """Replaces or adds a column; arrays (n, width) become lists of fixed length."""
    table = pq.read_table(dataset / file)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(values.astype(np.float32).ravel())
        values = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    column = values if isinstance(values, pa.Array) else pa.array(values)
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    pq.write_table(table, dataset / file)


def keep_rows(dataset: Path, rows: Sequence[int], file: str = DATA) -> None:
    """Keeps `rows` of a table, in this order."""
    pq.write_table(pq.read_table(dataset / file).take(list(rows)), dataset / file)


def video(dataset: Path, camera: str = "agentview") -> Path:
    return dataset / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"


def rewrite_video(dataset: Path, frames: np.ndarray) -> None:
    with VideoWriter(video(dataset), 20, lossless=True) as writer:
        for frame in frames:
            writer.add(frame)


def shorten_video(dataset: Path) -> None:
    rewrite_video(dataset, read_video(video(dataset))[:-3])


def enlarge_video(dataset: Path) -> None:
    rewrite_video(dataset, read_video(video(dataset)).repeat(2, axis=1).repeat(2, axis=2))


def to_version_2(dataset: Path) -> None:
    """Makes it a dataset of format v2.1, with a file per episode."""
    table = pq.read_table(dataset / DATA)
    episodes = np.array(table.column("episode_index"))
    lengths = np.bincount(episodes).tolist()
    for folder in ("data", "videos", "meta/episodes"):
        shutil.rmtree(dataset / folder)
    for i in range(len(lengths)):
        path = dataset / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(np.flatnonzero(episodes == i)), path)
    lines = [json.dumps({"episode_index": i, "tasks": ["x"], "length": n}) for i, n in enumerate(lengths)]
    (dataset / "meta/episodes.jsonl").write_text("\n".join(lines))
    edit_info(
        dataset,
        codebase_version="v2.1",
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )


def write_version_1(dataset: Path, frames: np.ndarray) -> None:
    """A new dataset of the first format: an arrow table and a video, 10 Hz, 3 values."""
    name, count = "videos/observation.image_episode_000000.mp4", len(frames)
    times = np.arange(count, dtype=np.float32) / 10
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3 * count, np.float32)), 3)
    table = pa.table(
        {
            "observation.image": [{"path": name, "timestamp": float(time)} for time in times],
            "observation.state": values,
            "action": values,
            "episode_index": np.zeros(count, np.int64),
            "timestamp": times,
        }
    )
    (dataset / "train").mkdir(parents=True)
    with (
        pa.OSFile(str(dataset / "train/data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    with VideoWriter(dataset / name, 20, lossless=True) as video_writer:
        for frame in frames:
            video_writer.add(frame)


def images_in_table(dataset: Path, store: Store, cells: str = "bytes") -> None:
    """Moves the images from videos to the table: as `bytes`, or as files whose relative `path` it holds."""
    import io

    from PIL import Image

    shutil.rmtree(dataset / "videos")
    edit_info(dataset, video_path=None)
    for key in store.image_keys:
        feature = f"observation.images.{key.removesuffix('_image')}"
        values = []
        for i, image in enumerate(store.read(key)):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            path = f"images/{feature}/frame-{i:06d}.png"
            if cells == "path":
                (dataset / path).parent.mkdir(parents=True, exist_ok=True)
                (dataset / path).write_bytes(content.getvalue())
            values.append({"bytes": content.getvalue() if cells == "bytes" else None, "path": path})
        write_column(dataset, feature, pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        edit_feature(dataset, feature, dtype="image")
    rows = pq.read_table(dataset / EPISODES).to_pydict()
    write_table(dataset / EPISODES, {name: column for name, column in rows.items() if not name.startswith("videos/")})
