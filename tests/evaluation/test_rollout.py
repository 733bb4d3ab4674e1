"""One episode: what the agent observes, when it ends, and actions that cannot be executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ddp_cli.action_limits import ActionLimits
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.rollout import StepInfo, run_episode
from ddp_cli.robots import delta_parts
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

SHORT_TASK = dataclasses.replace(get_task("lift"), horizon=21)


class RandomAgent:
    """Random actions, determined by the seed of the episode; keeps every history that it was given."""

    obs, actions, n_obs_steps, action_limits = "state", "delta", 2, ActionLimits.from_parts(delta_parts())

    def __init__(self) -> None:
        self.histories: list[list[dict]] = []

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, history: Sequence) -> np.ndarray:
        self.histories.append(list(history))
        return self.rng.uniform(-1, 1, (8, 7))


def test_the_result_says_where_objects_are_at_the_start() -> None:
    sim = Simulator(SHORT_TASK)
    places: list[np.ndarray] = []
    result = run_episode(sim, RandomAgent(), 3, lambda _: places.append(sim.observables()["cube_pos"]))
    sim.close()
    assert result.start is not None
    assert list(result.start) == ["cube_pos"]  # gripper_to_cube_pos is not a place
    np.testing.assert_allclose(result.start["cube_pos"], places[0], atol=1e-5)


def test_agent_observes_the_last_steps_before_every_chunk() -> None:
    agent, sim = RandomAgent(), Simulator(SHORT_TASK)
    positions: list[np.ndarray] = []
    result = run_episode(sim, agent, 3, lambda _: positions.append(sim.low_dim(["robot0_eef_pos"])["robot0_eef_pos"]))
    sim.close()
    assert (result.steps, result.success, result.held) == (21, False, False)
    assert len(agent.histories) == 3  # 8 + 8 + 5 steps
    expected_steps = [(0, 0), (7, 8), (15, 16)]
    for history, steps in zip(agent.histories, expected_steps, strict=True):
        for frame, step in zip(history, steps, strict=True):
            np.testing.assert_array_equal(frame["robot0_eef_pos"], positions[step])


def test_episode_ends_when_success_has_held(lift_demos: Path) -> None:
    with DemoFile(lift_demos) as file:
        demo = file.read("demo_0")

    class Replay(RandomAgent):
        def act(self, history: Sequence) -> np.ndarray:
            start = 8 * len(self.histories)
            super().act(history)
            return demo.actions[start : start + 8]

    sim = Simulator(get_task("lift"))
    result = run_episode(sim, Replay(), demo.seed)
    sim.close()
    assert result.success
    assert result.held
    assert result.steps == len(demo.actions) - 9  # the demo ends when success has held for 10 steps


def test_an_environment_may_be_over_at_once() -> None:
    class Ended:
        task, hold_steps, is_over, score, total_reward = SHORT_TASK, 10, True, None, None

        def reset(self, seed: int) -> None: ...

        def observe(self, _obs: str) -> dict:
            return {}

        def idle_action(self) -> None: ...

        def positions(self) -> dict:
            return {}

    infos: list[StepInfo] = []
    agent = RandomAgent()
    result = run_episode(Ended(), agent, 3, infos.append)  # type: ignore[arg-type]
    assert (result.steps, result.success, result.chunk_ms) == (0, False, 0.0)
    assert [(info.step, info.executed, len(info.chunk)) for info in infos] == [(0, 0, 0)]
    assert agent.histories == []


def test_actions_that_are_not_finite_raise_an_error() -> None:
    class NotFiniteAgent(RandomAgent):
        def act(self, history: Sequence) -> np.ndarray:
            return super().act(history) * (np.nan if len(self.histories) == 2 else 1.0)

    sim = Simulator(SHORT_TASK)
    with pytest.raises(DdpError, match="not finite.*seed 12"):
        run_episode(sim, NotFiniteAgent(), 12)
    sim.close()
