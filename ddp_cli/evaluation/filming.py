"""Recorded episodes: camera images with an overlay of the predicted path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import SimulatorError
from ddp_cli.evaluation.path_prediction import predict_path
from ddp_cli.evaluation.rollout import Agent, Environment, EpisodeResult, StepInfo, run_episode
from ddp_cli.robots import position_slices
from ddp_cli.sim.gymnasium_env import GymnasiumEnv
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import RECORDED
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
MAX_COLUMNS = 3  # cameras side by side
MIN_SIZE_FOR_LONG_CAPTION = 160  # [pixels], smallest frame that the longest line of the caption fits in


class Film(Protocol):
    """Renders the frames of one episode."""

    def render_frame(self, info: StepInfo) -> RGBImage:
        """The frame (height, width, 3) of a step; call it for every step, in order."""


class EpisodeFilm:
    """Renders the frames of one episode: the cameras `keys`, `size` pixels square each, in rows of at most three.

    The predicted path of each hand is drawn in all cameras, the caption in the first. The episode is not affected.
    """

    def __init__(self, sim: Simulator, seed: int, size: int, keys: Sequence[str] | None = None) -> None:
        self._sim, self._seed, self._size = sim, seed, size
        self._keys = list(sim.task.schema.cameras) if keys is None else list(keys)
        # Other actions than those of poses do not say where a hand goes.
        is_pose = RECORDED not in sim.task.conventions
        self._positions = position_slices(sim.task.action_parts(sim.actions)) if is_pose else []
        self._previous: list[NDArray[np.float64]] = []
        self._paths: list[NDArray[np.float64]] = []

    def render_frame(self, info: StepInfo) -> RGBImage:
        """The frame (rows size, columns size, 3) of a step; call it for every step, in order."""
        sim = self._sim
        positions = [sim.eef_pose(arm)[0] for arm in range(len(self._positions))]
        if info.executed == 0:
            self._paths = self._predict_paths(positions, info.chunk)
        self._previous = positions
        images = []
        for key in self._keys:
            image = sim.image(key, self._size)
            for path in self._paths:
                image = draw_path(image, sim.camera(key).project(path, self._size), info.executed)
            images.append(image)
        images[0] = draw_text(images[0], caption(sim, self._seed, self._size, info))
        return tile(images)

    def _predict_paths(
        self, positions: Sequence[NDArray[np.float64]], chunk: NDArray[np.float64]
    ) -> list[NDArray[np.float64]]:
        """The path (Ta + 1, 3) [m] of each hand, from its position [m] (3,)."""
        sim, rate = self._sim, self._sim.task.schema.rate
        return [
            predict_path(
                position,
                (position - previous) * rate,
                chunk[:, values],
                sim.base_orientation(arm) if sim.actions == "delta" else None,
                1 / rate,
            )
            for arm, (position, previous, values) in enumerate(
                zip(positions, self._previous or positions, self._positions, strict=True)
            )
        ]


def tile(images: Sequence[RGBImage]) -> RGBImage:
    """Images of one size, in rows of at most `MAX_COLUMNS`; the rest of the last row is dark."""
    columns = min(len(images), MAX_COLUMNS)
    missing = -len(images) % columns
    padded = [*images, *[np.full_like(images[0], DARK)] * missing]
    return np.vstack([np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)])


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
    if not env.task.schema.cameras:
        raise SimulatorError(f"the task '{env.task.name}' has no camera to film with.", "Add one to its file.")
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
