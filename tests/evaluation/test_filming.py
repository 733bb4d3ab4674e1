"""Recorded episodes: recording does not change them, and frames show outcome and predicted path."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import read_video

from ddp_cli.action_limits import ActionLimits
from ddp_cli.errors import SimulatorError
from ddp_cli.evaluation.evaluation import evaluate, make_simulator
from ddp_cli.evaluation.filming import EpisodeFilm, caption, record_episode
from ddp_cli.evaluation.grid import Grid, record_episode_grid
from ddp_cli.evaluation.rollout import EpisodeResult, StepInfo, run_episode
from ddp_cli.robots import delta_parts
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task
from ddp_cli.video.overlay import DARK, GREEN, RED, draw_text

pytestmark = pytest.mark.slow

SHORT_TASK = dataclasses.replace(get_task("lift"), horizon=11)


class RandomAgent:
    """Random actions, determined by the seed of the episode; keeps everything that it observed."""

    obs, actions, n_obs_steps, action_limits = "image", "delta", 2, ActionLimits.from_parts(delta_parts())

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.observed: list[np.ndarray] = []

    def act(self, history: Sequence) -> np.ndarray:
        self.observed += [x for frame in history for x in frame.values()]
        return self.rng.uniform(-1, 1, (8, 7))


def test_a_task_without_cameras_is_not_filmed(tmp_path: Path) -> None:
    task = get_task("lift")
    blind = dataclasses.replace(task, schema=task.schema.model_copy(update={"cameras": {}}))
    with pytest.raises(SimulatorError, match="'lift' has no camera to film with"):
        record_episode(cast("Simulator", SimpleNamespace(task=blind)), RandomAgent(), 0, tmp_path / "v.mp4")
    assert not list(tmp_path.iterdir())


def test_episode_is_the_same_in_an_evaluation_alone_recorded_and_in_a_grid(tmp_path: Path) -> None:
    """Results, everything that the policy observed, and the final state."""
    task = dataclasses.replace(SHORT_TASK, horizon=19)
    evaluated = RandomAgent()
    expected = evaluate(
        lambda: evaluated, functools.partial(make_simulator, task, "fast"), [2, 3], 1, lambda _: None
    ).episodes[1]

    def in_grid(sim: Simulator, agent: RandomAgent) -> EpisodeResult:
        results: list[EpisodeResult] = []
        record_episode_grid(sim, agent, [2, 3], Grid(1, 2), tmp_path / "g.gif", results.append)
        return results[1]

    runs: list[Callable[[Simulator, RandomAgent], EpisodeResult]] = [
        lambda sim, agent: run_episode(sim, agent, 3),
        lambda sim, agent: record_episode(sim, agent, 3, tmp_path / "v.mp4", 128),
        in_grid,
    ]
    final_states = []
    for run in runs:
        sim, agent = Simulator(task), RandomAgent()
        result = run(sim, agent)
        final_states.append(sim.state())
        sim.close()
        assert dataclasses.replace(result, chunk_ms=0) == dataclasses.replace(expected, chunk_ms=0)
        assert len(agent.observed) == len(evaluated.observed) > 0
        for value, expected_value in zip(agent.observed, evaluated.observed, strict=True):
            np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_array_equal(final_states[0], final_states[1])
    np.testing.assert_array_equal(final_states[0], final_states[2])
    assert read_video(tmp_path / "v.mp4").shape == (20, 128, 256, 3)


def test_step_infos_describe_the_current_chunk() -> None:
    sim, agent, infos = Simulator(SHORT_TASK), RandomAgent(), []
    agent.obs = "state"
    run_episode(sim, agent, 3, infos.append)
    sim.close()
    assert [info.step for info in infos] == list(range(12))
    assert [info.executed for info in infos] == [*range(8), 0, 1, 2, 3]
    assert all(i.chunk.shape == (8, 7) and i.chunk_ms > 0 and i.first_success is None for i in infos)
    assert (infos[7].chunk == infos[0].chunk).all()
    assert (infos[8].chunk != infos[0].chunk).any()


def test_frame_shows_caption_and_path_and_nothing_else() -> None:
    sim = Simulator(SHORT_TASK)
    sim.reset(0)
    for _ in range(6):  # down into the view
        sim.step(np.array([0, 0, -1, 0, 0, 0, -1.0]))
    chunk = np.tile([1.0, 1, -1, 0, 0, 0, -1], (8, 1))
    film = EpisodeFilm(sim, 7, 256, ["agentview_image"])
    frame, plain = film.render_frame(StepInfo(0, None, chunk, 0, 20.0)), sim.image("agentview_image", 256)
    eef_pixel = sim.camera("agentview_image").project(sim.eef_pose()[0][None], 256)[0]
    later = film.render_frame(StepInfo(1, 1, chunk, 1, 20.0))
    sim.close()
    changed = (frame != plain).any(2)
    assert changed[225:250, 8:60].mean() > 0.5  # the caption
    changed[190:, :150] = False
    rows, columns = np.nonzero(changed)
    assert np.hypot(columns - eef_pixel[0], rows - eef_pixel[1]).min() < 3  # the path starts at the end effector
    assert 10 < np.ptp(columns) < 60
    assert 10 < np.ptp(rows) < 90
    is_green = np.abs(later.astype(int) - np.array(GREEN)).max(2) < 40
    assert is_green[190:, :150].sum() > 200
    assert not (np.abs(frame.astype(int) - np.array(GREEN)).max(2) < 40)[190:, :150].any()


@pytest.mark.parametrize("size", [128, 160, 512])
def test_caption_shows_the_outcome_and_fits_in_every_size(size: int) -> None:
    env: Any = SimpleNamespace(task=get_task("lift"), is_over=False)
    chunk = np.zeros((8, 7))
    infos = [
        StepInfo(399, None, chunk, 7, 88.0),
        StepInfo(400, 389, chunk, 8, 88.0),
        StepInfo(400, None, chunk, 8, 88.0),
    ]
    captions = [caption(env, 100_000, size, info) for info in infos]
    first_lines = [lines[0] for lines in captions]
    assert first_lines == [("seed 100000", DARK), ("success at step 389", GREEN), ("no success", RED)]
    assert all(lines[-1][0].endswith("88 ms") for lines in captions)
    for lines in captions:
        changed = draw_text(np.zeros((size, size, 3), np.uint8), lines).any(2).any(0)
        assert np.nonzero(changed)[0].max() < size - 2
