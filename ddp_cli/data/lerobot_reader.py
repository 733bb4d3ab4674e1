"""Reads LeRobot datasets (format v3.0). lerobot_writer.py writes them.

meta/info.json                            features, frame rate, paths of the files
meta/episodes/chunk-000/file-000.parquet  per episode: length, its data file, its time span in each video [s]
meta/ddp.json                             attributes of the store it was written from (of ddp, not of LeRobot)
data/chunk-000/file-000.parquet           a row per step: observation.state, action, timestamp, images without videos
videos/<feature>/chunk-000/file-000.mp4   episodes one after another

Such a dataset holds no simulator states, so its demonstrations cannot be replayed.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.actions import axis_angle_to_rotation_6d, clip_to_limits
from ddp_cli.data.check_summary import not_verified
from ddp_cli.data.lerobot_checks import check_finite, check_indices, find_overlaps
from ddp_cli.data.lerobot_compatibility import find_reasons, refusal
from ddp_cli.data.lerobot_files import (
    content_hash,
    find_files,
    read_episodes,
    read_integer,
    table_of_episode,
    video_of_episode,
)
from ddp_cli.data.lerobot_images import TableImages, VideoReader, check_video
from ddp_cli.data.lerobot_layout import (
    ACTION_FEATURE,
    OBJECT_FEATURE,
    STATE_FEATURE,
    STORE_ATTRIBUTES_PATH,
    feature_of,
    open_folder,
    read_json_object,
)
from ddp_cli.data.lerobot_names import order_of_action, order_of_observables, shorten
from ddp_cli.data.parquet import COPY_AGAIN, read_columns
from ddp_cli.data.value_checks import Advice, ValueChecks
from ddp_cli.errors import DataError
from ddp_cli.robots import ARM_WIDTHS
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import RECORDED, Task

INDEX_COLUMNS = ("frame_index", "index", "timestamp")
ADVICE = Advice(
    order="If the values are in another order, say it in `names` of meta/info.json.",
    goals="Convert it with --actions absolute if they are goal poses.",
    offsets="Convert it with --actions delta if they are delta actions.",
)
NOT_VERIFIED = not_verified("a LeRobot dataset holds no simulator states to replay")

Rows = dict[str, NDArray[np.float64]]


class LeRobotDataset:
    """A dataset of one task. Every fault is a DataError that names it; `check` finds the faults of its values.

    A dataset written by ddp states its `task` and its action `convention`; for others both are required. `notes` say
    what differs from the dataset in the store.
    """

    def __init__(self, path: Path, task: Task | None = None, convention: str | None = None) -> None:
        self.path = path
        self._folder = open_folder(path)
        self.attrs = read_json_object(path / STORE_ATTRIBUTES_PATH) if (path / STORE_ATTRIBUTES_PATH).is_file() else {}
        # Written from a store without images, a dataset has no videos.
        self.obs = "state" if self.attrs.get("obs") == "state" else "image"
        task, convention = task or self._stored_task(), self._action_convention(convention)
        files = find_files(self._folder)
        reasons = find_reasons(self._folder, files, task, convention, self.obs)
        if reasons or task is None or convention is None:
            raise refusal(path, reasons)
        self.task, self.convention = task, convention
        self.cameras = task.images(self.obs)
        self._rate = task.schema.rate
        self._features = files.features
        self._action_dim = files.features[ACTION_FEATURE].shape[0]
        self._orders = self._find_orders()
        self.notes = [
            f"{name}: values reordered as their names say" for name, order in self._orders.items() if order is not None
        ]
        self._episodes = read_episodes(self._folder)
        self.lengths = [read_integer(self._folder, row, "length") for row in self._episodes]
        instructions = {str(name) for row in self._episodes for name in _as_list(row.get("tasks"))}
        if len(instructions) > 1:
            names = shorten(tuple(sorted(instructions)), 3)
            self.notes.append(f"{len(instructions)} instructions ({names}): all episodes become '{task.name}'")
        self._table = functools.lru_cache(maxsize=1)(self._read_table)

    def sha256(self) -> str:
        """Hash of all files and their names, which identifies the source of a store."""
        return content_hash(self.path)

    @property
    def original_check(self) -> dict[str, Any]:
        """The attribute `check` of the store that the dataset was written from; NOT_VERIFIED if there is none."""
        check = self.attrs.get("check")
        return check if isinstance(check, dict) else NOT_VERIFIED

    def _stored_task(self) -> Task | None:
        if "task" not in self.attrs:
            return None
        return task_from_json(self.attrs["task"], f"'{self.path / STORE_ATTRIBUTES_PATH}'")

    def _action_convention(self, option: str | None) -> str | None:
        """The convention in the dataset, or else `option`, the value of --actions; None if neither is known."""
        stored = self.attrs.get("action")
        convention = stored.get("convention") if isinstance(stored, dict) else option
        if option not in (None, convention):
            raise DataError(
                f"'{self.path}' has {convention} actions, not {option} ones.",
                f"Omit --actions, then convert the resulting store with `ddp convert STORE --actions {option}`.",
            )
        return convention if isinstance(convention, str) and convention in (*ARM_WIDTHS, RECORDED) else None

    def _find_orders(self) -> dict[str, list[int] | None]:
        """Feature -> positions of its values in the order of the task; None where they are in this order."""
        where = f"'{self.path}': {{}}"
        # Only the action of one arm may be in another order.
        orders: dict[str, list[int] | None] = {
            STATE_FEATURE: order_of_observables(
                self._features[STATE_FEATURE].names, self.task.low_dim, where.format(STATE_FEATURE)
            ),
            ACTION_FEATURE: None,
        }
        if self.convention != RECORDED and self.task.n_robots == 1:
            orders[ACTION_FEATURE] = order_of_action(
                self._features[ACTION_FEATURE].names, self.convention, self._action_dim, where.format(ACTION_FEATURE)
            )
        if parts := self.task.robosuite.object:
            orders[OBJECT_FEATURE] = order_of_observables(
                self._features[OBJECT_FEATURE].names, parts, where.format(OBJECT_FEATURE)
            )
        return orders

    def check(self, indices: list[int], with_motion: bool = True) -> None:
        """Checks the episodes `indices`: all values, and of images what their files tell without decoding them all.
        `with_motion` also compares the actions with the motion, unless a replay has checked them.

        DataError for the first fault. Adds to `notes`.
        """
        self._check_indices_of_tables()
        with_motion = with_motion and self.original_check.get("result") != "passed"
        checks = ValueChecks(self.task, self.convention, with_motion, ADVICE)
        is_time_constant = True
        images = {
            key: TableImages(self.path, feature_of(key), camera)
            for key, camera in self.cameras.items()
            if not self._is_video(key)
        }
        for i in indices:
            rows, positions = self._rows(i)
            is_time_constant &= not np.diff(rows.get("timestamp", np.zeros(0))).any()
            vectors = self._vectors(rows)
            for name, values in vectors.items():
                check_finite(name, values, self._where(i))
            checks.add(vectors, self._to_store_actions(vectors["action"]), self._where(i))
            for reader in images.values():
                reader.check(table_of_episode(self._folder, self._episodes[i]), positions, self._where(i))
        self._check_videos(indices)
        if not any(name in rows for name in INDEX_COLUMNS[:2]) and is_time_constant:
            self.notes.append(
                "no frame_index, index or timestamp tells the order of the rows: they are taken as they are"
            )
        self.notes += checks.finish(f"'{self.path}'")

    def _check_indices_of_tables(self) -> None:
        """Every row belongs to an episode that meta/episodes lists once."""
        listed = [read_integer(self._folder, row, "episode_index") for row in self._episodes]
        repeated = next((index for index, number in Counter(listed).items() if number > 1), None)
        if repeated is not None:
            raise DataError(f"'{self.path}': meta/episodes lists episode {repeated} more than once.", COPY_AGAIN)
        for path in dict.fromkeys(table_of_episode(self._folder, row) for row in self._episodes):
            unknown = set(read_columns(path, {"episode_index": 0})["episode_index"].tolist()) - set(listed)
            if unknown:
                raise DataError(
                    f"'{path}' has rows of episode {min(unknown):g}, which meta/episodes does not list.", COPY_AGAIN
                )

    def _check_videos(self, indices: list[int]) -> None:
        """Every episode has its own frames, and all of them are there."""
        for key in filter(self._is_video, self.cameras):
            spans: dict[Path, list[tuple[int, int, int]]] = {}  # first frame, frame after the last, episode
            for i in indices:
                path, first = self._video(key, i)
                spans.setdefault(path, []).append((first, first + self.lengths[i], i))
            for path, parts in spans.items():
                for begin, i in find_overlaps(parts):
                    raise DataError(
                        f"{self._where(i)}: its part of '{path}' begins at frame {begin}, within that of another "
                        "episode.",
                        COPY_AGAIN,
                    )
                _, end, last = max(parts)
                check_video(path, end, self._episodes[last]["episode_index"], self.cameras[key], self._rate)

    def episodes(self, indices: list[int]) -> Iterator[dict[str, NDArray[Any]]]:
        """The episodes `indices` with the arrays of a store. Holds one episode and one table in memory."""
        videos = {key: VideoReader(camera, self._rate) for key, camera in self.cameras.items()}
        tables = {key: TableImages(self.path, feature_of(key), camera) for key, camera in self.cameras.items()}
        for i in indices:
            rows, positions = self._rows(i)
            vectors = self._vectors(rows)
            vectors["action"] = self._to_store_actions(vectors["action"])
            episode: dict[str, NDArray[Any]] = {key: values.astype(np.float32) for key, values in vectors.items()}
            for key in self.cameras:
                if self._is_video(key):
                    name = self._episodes[i]["episode_index"]
                    episode[key] = np.stack(list(videos[key].read(*self._video(key, i), self.lengths[i], name)))
                else:
                    table = table_of_episode(self._folder, self._episodes[i])
                    episode[key] = tables[key].read(table, positions, self._where(i))
            yield episode

    def _where(self, i: int) -> str:
        return f"'{self.path}' episode {self._episodes[i]['episode_index']}"

    def _is_video(self, key: str) -> bool:
        return self._features[feature_of(key)].dtype == "video"

    def _read_table(self, path: Path) -> Rows:
        widths = {name: self._features[name].shape[0] for name in self._orders}
        return read_columns(path, {**widths, "episode_index": 0, **dict.fromkeys(INDEX_COLUMNS, 0)}, INDEX_COLUMNS)

    def _rows(self, i: int) -> tuple[Rows, NDArray[np.int64]]:
        """The numeric columns of an episode, and its positions in its table."""
        row = self._episodes[i]
        columns = self._table(table_of_episode(self._folder, row))
        positions = np.flatnonzero(columns["episode_index"] == row["episode_index"])
        rows = {name: values[positions] for name, values in columns.items()}
        first = row.get("dataset_from_index")
        check_indices(rows, self.lengths[i], first if isinstance(first, int) else None, self._rate, self._where(i))
        return rows, positions

    def _vectors(self, rows: Rows) -> Rows:
        """Low-dimensional observations and actions as recorded, in the order of the task, (n, width) each."""
        values = {name: rows[name] if order is None else rows[name][:, order] for name, order in self._orders.items()}
        ends = list(itertools.accumulate(self.task.low_dim.values()))
        vectors = dict(zip(self.task.low_dim, np.split(values[STATE_FEATURE], ends[:-1], axis=1), strict=True))
        if self.task.object_dim:
            vectors["object"] = values[OBJECT_FEATURE]
        return vectors | {"action": values[ACTION_FEATURE]}

    def _to_store_actions(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = self.task.schema.action
        if self.convention != "absolute":
            return clip_to_limits(actions, parts)
        is_axis_angle = self._action_dim == self.task.schema.action_dim
        return axis_angle_to_rotation_6d(actions, parts) if is_axis_angle else actions

    def _video(self, key: str, i: int) -> tuple[Path, int]:
        """The video of an episode, and its first frame there."""
        row, name = self._episodes[i], f"videos/{feature_of(key)}"
        begin, end = (row.get(f"{name}/{edge}_timestamp") for edge in ("from", "to"))
        if not isinstance(begin, int | float) or not 0 <= begin < 1e9:
            raise DataError(f"{self._where(i)}: {name}/from_timestamp is {begin!r}.", COPY_AGAIN)
        first, length = round(begin * self._rate), self.lengths[i]
        if isinstance(end, int | float) and abs((end - begin) * self._rate - length) >= 1:
            raise DataError(
                f"{self._where(i)}: its part of {name} lasts {end - begin:g} s, expected {length / self._rate:g} s for "
                f"{length} steps.",
                COPY_AGAIN,
            )
        return video_of_episode(self._folder, row, feature_of(key)), first


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
