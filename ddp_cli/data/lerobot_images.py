"""Reads the images of LeRobot datasets: from videos that hold many episodes, or from tables.

A table holds a struct of `bytes` (an encoded image) and `path` (a file in the dataset, if `bytes` is null) per step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.lerobot_layout import is_inside
from ddp_cli.data.parquet import COPY_AGAIN, ColumnReader
from ddp_cli.errors import DataError
from ddp_cli.schema import Camera
from ddp_cli.video.decoder import check_zeros, count_frames, iter_frames
from ddp_cli.video.images import decode_image
from ddp_cli.video.video_info import VideoInfo, read_video_info

RATE_TOLERANCE = 0.01
MAX_SKIPPED = 250  # frames that are decoded rather than searched for: a usual interval between key frames


def check_video(path: Path, frames: int, episode: int, camera: Camera, rate: float) -> None:
    """DataError unless the video has the size of `camera`, `rate` [Hz], and at least `frames`, the end of `episode`.

    Decodes all of it.
    """
    _check_header(path, camera, rate)
    n_frames = count_frames(path)
    if n_frames < frames:
        raise DataError(f"'{path}' has {n_frames} frames, but episode {episode} ends at frame {frames}.", COPY_AGAIN)


def _check_header(path: Path, camera: Camera, rate: float) -> VideoInfo:
    """The header of a video; DataError unless it has the recorded size of `camera` and `rate` [Hz]."""
    info = read_video_info(path)
    height, width, _ = camera.recorded_shape
    if (info.height, info.width) != (height, width):
        raise DataError(
            f"'{path}' has images of {info.height}x{info.width} pixels, expected {height}x{width}.",
            "Resize the images.",
        )
    if abs(info.rate / rate - 1) > RATE_TOLERANCE:
        raise DataError(
            f"'{path}' plays at {info.rate:g} Hz, the dataset was recorded at {rate:g} Hz.",
            "Write the video with a frame per step, at the rate of the dataset.",
        )
    return info


class VideoReader:
    """Reads episodes from videos of `camera` that hold many, at `rate` [Hz]. In the order of the video, each frame is
    decoded once. If `camera` is resized, so are its images, by ffmpeg: passing them in full size takes longer.

    Frames are counted from the first one. With `seek`, those far ahead are searched by their time instead, which is
    fast, and may be a frame off where the video does not have exactly this rate.
    """

    def __init__(self, camera: Camera, rate: float, seek: bool = False) -> None:
        self._camera, self._rate, self._seek = camera, rate, seek
        self._path: Path | None = None
        self._position = 0
        self._frames: Iterator[NDArray[np.uint8]] = iter(())

    def read(self, path: Path, first: int, count: int, episode: int) -> Iterator[NDArray[np.uint8]]:
        """Yields the images (H, W, 3) `first` to `first + count` of a video, those of `episode`; DataError if they are
        fewer, damaged, of another size or at another rate.
        """
        if path != self._path:
            check_zeros(path, _check_header(path, self._camera, self._rate).codec)
        if path != self._path or first < self._position:
            self._open(path, 0)
        if self._seek and first - self._position > MAX_SKIPPED:
            self._open(path, first)
        n_read = 0
        for image in itertools.islice(self._frames, first - self._position + count):
            self._position += 1
            if self._position > first:
                n_read += 1
                yield image
        if n_read < count:
            raise DataError(f"'{path}' ends after {n_read} of {count} images of episode {episode}.", COPY_AGAIN)

    def _open(self, path: Path, first: int) -> None:
        # Half a frame earlier: the time of the first one is rounded.
        begin = max(0.0, (first - 0.5) / self._rate)
        size = (self._camera.height, self._camera.width)
        self._frames = iter_frames(path, size, begin, self._camera.ffmpeg_filter)
        self._path, self._position = path, first


class TableImages:
    """Reads images of `camera` from the column `feature` of the tables of the dataset `folder`."""

    def __init__(self, folder: Path, feature: str, camera: Camera) -> None:
        self._folder, self._feature, self._camera = folder, feature, camera
        self._column = ColumnReader()

    def check(self, table: Path, rows: NDArray[np.int64], location: str) -> None:
        """DataError unless all images are there and the first of `rows` can be decoded."""
        cells = self._column.read(table, self._feature, rows)
        for step, cell in enumerate(cells):
            self._source(cell, f"{location}, {self._feature} of step {step}")
        self._decode(cells[0], f"{location}, {self._feature} of step 0")

    def read(self, table: Path, rows: NDArray[np.int64], location: str) -> NDArray[np.uint8]:
        """The images of `rows` (n, H, W, 3). DataError, beginning with `location`, names the step of a fault."""
        cells = self._column.read(table, self._feature, rows)
        return np.stack(
            [self._decode(cell, f"{location}, {self._feature} of step {step}") for step, cell in enumerate(cells)]
        )

    def _decode(self, cell: Any, location: str) -> NDArray[np.uint8]:
        source = self._source(cell, location)
        content = source if isinstance(source, bytes) else source.read_bytes()
        return decode_image(content, (self._camera.height, self._camera.width), location)

    def _source(self, cell: Any, location: str) -> bytes | Path:
        """The encoded image in a cell, or the file that it refers to."""
        parts = cell if isinstance(cell, dict) else {"bytes": cell} if isinstance(cell, bytes) else {"path": cell}
        content, path = parts.get("bytes"), parts.get("path")
        if isinstance(content, bytes) and content:
            return content
        if not isinstance(path, str) or not path:
            raise DataError(f"{location}: the table holds no image.", COPY_AGAIN)
        if not is_inside(path):
            raise DataError(
                f"{location}: the table refers to the file '{path}', outside of the dataset.",
                "Store the images in the table, or as paths relative to the folder of the dataset.",
            )
        if not (self._folder / path).is_file():
            raise DataError(f"{location}: no file '{self._folder / path}'.", COPY_AGAIN)
        return self._folder / path
