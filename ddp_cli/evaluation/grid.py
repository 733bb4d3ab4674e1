"""Several episodes side by side in one video."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_cli.errors import ConfigError
from ddp_cli.evaluation.filming import FRAME_SIZE, GIF_FRAME_SIZE, Film, make_film
from ddp_cli.evaluation.rollout import Agent, Environment, EpisodeResult, StepInfo, run_episode
from ddp_cli.video.overlay import DARK, GREEN, OVERLAY_COLORS, RED, Color, RGBImage, border_width, draw_border
from ddp_cli.video.video import VideoWriter, is_gif

MAX_GRID_SIDE = 8  # rows or columns
MAX_VIDEO_SIDE, MAX_GIF_SIDE = 1056, 512  # [pixels], longer side of the video
MIN_TILE_SIZE = 128  # [pixels], smallest tile that the caption fits in


@dataclass(frozen=True)
class Grid:
    """Rows and columns of tiles, one episode each."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns

    def tile_size(self, gif: bool) -> int:
        """Height and width of a tile [pixels]: a multiple of 16, as the encoder requires."""
        available = (MAX_GIF_SIDE if gif else MAX_VIDEO_SIDE) // max(self.rows, self.columns)
        return max(MIN_TILE_SIZE, min(GIF_FRAME_SIZE if gif else FRAME_SIZE, available // 16 * 16))


def parse_grid(text: str) -> Grid:
    """Parse ROWSxCOLUMNS, for example `3x3`; ConfigError if it is malformed or too large."""
    rows, _, columns = text.lower().partition("x")
    if not all(n.isascii() and n.isdigit() and 1 <= int(n) <= MAX_GRID_SIDE for n in (rows, columns)):
        raise ConfigError(
            f"'{text}' is not a grid.", f"Write ROWSxCOLUMNS, for example 3x3; at most {MAX_GRID_SIDE}x{MAX_GRID_SIDE}."
        )
    return Grid(int(rows), int(columns))


def record_episode_grid(
    env: Environment,
    agent: Agent,
    seeds: Sequence[int],
    grid: Grid,
    path: Path,
    on_episode: Callable[[EpisodeResult], None],
) -> None:
    """Run the episodes `seeds` one after another and write them to the video `path`, playing side by side.

    A tile shows the first camera. After the end of its episode it shows the last frame, with a green border
    after a success and a red one otherwise; tiles without an episode stay dark. `on_episode` is called after each
    episode.
    """
    size = grid.tile_size(is_gif(path))
    with (
        VideoWriter(path, env.task.schema.rate, OVERLAY_COLORS) as video,
        closing(_FrameBuffer(path.parent, size)) as frames,
    ):
        for seed in seeds:
            film = make_film(env, seed, size, all_cameras=False)
            frames.start_episode()

            def on_step(info: StepInfo, film: Film = film) -> None:
                frames.add(film.render_frame(info))

            result = run_episode(env, agent, seed, on_step)
            frames.end_episode(GREEN if result.success else RED)
            on_episode(result)
        canvas = np.full((grid.rows * size, grid.columns * size, 3), DARK, np.uint8)
        for step in range(frames.max_length):
            for i in range(len(seeds)):
                tile = frames.tile(i, step)
                if tile is not None:
                    y, x = i // grid.columns * size, i % grid.columns * size
                    canvas[y : y + size, x : x + size] = tile
            video.add(canvas)


class _FrameBuffer:
    """Frames of several episodes, compressed, in an unnamed temporary file that is deleted with the process.

    Episodes run one after another, but play together. In memory, 9 episodes of 400 steps could take 1.3 GB.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._size = size
        self._spans: list[list[tuple[int, int]]] = []  # offset and length in the file, per episode and frame
        self._border_colors: list[Color] = []

    def start_episode(self) -> None:
        """Begin a new episode; `add` appends its frames."""
        self._spans.append([])

    def add(self, frame: RGBImage) -> None:
        """Append a frame to the current episode."""
        compressed = zlib.compress(frame.tobytes(), 1)
        self._spans[-1].append((self._file.tell(), len(compressed)))
        self._file.write(compressed)

    def end_episode(self, color: Color) -> None:
        """End the current episode; its last frame gets a border of `color`."""
        self._border_colors.append(color)

    @property
    def max_length(self) -> int:
        """Number of frames of the longest episode."""
        return max(len(spans) for spans in self._spans)

    def tile(self, episode: int, step: int) -> RGBImage | None:
        """Frame `step` of an episode, None after its last one."""
        spans = self._spans[episode]
        if step >= len(spans):
            return None
        offset, length = spans[step]
        self._file.seek(offset)
        frame = np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8)
        frame = frame.reshape(self._size, self._size, 3)
        if step + 1 == len(spans):
            return draw_border(frame, self._border_colors[episode], border_width(frame))
        return draw_border(frame, DARK, 1)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
