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
from ddp_cli.video.images import decode_image
from ddp_cli.video.video import iter_frames
from ddp_cli.video.video_info import count_frames, read_video_info

RATE_TOLERANCE = 0.01


def check_video(path: Path, frames: int, episode: int, camera: Camera, rate: float) -> None:
    """DataError unless the video has the size of `camera`, `rate` [Hz], and at least `frames`, the end of `episode`."""
    info = read_video_info(path)
    if (info.height, info.width) != (camera.height, camera.width):
        raise DataError(
            f"'{path}' has images of {info.height}x{info.width} pixels, expected {camera.height}x{camera.width}.",
            "Resize the images.",
        )
    if abs(info.rate / rate - 1) > RATE_TOLERANCE:
        raise DataError(
            f"'{path}' plays at {info.rate:g} Hz, the dataset was recorded at {rate:g} Hz.",
            "Write the video with a frame per step, at the rate of the dataset.",
        )
    n_frames = count_frames(path)
    if n_frames < frames:
        raise DataError(f"'{path}' has {n_frames} frames, but episode {episode} ends at frame {frames}.", COPY_AGAIN)


class VideoReader:
    """Reads episodes from videos of `camera` that hold many: in the order of the video, each frame is decoded once."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._path: Path | None = None
        self._position = 0
        self._frames: Iterator[NDArray[np.uint8]] = iter(())

    def read(self, path: Path, first: int, count: int) -> NDArray[np.uint8]:
        """The images `first` to `first + count` (count, H, W, 3); DataError if they are fewer or of another size."""
        if path != self._path or first < self._position:
            self._path, self._position, self._frames = path, 0, iter_frames(path)
        images = list(itertools.islice(self._frames, first - self._position, first - self._position + count))
        self._position = first + count
        expected = (count, *self._camera.shape)
        shape = (len(images), *(images[0].shape if images else ()))
        if shape != expected:
            raise DataError(
                f"'{path}': images {first} to {first + count} have shape {shape}, expected {expected}.", COPY_AGAIN
            )
        return np.stack(images)


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
