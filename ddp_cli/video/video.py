"""Video files and PNG images. The only user of imageio."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from ddp_cli.disk import atomic_file
from ddp_cli.errors import DdpError
from ddp_cli.locks import final_path, lock_output

FORMATS = (".mp4", ".mov", ".mkv", ".gif")
GIF_FRAME_STEP = 2  # a GIF holds every second frame, at half the rate: all videos play in real time

H264: dict[str, Any] = {
    "codec": "libx264", "pixelformat": "yuv420p", "quality": None, "macro_block_size": 16,
    "output_params": ["-crf", "23", "-movflags", "+faststart"],
}  # fmt: skip
COMPACT: dict[str, Any] = H264 | {
    "macro_block_size": 2, "output_params": ["-crf", "28", "-preset", "veryfast", "-movflags", "+faststart"],
}  # fmt: skip
LOSSLESS: dict[str, Any] = {
    "codec": "libx264rgb", "pixelformat": "rgb24", "quality": None, "macro_block_size": 1,
    "output_params": ["-crf", "0", "-movflags", "+faststart"],
}  # fmt: skip
GIF: dict[str, Any] = {
    "codec": "gif", "pixelformat": "pal8", "quality": None, "macro_block_size": 1,
}  # fmt: skip


def _gif_settings(colors: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    # One palette of 64 colors for the whole GIF, half the size of 256; without dithering most pixels stay constant
    # between frames. ffmpeg buffers all frames (4 bytes per pixel) until the palette is known. The palette is computed
    # from frames with a patch of each of `colors`: colors of few pixels would be missing from it otherwise.
    patches = "".join(
        f"drawbox=x={i}*iw/28:y=0:w=iw/28:h=ih/14:c=0x{r:02x}{g:02x}{b:02x}:t=fill,"
        for i, (r, g, b) in enumerate(colors)
    )
    filters = f"split[a][b];[a]{patches}palettegen=max_colors=64[p];[b][p]paletteuse=dither=none"
    # The last frame is shown for 1 s before the GIF repeats.
    return GIF | {"output_params": ["-filter_complex", filters, "-loop", "0", "-final_delay", "100", "-f", "gif"]}


def check_format(path: Path) -> None:
    """DdpError unless `path` has the extension of a supported video format."""
    if path.suffix.lower() not in FORMATS:
        raise DdpError(f"cannot write a video to '{path}'.", f"Name a file that ends in {', '.join(FORMATS)}.")


def is_gif(path: Path) -> bool:
    """Whether `path` has the extension of a GIF."""
    return path.suffix.lower() == ".gif"


class VideoWriter:
    """Writes an H.264 video for browsers at `rate` frames/s, or a repeating GIF of every second frame and the last.

    The file appears once it is complete. `colors` are part of the palette of a GIF, however few pixels have them.
    `lossless` stores the exact frames, of any even size; browsers may not be able to play them. `compact` makes
    a smaller file, in less time, of frames whose size is even; that of others is rounded up to a multiple of 16.
    `key_frame_interval` is a number of frames; the encoder chooses without it.
    """

    def __init__(
        self,
        path: Path,
        rate: float,
        colors: Sequence[tuple[int, int, int]] = (),
        lossless: bool = False,
        key_frame_interval: int | None = None,
        compact: bool = False,
    ) -> None:
        check_format(path)
        # imageio does not let ffmpeg write to a name that ends in .gif.
        suffix = ".mp4" if is_gif(path) else path.suffix
        self.path = path = final_path(path)
        self._partial = path.with_name(f".{path.name}.partial{suffix}")
        self._frames = self._written = 0
        self._skipped: NDArray[np.uint8] | None = None  # the last frame, if a GIF skipped it
        settings = _gif_settings(colors) if is_gif(path) else LOSSLESS if lossless else COMPACT if compact else H264
        settings = settings | {"fps": rate / GIF_FRAME_STEP if is_gif(path) else rate}
        if key_frame_interval is not None:
            settings = settings | {"output_params": [*settings["output_params"], "-g", str(key_frame_interval)]}
        with ExitStack() as stack:
            stack.enter_context(lock_output(path))
            self._writer: Any = imageio.get_writer(self._partial, format="FFMPEG", ffmpeg_log_level="error", **settings)
            self._lock = stack.pop_all()

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3)."""
        is_skipped = is_gif(self.path) and self._frames % GIF_FRAME_STEP > 0
        self._frames += 1
        self._skipped = frame if is_skipped else None
        if not is_skipped:
            self._write(frame)

    def _write(self, frame: NDArray[np.uint8]) -> None:
        try:
            self._writer.append_data(frame)
        except OSError as e:  # the encoder is another process: only its broken pipe is visible
            raise self._encoder_error() from e
        self._written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            try:
                if kind is None and self._skipped is not None:
                    self._write(self._skipped)
            finally:
                self._writer.close()
            if kind is None:
                if not self._is_complete():  # the index is written last, and missing if the disk was full
                    raise self._encoder_error()
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)
            self._lock.close()

    def _is_complete(self) -> bool:
        try:
            with closing(imageio.get_reader(self._partial, "GIF-PIL" if is_gif(self.path) else None)) as reader:
                return sum(1 for _ in reader.iter_data()) == self._written
        except (OSError, ValueError, IndexError):
            return False

    def _encoder_error(self) -> DdpError:
        return DdpError(
            f"the encoder failed to write '{self.path}': the disk is full, or the folder is not writable.",
            "Free disk space, or write the video to another disk.",
        )


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write `image` (H, W, 3) as PNG."""
    with atomic_file(path) as partial:
        imageio.imwrite(partial, image, format="png")
