"""The videos of a page: inside it as long as all of them fit, otherwise in a folder beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ddp_cli.disk import atomic_folder, remove_folder
from ddp_cli.resize import resize
from ddp_cli.video.video import VideoWriter

Item = TypeVar("Item")

MIN_SIDE, MAX_SIDE = 160, 320
"""[pixels] Smaller images are enlarged by a whole factor, larger ones are reduced."""
FIRST = "video-0.mp4"
"""In every folder of videos that a report wrote, and so a mark of it."""


def video_folder(page: Path) -> Path:
    """The folder of the videos of a page that does not hold them itself."""
    return page.with_name(f"{page.stem}-videos")


class Videos:
    """Encodes videos into a temporary folder, which exists inside the `with` block, and gives each of them an id."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ddp-report-")
        self._files: dict[str, Path] = {}

    def __enter__(self) -> Videos:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._folder.cleanup()

    @property
    def megabytes(self) -> float:
        """Size of all videos so far."""
        return sum(path.stat().st_size for path in self._files.values()) / 1e6

    def new_path(self) -> tuple[str, Path]:
        """The id of the next video, and the path to write it to."""
        id = f"video-{len(self._files)}"
        self._files[id] = Path(self._folder.name) / f"{id}.mp4"
        return id, self._files[id]

    def add(self, frames: Iterable[NDArray[Any]], rate: float) -> str:
        """The id of a new video of `frames`, images (H, W, 1 or 3) from 0 to 255, one per step at `rate` [Hz]."""
        id, path = self.new_path()
        try:
            # A key frame per second: a browser decodes from one of them to show a step.
            with VideoWriter(path, rate, key_frame_interval=max(1, round(rate)), compact=True) as video:
                for frame in frames:
                    video.add(fit_frame(frame))
        except BaseException:  # a frame could not be read: there is no such video
            del self._files[id]
            raise
        return id

    def add_file(self, path: Path) -> str:
        """The id of an existing MP4 file."""
        id = f"video-{len(self._files)}"
        self._files[id] = path
        return id

    def sources(self, page: Path, max_mb: float) -> dict[str, bytes | str]:
        """Id of each video -> its content, or its URL relative to `page` if together they have more than `max_mb`."""
        if self.megabytes <= max_mb:
            return {id: path.read_bytes() for id, path in self._files.items()}
        folder = os.fsencode(video_folder(page).name)  # the name may not be valid UTF-8
        return {id: quote(folder + f"/{id}.mp4".encode()) for id in self._files}

    def write_beside(self, page: Path) -> None:
        """Writes all videos to the folder of `page`, which is replaced."""
        with atomic_folder(video_folder(page)) as partial:
            for id, path in self._files.items():
                shutil.copyfile(path, partial / f"{id}.mp4")


def remove_videos_beside(page: Path) -> None:
    """Removes the folder of the videos of an earlier page, if there is one."""
    folder = video_folder(page)
    if (folder / FIRST).is_file():
        remove_folder(folder)


def choose_evenly(items: Sequence[Item], at_most: int) -> list[Item]:
    """`at_most` of `items` in even distances, the first and the last among them, or all if there are fewer."""
    indices = np.linspace(0, len(items) - 1, min(at_most, len(items))).round().astype(int)
    return [items[i] for i in indices]


def fit_frame(image: NDArray[Any], max_side: int = MAX_SIDE, min_side: int = MIN_SIDE) -> NDArray[np.uint8]:
    """`image` (H, W, 1 or 3) in color, with even sides as encoders need them: the shorter one is at least `min_side`,
    and the longer one at most `max_side`.
    """
    pixels = np.broadcast_to(np.clip(image, 0, 255).astype(np.uint8), (*image.shape[:2], 3))
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest > max_side:
        height, width = (max(1, round(side * max_side / longest)) for side in (height, width))
        pixels = resize(np.ascontiguousarray(pixels), (height, width))
    elif min(height, width) < min_side:
        scale = max(1, min(-(-min_side // min(height, width)), max_side // longest))
        pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
