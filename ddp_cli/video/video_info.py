"""What the header of a video declares."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio

from ddp_cli.errors import DataError

COPY_AGAIN = "Copy it again."
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of rotated videos, whose size it knows


class VideoInfo(NamedTuple):
    """Size of the decoded frames [pixels], and their number per second."""

    height: int
    width: int
    rate: float
    codec: str


def read_video_info(path: Path) -> VideoInfo:
    """The header of a video; DataError if it is missing or damaged."""
    if not path.is_file():
        raise DataError(f"no file '{path}'.", COPY_AGAIN)
    try:
        with closing(imageio.get_reader(path, "FFMPEG")) as reader:
            header = reader.get_meta_data()
        width, height = header["size"]  # after a rotation that the header asks for
        return VideoInfo(height, width, float(header["fps"]), str(header.get("codec", "")))
    except (OSError, ValueError, IndexError, RuntimeError, KeyError) as e:
        raise DataError(f"'{path}' is damaged or not a video.", COPY_AGAIN) from e
