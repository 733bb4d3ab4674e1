"""Recorded episodes: camera images with an overlay of the predicted path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_cli.evaluation.path_prediction import predict_path
from ddp_cli.evaluation.rollout import Agent, EpisodeResult, StepInfo, run_episode
from ddp_cli.sim.simulator import Simulator
from ddp_cli.video.overlay import DARK, GREEN, OVERLAY_COLORS, RED, Color, RGBImage, draw_path, draw_text
from ddp_cli.video.video import VideoWriter, is_gif

FRAME_SIZE, GIF_FRAME_SIZE = 512, 224  # [pixels], height and width of each camera
MIN_SIZE_FOR_LONG_CAPTION = 160  # [pixels], smallest frame that the longest line of the caption fits in


class EpisodeFilm:
    """Renders the frames of one episode: the cameras `keys` side by side, `size` pixels square each.

    The predicted path is drawn in all cameras, the caption in the first. The episode is not affected.
    """

    def __init__(self, sim: Simulator, seed: int, size: int, keys: Sequence[str] | None = None) -> None:
        self._sim, self._seed, self._size = sim, seed, size
        self._keys = list(sim.task.schema.cameras) if keys is None else list(keys)
        self._previous_position: NDArray[np.float64] | None = None
        self._path = np.zeros((0, 3))

    def render_frame(self, info: StepInfo) -> RGBImage:
        """The frame (size, n size, 3) of a step; call it for every step, in order."""
        sim, position = self._sim, self._sim.eef_pose()[0]
        if info.executed == 0:
            previous = position if self._previous_position is None else self._previous_position
            velocity = (position - previous) * sim.task.schema.rate
            self._path = predict_path(position, velocity, info.chunk, sim.base_orientation(), 1 / sim.task.schema.rate)
        self._previous_position = position
        images = []
        for key in self._keys:
            pixels = sim.camera(key).project(self._path, self._size)
            images.append(draw_path(sim.image(key, self._size), pixels, info.executed))
        images[0] = draw_text(images[0], self.caption(info))
        return np.hstack(images)

    def caption(self, info: StepInfo) -> list[tuple[str, Color]]:
        """Lines of text, each with its background color: outcome, seed, step and latency."""
        horizon, label = self._sim.task.horizon, "chunk " if self._size >= MIN_SIZE_FOR_LONG_CAPTION else ""
        lines = [(f"seed {self._seed}", DARK), (f"step {info.step}/{horizon}, {label}{info.chunk_ms:.0f} ms", DARK)]
        if info.first_success is not None:
            return [(f"success at step {info.first_success}", GREEN), *lines]
        return [("no success", RED), *lines] if info.step == horizon else lines


def record_episode(sim: Simulator, agent: Agent, seed: int, path: Path, size: int | None = None) -> EpisodeResult:
    """Run the episode `seed` and write all cameras, `size` pixels square each, to the video `path`."""
    film = EpisodeFilm(sim, seed, size or (GIF_FRAME_SIZE if is_gif(path) else FRAME_SIZE))
    with VideoWriter(path, sim.task.schema.rate, OVERLAY_COLORS) as video:
        return run_episode(sim, agent, seed, lambda info: video.add(film.render_frame(info)))
