"""What a video declares, and whether all of it can be decoded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio
import imageio_ffmpeg

from ddp_cli.errors import DataError

COPY_AGAIN = "Copy it again."
BLOCK_SIZE = 1 << 20
ZEROS = bytes(1024)
CODECS_WITHOUT_ZEROS = ("h264", "hevc", "av1")
"""Codecs whose frames hold no long runs of zeros. Decoders skip such a run silently."""


class VideoInfo(NamedTuple):
    """What the header of a video declares: `rate` in frames per second."""

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
        width, height = header["source_size"]
        return VideoInfo(height, width, float(header["fps"]), str(header.get("codec", "")))
    except (OSError, ValueError, IndexError, RuntimeError, KeyError) as e:
        raise DataError(f"'{path}' is damaged or not a video.", COPY_AGAIN) from e


def count_frames(path: Path) -> int:
    """The number of frames of a video. All are decoded; DataError if one is damaged, which players only conceal."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode", "-i", path,
        "-map", "0:v:0", "-fps_mode", "passthrough", "-progress", "pipe:1", "-f", "null", "-",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    counts = [line.removeprefix("frame=").strip() for line in done.stdout.splitlines() if line.startswith("frame=")]
    if done.returncode or not counts or not counts[-1].isdigit():
        decoded = f" after frame {counts[-1]}" if counts and counts[-1] not in ("0", "N/A") else ""
        raise DataError(f"'{path}' is damaged{decoded}.", COPY_AGAIN)
    if read_video_info(path).codec in CODECS_WITHOUT_ZEROS and _has_zeros(path):
        raise DataError(f"'{path}' is damaged: a part of it was overwritten with zeros, or not copied.", COPY_AGAIN)
    return int(counts[-1])


def _has_zeros(path: Path) -> bool:
    """Whether the frames of an MP4 file hold a long run of zeros; False for other files."""
    with path.open("rb") as file:
        for begin, end in _media_boxes(path):
            file.seek(begin)
            last = b""
            while block := file.read(max(0, min(BLOCK_SIZE, end - file.tell()))):
                if ZEROS in last + block:
                    return True
                last = block[-len(ZEROS) :]
    return False


def _media_boxes(path: Path) -> Iterator[tuple[int, int]]:
    """Begin and end of the boxes with frames in an MP4 file."""
    size, begin = path.stat().st_size, 0
    with path.open("rb") as file:
        while begin + 8 <= size:
            file.seek(begin)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # 64-bit length
                length = int.from_bytes(header[8:16], "big")
            end = begin + length if length else size
            if header[4:8] == b"mdat":
                yield begin + 16, min(end, size)
            if end < begin + 8:
                return
            begin = end
