"""Video files and pictures; the only user of imageio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DataError, DdpError
from ddp_cli.tasks import CONTROL_HZ

FORMATS = (".mp4", ".mov", ".mkv", ".gif")
GIF_EVERY = 2  # frames: a GIF plays at half the control rate, in real time like all others

H264: dict[str, Any] = {
    "fps": CONTROL_HZ, "codec": "libx264", "pixelformat": "yuv420p", "quality": None, "macro_block_size": 16,
    "output_params": ["-crf", "23", "-movflags", "+faststart"],
}  # fmt: skip
LOSSLESS: dict[str, Any] = {
    "fps": CONTROL_HZ, "codec": "libx264rgb", "pixelformat": "rgb24", "quality": None, "macro_block_size": 1,
    # To show any frame at most 8 have to be decoded: training reads them at random.
    "output_params": ["-crf", "0", "-g", "8", "-movflags", "+faststart"],
}  # fmt: skip
GIF: dict[str, Any] = {
    "fps": CONTROL_HZ / GIF_EVERY, "codec": "gif", "pixelformat": "pal8", "quality": None, "macro_block_size": 1,
}  # fmt: skip


def _gif(colours: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    # One palette for the whole GIF, half as large with 64 colours as with 256; without dithering much of a picture
    # does not change from frame to frame. ffmpeg keeps all frames (4 bytes a pixel) until it knows the palette, and
    # makes it of pictures with a patch of each of `colours`: what few pixels have would not get into it.
    patches = "".join(
        f"drawbox=x={i}*iw/28:y=0:w=iw/28:h=ih/14:c=0x{r:02x}{g:02x}{b:02x}:t=fill,"
        for i, (r, g, b) in enumerate(colours)
    )
    filters = f"split[a][b];[a]{patches}palettegen=max_colors=64[p];[b][p]paletteuse=dither=none"
    # The last frame stays for 1 s, so that the end is seen before it begins again.
    return GIF | {"output_params": ["-filter_complex", filters, "-loop", "0", "-final_delay", "100", "-f", "gif"]}


def check_format(path: Path) -> None:
    """DdpError unless the name of `path` ends like a video that can be written."""
    if path.suffix.lower() not in FORMATS:
        raise DdpError(f"cannot write a video to '{path}'.", f"Name a file that ends in {', '.join(FORMATS)}.")


def is_gif(path: Path) -> bool:
    return path.suffix.lower() == ".gif"


class VideoWriter:
    """An H.264 file that browsers play, at the control rate, or a GIF that repeats, of every second frame and the
    last. It exists only once it is whole. `colours` are what a GIF must not lose, however few pixels have them.
    `lossless`: exactly the frames that were given, of any even size, which browsers may not play.
    """

    def __init__(self, path: Path, colours: Sequence[tuple[int, int, int]] = (), lossless: bool = False) -> None:
        check_format(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # imageio does not let ffmpeg write to a name that ends in .gif.
        suffix = ".mp4" if is_gif(path) else path.suffix
        self.path, self._partial = path, path.with_name(f".{path.name}.partial{suffix}")
        self._frames = self._written = 0
        self._last: NDArray[np.uint8] | None = None  # a frame that the GIF leaves out unless it is the last
        settings = _gif(colours) if is_gif(path) else LOSSLESS if lossless else H264
        self._writer: Any = imageio.get_writer(self._partial, format="FFMPEG", ffmpeg_log_level="error", **settings)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame (H, W, 3)."""
        skipped = is_gif(self.path) and self._frames % GIF_EVERY > 0
        self._frames += 1
        self._last = frame if skipped else None
        if not skipped:
            self._write(frame)

    def _write(self, frame: NDArray[np.uint8]) -> None:
        try:
            self._writer.append_data(frame)
        except OSError as e:  # the encoder is a process of its own: all we see is that it has gone
            raise self._stopped() from e
        self._written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            try:
                if kind is None and self._last is not None:
                    self._write(self._last)
            finally:
                self._writer.close()
            if kind is None:
                if not self._whole():  # the index is written last: it is what a full disk cuts off
                    raise self._stopped()
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _whole(self) -> bool:
        try:
            with closing(imageio.get_reader(self._partial, "GIF-PIL" if is_gif(self.path) else None)) as reader:
                return sum(1 for _ in reader.iter_data()) == self._written
        except (OSError, ValueError, IndexError):
            return False

    def _stopped(self) -> DdpError:
        return DdpError(
            f"the encoder stopped while writing '{self.path}': the disk is full, or the folder cannot be written.",
            "Free some space, or name a video on another disk.",
        )


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """`picture` (H, W, 3) as PNG."""
    with atomic_file(path) as partial:
        imageio.imwrite(partial, picture, format="png")


def frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames (H, W, 3) of a video, one by one; DataError when it is missing or no video."""
    if not path.is_file():
        raise DataError(f"no file '{path}'.", "Copy it again.")
    try:
        with closing(imageio.get_reader(path, "FFMPEG")) as reader:
            yield from reader.iter_data()
    except (OSError, ValueError, IndexError, RuntimeError) as e:
        raise DataError(f"'{path}' is damaged, or no video.", "Copy it again.") from e


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video (n, H, W, 3)."""
    return np.stack([np.asarray(frame)[..., :3] for frame in imageio.mimread(path, memtest=False)])
