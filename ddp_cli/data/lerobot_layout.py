"""Where LeRobot datasets keep their parts, in every format; what info.json declares.

v3.0   meta/info.json, meta/episodes/*/*.parquet; many episodes per file in data/ and videos/
v2.x   meta/info.json, meta/episodes.jsonl; a file per episode in data/ and videos/
v1     no description, or meta_data/info.json; an arrow table in train/, a video per episode in videos/
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ddp_cli.data.parquet import COPY_AGAIN
from ddp_cli.errors import DataError

VERSION = "v3.0"
"""The format that is read and written; other formats are described only."""
FIRST_VERSION = "v1"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO_PATH, STORE_ATTRIBUTES_PATH = "meta/info.json", "meta/ddp.json"
INFO_PATH_V1 = "meta_data/info.json"
TABLES_V1 = ("train/*.arrow", "data/train-*.parquet")
STATE_FEATURE, OBJECT_FEATURE, ACTION_FEATURE = "observation.state", "observation.environment_state", "action"
MAX_COUNT = 1 << 40

TEMPLATE_FIELD = re.compile(
    r"\{(?:chunk_index|file_index|episode_chunk|episode_index)(?::0?\d?d)?\}|\{video_key\}|[^{}]+"
)


class Feature(NamedTuple):
    """A feature of a dataset. `shape` is empty and `names` None where info.json does not state them."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None

    @property
    def is_visual(self) -> bool:
        """Whether it holds images, in videos or in the table."""
        return self.dtype in ("video", "image")


@dataclass(frozen=True)
class LeRobotFolder:
    """A dataset as described by its own files. `info` is the content of info.json; counts are None if not stated."""

    path: Path
    version: str
    info: dict[str, Any]
    features: dict[str, Feature]

    @property
    def fps(self) -> float | None:
        """Declared frames per second."""
        return _positive(self.info.get("fps"))

    def count(self, name: str) -> int | None:
        """A declared number (`total_episodes`, `total_frames`)."""
        value = self.info.get(name)
        return value if type(value) is int and 0 <= value < MAX_COUNT else None

    def file(self, name: str, **fields: int | str) -> Path:
        """The path template `name` of info.json, filled in; DataError if it leads out of the dataset."""
        template = self.info.get(name)
        if isinstance(template, str) and len(template) < 1000 and _is_template(template):
            try:
                relative = template.format(**fields)
            except KeyError:
                relative = ""
            if is_inside(relative):
                return self.path / relative
        raise DataError(f"'{self.path / INFO_PATH}': {name} is {template!r}.", COPY_AGAIN)


def is_lerobot(path: Path) -> bool:
    """Whether `path` is a folder in LeRobot's layout, of any format."""
    return (path / INFO_PATH).is_file() or _is_first_version(path)


def reject_collection(path: Path) -> None:
    """DataError if `path` is a folder of datasets rather than a dataset."""
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and is_lerobot(child))
    if names:
        raise DataError(f"'{path}' holds {len(names)} LeRobot datasets.", f"Name one of them: {', '.join(names[:5])}.")


def _is_first_version(path: Path) -> bool:
    return (path / INFO_PATH_V1).is_file() or any(True for pattern in TABLES_V1 for _ in path.glob(pattern))


def open_folder(path: Path) -> LeRobotFolder:
    """The dataset in the folder `path`; DataError if its description is damaged. Features of v1 are in its table."""
    if not (path / INFO_PATH).is_file() and _is_first_version(path):
        info = read_json_object(path / INFO_PATH_V1) if (path / INFO_PATH_V1).is_file() else {}
        return LeRobotFolder(path, FIRST_VERSION, info, {})
    info = read_json_object(path / INFO_PATH)
    features = info.get("features")
    described = {
        str(name): Feature(str(feature.get("dtype")), _shape(feature.get("shape")), flatten_names(feature.get("names")))
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict)
    }
    return LeRobotFolder(path, str(info.get("codebase_version")), info, described)


def feature_of(key: str) -> str:
    """LeRobot's name of an image key: `agentview_image` -> `observation.images.agentview`."""
    return f"observation.images.{key.removesuffix('_image')}"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a dataset; DataError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    raise DataError(f"'{path}' is missing or not a JSON object.", COPY_AGAIN)


def flatten_names(names: Any, depth: int = 3) -> tuple[str, ...] | None:
    """The names of the values of a feature, from any of the forms that datasets have; None if they are not stated.

    A list, a list of lists, lists by kind (`{"motors": [...]}`), or positions by name (`{"x": 0, "y": 1}`).
    """
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        positions = list(names.values())
        if all(type(position) is int for position in positions):
            return tuple(sorted(names, key=names.__getitem__)) or None
        names = positions
    if not isinstance(names, list) or depth == 0:
        return None
    return tuple(itertools.chain(*(flatten_names(name, depth - 1) or () for name in names))) or None


def is_inside(relative: str) -> bool:
    """Whether the relative path `relative` stays inside of the folder that it is relative to."""
    path = Path(relative)
    return relative not in ("", ".") and "\0" not in relative and not path.is_absolute() and ".." not in path.parts


def _is_template(text: str) -> bool:
    return "".join(TEMPLATE_FIELD.findall(text)) == text


def _shape(value: Any) -> tuple[int, ...]:
    is_shape = isinstance(value, list) and len(value) > 0 and all(type(side) is int and side >= 0 for side in value)
    return tuple(value) if is_shape else ()


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < 1e6 else None
