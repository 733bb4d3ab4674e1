"""Several episodes in one video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import read_video

from ddp_cli.action_limits import ActionLimits
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.grid import Grid, parse_grid, record_episode_grid
from ddp_cli.robots import delta_parts
from ddp_cli.sim.renderer import PinholeCamera
from ddp_cli.tasks import get_task
from ddp_cli.video.overlay import DARK, GREEN, RED

HORIZON = 16


class FakeSimulator:
    """Even seeds succeed from the step of that number on. Images are uniform and get brighter with every step."""

    task, actions = dataclasses.replace(get_task("lift"), horizon=HORIZON), "delta"
    hold_steps, is_over, score, total_reward = 10, False, None, None

    def positions(self) -> dict[str, list[float]]:
        return {}

    def idle_action(self) -> np.ndarray:
        return np.zeros(7)

    def close(self) -> None:
        pass

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def step(self, _action: np.ndarray) -> bool:
        self.steps += 1
        return self.seed % 2 == 0 and self.steps >= self.seed

    def observe(self, _obs: str) -> dict[str, np.ndarray]:
        return {}

    def image(self, _key: str, size: int) -> np.ndarray:
        return np.full((size, size, 3), 60 + 10 * self.steps, np.uint8)

    def camera(self, _key: str) -> PinholeCamera:
        return PinholeCamera(np.array([0.0, 0.0, -5.0]), np.eye(3), 1.0)  # the path is behind it

    def eef_pose(self, _arm: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(3), np.eye(3)

    def base_orientation(self, _arm: int) -> np.ndarray:
        return np.eye(3)


class IdleAgent:
    """Zero actions; can be interrupted in an episode."""

    obs, actions, n_obs_steps, action_limits = "image", "delta", 2, ActionLimits.from_parts(delta_parts())

    def __init__(self, interrupted_seed: int | None = None) -> None:
        self.interrupted_seed = interrupted_seed

    def reset(self, seed: int) -> None:
        self.seed = seed

    def act(self, _history: Sequence) -> np.ndarray:
        if self.seed == self.interrupted_seed:
            raise KeyboardInterrupt
        return np.zeros((8, 7))


def test_tiles_keep_the_last_frame_until_the_longest_episode_ends(tmp_path: Path) -> None:
    """Episodes end after 10 steps of success, or at the horizon."""
    seeds, ends, colors = [2, 5, 4], [11, HORIZON, 13], [GREEN, RED, GREEN]
    reported: list[int] = []
    record_episode_grid(
        FakeSimulator(), IdleAgent(), seeds, Grid(2, 2), tmp_path / "g.mp4", lambda r: reported.append(r.seed)
    )  # type: ignore[arg-type]
    assert reported == seeds
    video = read_video(tmp_path / "g.mp4").astype(int)
    assert video.shape == (HORIZON + 1, 2 * 512, 2 * 512, 3)
    tiles = [video[:, :512, :512], video[:, :512, 512:], video[:, 512:, :512], video[:, 512:, 512:]]
    for tile, end, color in zip(tiles, ends, colors, strict=False):
        for step in range(HORIZON + 1):
            assert abs(tile[step, 256, 256].mean() - (60 + 10 * min(step, end))) < 6
            edge = tile[step, 256, 4]
            assert (np.abs(edge - np.array(color)).max() < 40) == (step >= end), (step, end, edge)
    assert np.abs(tiles[3] - np.array(DARK)).max() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["g.mp4"]


def test_interrupted_grid_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record_episode_grid(
            FakeSimulator(), IdleAgent(interrupted_seed=4), [3, 4], Grid(1, 2), tmp_path / "g.gif", lambda _: None
        )  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "3x", "x3", "3x0", "0x3", "9x1", "-1x3", "3x3x3", "axb", "", "3 x 3", "²x2"])
def test_malformed_grid_is_rejected(text: str) -> None:
    with pytest.raises(DdpError, match="3x3; at most 8x8"):
        parse_grid(text)


def test_tile_sizes_fit_the_video_and_the_encoder() -> None:
    assert parse_grid("2X4") == Grid(2, 4)
    for rows in range(1, 9):
        for columns in range(1, 9):
            for gif, max_side in ((False, 1056), (True, 512)):
                size = Grid(rows, columns).tile_size(gif)
                assert size % 16 == 0
                assert 128 <= size <= 512
                assert size * max(rows, columns) <= max_side or size == 128
