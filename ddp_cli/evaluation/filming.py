"""Episodes on film: what the cameras see, with what the policy is about to do drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_cli.evaluation.path_prediction import predicted_path
from ddp_cli.evaluation.rollout import Agent, EpisodeResult, StepInfo, run_episode
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CONTROL_HZ
from ddp_cli.video.overlay import COLOURS, DARK, GREEN, RED, Colour, Picture, draw_path, draw_text
from ddp_cli.video.video import VideoWriter, is_gif

FRAME_SIZE, GIF_SIZE = 512, 224  # [pixels], height and width of each camera
ROOMY = 160  # [pixels], what the longest line takes at the smallest letters


class EpisodeFilm:
    """Turns the moments of one episode into frames: the cameras `keys` side by side, each `size` pixels square.

    The path of the chunk is drawn in all of them, the text in the first. Nothing here changes the episode.
    """

    def __init__(self, sim: Simulator, seed: int, size: int, keys: Sequence[str] | None = None) -> None:
        self._sim, self._seed, self._size = sim, seed, size
        self._keys = list(sim.task.cameras) if keys is None else list(keys)
        self._before: NDArray[np.float64] | None = None
        self._path = np.zeros((0, 3))

    def frame(self, now: StepInfo) -> Picture:
        """The picture (size, n size, 3) of a moment; called for each, in order."""
        sim, hand = self._sim, self._sim.hand()[0]
        if now.executed == 0:
            velocity = (hand - (hand if self._before is None else self._before)) * CONTROL_HZ
            self._path = predicted_path(hand, velocity, now.chunk, sim.base())
        self._before = hand
        views = []
        for key in self._keys:
            pixels = sim.view(key).project(self._path, self._size)
            views.append(draw_path(sim.image(key, self._size), pixels, now.executed))
        views[0] = draw_text(views[0], self._text(now))
        return np.hstack(views)

    def _text(self, now: StepInfo) -> list[tuple[str, Colour]]:
        horizon, what = self._sim.task.horizon, "chunk " if self._size >= ROOMY else ""
        lines = [(f"seed {self._seed}", DARK), (f"step {now.step}/{horizon}, {what}{now.chunk_ms:.0f} ms", DARK)]
        if now.first_success is not None:
            return [(f"success at step {now.first_success}", GREEN), *lines]
        return [("no success", RED), *lines] if now.step == horizon else lines


def record(sim: Simulator, agent: Agent, seed: int, path: Path, size: int | None = None) -> EpisodeResult:
    """Runs the episode `seed` and writes it to `path`, all cameras at `size` pixels each."""
    film = EpisodeFilm(sim, seed, size or (GIF_SIZE if is_gif(path) else FRAME_SIZE))
    with VideoWriter(path, COLOURS) as video:
        return run_episode(sim, agent, seed, lambda now: video.add(film.frame(now)))
