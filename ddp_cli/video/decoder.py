"""Decodes videos with ffmpeg, which imageio brings. A damaged frame is an error; players conceal it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError
from ddp_cli.video.video_info import COPY_AGAIN, read_video_info

BLOCK_SIZE = 1 << 20
ZEROS = bytes(1024)
CODECS_WITHOUT_ZEROS = ("h264", "hevc", "av1")
"""Codecs whose frames hold no long runs of zeros. Decoders skip such a run silently."""


def iter_frames(
    path: Path, shape: tuple[int, int], begin: float = 0.0, filters: str = "null"
) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames (H, W, 3) of a video from `begin` [s] on, after ffmpeg's `filters`; `shape` (H, W) is that of
    `read_video_info`, unless they change it.

    DataError at the first frame that cannot be decoded.
    """
    seek = ["-ss", f"{begin:.6f}"] if begin else []
    command = _ffmpeg(path, seek, ["-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"])
    # Frames are read straight into their arrays: a buffer in between would copy them once more.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        try:
            count = 0
            while _read_into(process.stdout, frame := np.empty((*shape, 3), np.uint8)):
                count += 1
                yield frame
            if process.wait():
                raise _damaged(path, 0 if begin else count)
        finally:
            process.kill()


def _read_into(stream: IO[bytes], frame: NDArray[np.uint8]) -> bool:
    """Whether all of `frame` was read."""
    rest = memoryview(frame.reshape(-1).data)
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            return False
        rest = rest[count:]
    return True


def count_frames(path: Path) -> int:
    """The number of frames of a video, all of which are decoded. DataError if one is damaged."""
    command = _ffmpeg(path, [], ["-progress", "pipe:1", "-f", "null", "-"])
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    counts = [line.removeprefix("frame=").strip() for line in done.stdout.splitlines() if line.startswith("frame=")]
    if done.returncode or not counts or not counts[-1].isdigit():
        raise _damaged(path, int(counts[-1]) if counts and counts[-1].isdigit() else 0)
    check_zeros(path, read_video_info(path).codec)
    return int(counts[-1])


def _ffmpeg(path: Path, input_options: list[str], output_options: list[str]) -> list[str | Path]:
    """A command that decodes every frame once and stops at the first damaged one."""
    return [
        imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode",
        *input_options, "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", *output_options,
    ]  # fmt: skip


def _damaged(path: Path, count: int) -> DataError:
    return DataError(f"'{path}' is damaged{f' after frame {count}' if count else ''}.", COPY_AGAIN)


def check_zeros(path: Path, codec: str) -> None:
    """DataError if frames were overwritten with zeros, which the decoder does not notice."""
    if codec in CODECS_WITHOUT_ZEROS and _has_zeros(path):
        raise DataError(f"'{path}' is damaged: a part of it was overwritten with zeros, or not copied.", COPY_AGAIN)


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
