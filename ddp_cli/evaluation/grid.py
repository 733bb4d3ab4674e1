"""Many episodes in one video, side by side."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_cli.errors import DdpError
from ddp_cli.evaluation.filming import FRAME_SIZE, GIF_SIZE, EpisodeFilm
from ddp_cli.evaluation.rollout import Agent, EpisodeResult, StepInfo, run_episode
from ddp_cli.sim.simulator import Simulator
from ddp_cli.video.overlay import COLOURS, DARK, GREEN, RED, Colour, Picture, draw_frame, frame_width
from ddp_cli.video.video import VideoWriter, is_gif

MOST = 8  # rows, and columns
LARGEST, LARGEST_GIF = 1056, 512  # [pixels], the longer side of the whole picture
SMALLEST = 128  # [pixels], of a tile: smaller ones have no room for the text


@dataclass(frozen=True)
class Grid:
    """Rows and columns of tiles, one episode each."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    def tile_size(self, gif: bool) -> int:
        """[pixels], a multiple of 16, as the encoder wants it."""
        room = (LARGEST_GIF if gif else LARGEST) // max(self.rows, self.columns)
        return max(SMALLEST, min(GIF_SIZE if gif else FRAME_SIZE, room // 16 * 16))


def parse_grid(text: str) -> Grid:
    """`3x3` -> Grid(3, 3)."""
    rows, _, columns = text.lower().partition("x")
    if not all(n.isascii() and n.isdigit() and 1 <= int(n) <= MOST for n in (rows, columns)):
        raise DdpError(f"'{text}' is no grid.", f"Write ROWSxCOLUMNS, for example 3x3; at most {MOST}x{MOST}.")
    return Grid(int(rows), int(columns))


def record_grid(
    sim: Simulator,
    agent: Agent,
    seeds: Sequence[int],
    grid: Grid,
    path: Path,
    done: Callable[[EpisodeResult], None],
) -> None:
    """Runs the episodes `seeds` one after another and writes them to `path` as if they had run together.

    A tile shows the task's first camera. Once its episode has ended it holds the last picture, in a green frame
    after a success and a red one otherwise; tiles without an episode stay dark. `done` is told of every episode.
    """
    size = grid.tile_size(is_gif(path))
    with VideoWriter(path, COLOURS) as video, closing(_FrameBuffer(path.parent, size)) as reel:
        for seed in seeds:
            film = EpisodeFilm(sim, seed, size, list(sim.task.cameras)[:1])
            reel.start()

            def keep(now: StepInfo, film: EpisodeFilm = film) -> None:
                reel.add(film.frame(now))

            result = run_episode(sim, agent, seed, keep)
            reel.end(GREEN if result.success else RED)
            done(result)
        canvas = np.full((grid.rows * size, grid.columns * size, 3), DARK, np.uint8)
        for at in range(reel.longest):
            for i in range(len(seeds)):
                tile = reel.tile(i, at)
                if tile is not None:
                    y, x = i // grid.columns * size, i % grid.columns * size
                    canvas[y : y + size, x : x + size] = tile
            video.add(canvas)


class _FrameBuffer:
    """The frames of several episodes, compressed, in a file without a name: it goes when the process does.

    Episodes run one after another and are shown together. In memory, 9 of 400 steps could take 1.3 GB.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by who made the reel
        self._size = size
        self._places: list[list[tuple[int, int]]] = []
        self._colours: list[Colour] = []

    def start(self) -> None:
        """The frames of the next episode follow."""
        self._places.append([])

    def add(self, frame: Picture) -> None:
        packed = zlib.compress(frame.tobytes(), 1)
        self._places[-1].append((self._file.tell(), len(packed)))
        self._file.write(packed)

    def end(self, colour: Colour) -> None:
        """That was its last frame, to be framed in `colour`."""
        self._colours.append(colour)

    @property
    def longest(self) -> int:
        return max(len(places) for places in self._places)

    def tile(self, episode: int, at: int) -> Picture | None:
        """The frame `at` of an episode, None after its last one."""
        places = self._places[episode]
        if at >= len(places):
            return None
        start, length = places[at]
        self._file.seek(start)
        frame = np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8)
        frame = frame.reshape(self._size, self._size, 3)
        ended = at + 1 == len(places)
        return draw_frame(frame, self._colours[episode], frame_width(frame)) if ended else draw_frame(frame, DARK, 1)

    def close(self) -> None:
        self._file.close()
