"""Which files of a LeRobot dataset are there, in every format, compared with what it declares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_cli.data.lerobot_layout import (
    FIRST_VERSION,
    MAX_COUNT,
    TABLES_V1,
    VERSION,
    Feature,
    LeRobotFolder,
    is_inside,
)
from ddp_cli.data.parquet import COPY_AGAIN, count_rows, read_rows, summarize_arrow
from ddp_cli.disk import files_hash
from ddp_cli.errors import DataError

CONTENT_FOLDERS = ("meta", "data", "videos", "images")
EPISODE_TABLES = "meta/episodes/*/*.parquet"
MAX_EPISODES = 1_000_000  # a damaged info.json may declare any number
EPISODES_V2 = "meta/episodes.jsonl"


@dataclass
class DatasetFiles:
    """The files of a dataset. `missing` paths are relative to it; `damaged` are messages, one per file.

    `videos` are the files that are there, by feature; `episodes` and `steps` are what the tables hold.
    `features` and `fps` are the declared ones, or where nothing is declared (v1) those of the table.
    """

    features: dict[str, Feature]
    fps: float | None = None
    episodes: int = 0
    steps: int = 0
    expected: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    videos: dict[str, list[Path]] = field(default_factory=dict)

    def add_video(self, folder: LeRobotFolder, feature: str, path: Path) -> None:
        """Counts a video that the dataset must have."""
        self.videos.setdefault(feature, [])
        if self._add(folder, path):
            self.videos[feature].append(path)

    def add_table(self, folder: LeRobotFolder, path: Path) -> bool:
        """Counts a table that the dataset must have, and its rows. Whether it can be read."""
        if not self._add(folder, path):
            return False
        try:
            self.steps += count_rows(path)
        except DataError as e:
            self.damaged.append(e.message)
            return False
        return True

    def _add(self, folder: LeRobotFolder, path: Path) -> bool:
        self.expected += 1
        if path.is_file():
            return True
        self.missing.append(path.relative_to(folder.path).as_posix())
        return False


def find_files(folder: LeRobotFolder) -> DatasetFiles:
    """The files of the dataset `folder`. Faults are listed, not raised."""
    files = DatasetFiles(dict(folder.features), folder.fps)
    find = {FIRST_VERSION: _find_v1, VERSION: _find_v3}.get(folder.version, _find_v2)
    try:
        find(folder, files)
    except DataError as e:
        files.damaged.append(e.message)
    return files


def read_episodes(folder: LeRobotFolder) -> list[dict[str, Any]]:
    """The rows of meta/episodes of a v3.0 dataset, by episode_index. DataError if they are missing or damaged."""
    paths = sorted(folder.path.glob(EPISODE_TABLES))
    rows = [row for path in paths for row in read_rows(path, skip_prefix="stats/")]
    if not rows:
        raise DataError(f"'{folder.path / 'meta/episodes'}' lists no episodes.", COPY_AGAIN)
    return sorted(rows, key=lambda row: read_integer(folder, row, "episode_index"))


def read_integer(folder: LeRobotFolder, row: dict[str, Any], name: str) -> int:
    """The count or index `name` of an episode; DataError if it is anything else."""
    value = row.get(name)
    if isinstance(value, int) and 0 <= value < MAX_COUNT:
        return value
    episode = row.get("episode_index")
    raise DataError(f"'{folder.path}/meta/episodes' episode {episode!r}: {name} is {value!r}.", COPY_AGAIN)


def table_of_episode(folder: LeRobotFolder, row: dict[str, Any]) -> Path:
    """The table with the steps of the episode `row` of meta/episodes."""
    indices = {name: read_integer(folder, row, f"data/{name}") for name in ("chunk_index", "file_index")}
    return folder.file("data_path", **indices)


def video_of_episode(folder: LeRobotFolder, row: dict[str, Any], feature: str) -> Path:
    """The video with the images of the episode `row` of meta/episodes."""
    indices = {name: read_integer(folder, row, f"videos/{feature}/{name}") for name in ("chunk_index", "file_index")}
    return folder.file("video_path", video_key=feature, **indices)


def fields_v2(folder: LeRobotFolder, episode: int) -> dict[str, int]:
    """The fields of the path templates of v2.x for an episode."""
    chunk = episode // (folder.count("chunks_size") or 1000)
    # Some tools call the chunk chunk_index here too.
    return {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": episode}


def read_episodes_v2(folder: LeRobotFolder) -> dict[int, dict[str, Any]]:
    """The lines of meta/episodes.jsonl by episode index; none if one of them is damaged."""
    try:
        lines = (folder.path / EPISODES_V2).read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.strip()]
        return {int(entry["episode_index"]): entry for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def content_hash(path: Path) -> str:
    """Hash of all files of the dataset `path` and their names, which identifies the source of a store."""
    return files_hash(path, (file for name in CONTENT_FOLDERS for file in (path / name).rglob("*")))


def _videos(features: dict[str, Feature]) -> Iterator[str]:
    return (name for name, feature in features.items() if feature.dtype == "video")


def _find_v3(folder: LeRobotFolder, files: DatasetFiles) -> None:
    rows = read_episodes(folder)
    files.episodes = len(rows)
    for path in dict.fromkeys(table_of_episode(folder, row) for row in rows):
        files.add_table(folder, path)
    for feature in _videos(folder.features):
        for path in dict.fromkeys(video_of_episode(folder, row, feature) for row in rows):
            files.add_video(folder, feature, path)


def _find_v2(folder: LeRobotFolder, files: DatasetFiles) -> None:
    lengths = {index: entry.get("length") for index, entry in read_episodes_v2(folder).items()}
    for episode in range(min(folder.count("total_episodes") or 0, MAX_EPISODES)):
        fields = fields_v2(folder, episode)
        steps = files.steps
        if files.add_table(folder, folder.file("data_path", **fields)):
            files.episodes += 1
            if lengths.get(episode) not in (None, files.steps - steps):
                files.damaged.append(
                    f"episode {episode} has {files.steps - steps} rows, {EPISODES_V2} says {lengths[episode]}"
                )
        for feature in _videos(folder.features):
            files.add_video(folder, feature, folder.file("video_path", video_key=feature, **fields))


def _find_v1(folder: LeRobotFolder, files: DatasetFiles) -> None:
    episodes: set[int] = set()
    for path in sorted(path for pattern in TABLES_V1 for path in folder.path.glob(pattern)):
        if path.suffix == ".parquet":
            files.add_table(folder, path)
            continue
        files.expected += 1
        table = summarize_arrow(path)
        files.steps += table.rows
        episodes |= table.episodes
        files.fps = files.fps or (round(1 / table.period, 2) if table.period else None)
        for name, (dtype, width) in table.columns.items():
            files.features[name] = Feature(dtype, (width,), None)
        for name, references in table.files.items():
            is_image = "bytes" in files.features[name].dtype
            files.features[name] = Feature("image" if is_image else "video", (), None)
            for relative in sorted(references) if not is_image else ():
                if is_inside(relative):
                    files.add_video(folder, name, folder.path / relative)
    files.episodes = len(episodes)
