"""Videos of episodes; the only user of imageio."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DdpError
from ddp_cli.sim.rollout import Agent, EpisodeResult, run_episode
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CONTROL_HZ

FRAME_SIZE = 512  # [pixels], height and width of each camera in a video


class VideoWriter:
    """An H.264 file that browsers play, at the control rate. It exists only once it is whole."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise DdpError(f"cannot write a video to '{path}'.", "Name a file that ends in .mp4.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        self._frames = 0
        self._writer: Any = imageio.get_writer(
            self._partial, fps=CONTROL_HZ, codec="libx264", pixelformat="yuv420p", quality=8, macro_block_size=16
        )

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame (H, W, 3)."""
        try:
            self._writer.append_data(frame)
        except OSError as e:  # the encoder is a process of its own: all we see is that it has gone
            raise self._stopped() from e
        self._frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._writer.close()
        if kind is not None:
            self._partial.unlink(missing_ok=True)
            return
        try:
            whole = sum(1 for _ in imageio.get_reader(self._partial).iter_data()) == self._frames
        except (OSError, ValueError, IndexError):
            whole = False
        if not whole:  # the index is written last: it is what a full disk cuts off
            self._partial.unlink(missing_ok=True)
            raise self._stopped()
        self._partial.replace(self.path)

    def _stopped(self) -> DdpError:
        return DdpError(
            f"the encoder stopped while writing '{self.path}': the disk is full, or the folder cannot be written.",
            "Free some space, or name a video on another disk.",
        )


def picture(sim: Simulator, success: bool = False, size: int = FRAME_SIZE) -> NDArray[np.uint8]:
    """The task's cameras side by side (size, n size, 3); a green bar below once the task has succeeded."""
    frame = np.hstack([sim.image(key, size) for key in sim.task.cameras])
    if success:
        frame[-8:] = (40, 180, 70)
    return frame


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video (n, H, W, 3)."""
    return np.stack([np.asarray(frame) for frame in imageio.mimread(path, memtest=False)])


def record(sim: Simulator, agent: Agent, seed: int, path: Path, size: int = FRAME_SIZE) -> EpisodeResult:
    """Runs the episode `seed` and writes it to `path`."""
    with VideoWriter(path) as video:
        return run_episode(sim, agent, seed, lambda _step, success: video.add(picture(sim, success, size)))
