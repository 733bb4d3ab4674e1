"""Recorded episodes: camera images with an overlay of the predicted path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ddp_cli.evaluation.path_prediction import predict_path
from ddp_cli.evaluation.rollout import Agent, Environment, EpisodeResult, StepInfo, run_episode
from ddp_cli.sim.gymnasium_env import GymnasiumEnv
from ddp_cli.sim.simulator import Simulator
from ddp_cli.video.overlay import (
    DARK,
    GREEN,
    OVERLAY_COLORS,
    RED,
    Color,
    RGBImage,
    draw_path,
    draw_text,
    fit_image,
)
from ddp_cli.video.video import VideoWriter, is_gif

FRAME_SIZE, GIF_FRAME_SIZE = 512, 224  # [pixels], height and width of each camera
MIN_SIZE_FOR_LONG_CAPTION = 160  # [pixels], smallest frame that the longest line of the caption fits in


class Film(Protocol):
    """Renders the frames of one episode."""

    def render_frame(self, info: StepInfo) -> RGBImage:
        """The frame (height, width, 3) of a step; call it for every step, in order."""


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
        images[0] = draw_text(images[0], caption(sim, self._seed, self._size, info))
        return np.hstack(images)


class RenderedFilm:
    """The images that a Gymnasium environment renders, fitted into frames of `size` pixels square, with a caption."""

    def __init__(self, env: GymnasiumEnv, seed: int, size: int) -> None:
        self._env, self._seed, self._size = env, seed, size

    def render_frame(self, info: StepInfo) -> RGBImage:
        """The frame (size, size, 3) of a step."""
        lines = caption(self._env, self._seed, self._size, info)
        if info.step:
            lines.append((f"score {self._env.score:.2f}", DARK))
        return draw_text(fit_image(self._env.render(), self._size), lines)


def make_film(env: Environment, seed: int, size: int, all_cameras: bool = True) -> Film:
    """The film of an episode in `env`: frames of `size` pixels square per camera. The episode is not affected."""
    if isinstance(env, GymnasiumEnv):
        return RenderedFilm(env, seed, size)
    return EpisodeFilm(cast("Simulator", env), seed, size, None if all_cameras else list(env.task.schema.cameras)[:1])


def caption(env: Environment, seed: int, size: int, info: StepInfo) -> list[tuple[str, Color]]:
    """Lines of text for frames of `size` pixels, each with its background color: outcome, seed, step and latency."""
    horizon, label = env.task.horizon, "chunk " if size >= MIN_SIZE_FOR_LONG_CAPTION else ""
    lines = [(f"seed {seed}", DARK), (f"step {info.step}/{horizon}, {label}{info.chunk_ms:.0f} ms", DARK)]
    if info.first_success is not None:
        return [(f"success at step {info.first_success}", GREEN), *lines]
    return [("no success", RED), *lines] if info.step == horizon or env.is_over else lines


def record_episode(env: Environment, agent: Agent, seed: int, path: Path, size: int | None = None) -> EpisodeResult:
    """Run the episode `seed` and write all cameras, `size` pixels square each, to the video `path`."""
    film = make_film(env, seed, size or (GIF_FRAME_SIZE if is_gif(path) else FRAME_SIZE))
    with VideoWriter(path, env.task.schema.rate, OVERLAY_COLORS) as video:
        return run_episode(env, agent, seed, lambda info: video.add(film.render_frame(info)))
