"""Streams with latency in the simulator, measured by success."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from ddp_cli.action_limits import ActionLimits
from ddp_cli.deploy.streaming import ActionStream
from ddp_cli.evaluation.rollout import run_episode
from ddp_cli.robots import DELTA_METRES
from ddp_cli.rotation import matrix_to_6d
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow

PERIOD = 1.0 / 20
SEEDS = range(40, 44)
REPLAN_EVERY = 4  # [periods], half a chunk: the largest latency budget
GAIN, MAX_CHANGE = 26.0, 0.2  # of the translation, per metre and per step
LIFT = dataclasses.replace(get_task("lift"), horizon=60)
DOWNWARD = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the gripper points at the table, yaw 0


class LiftPlanner:
    """Lifts the cube from state observations: predicts the motion of the end effector, and from it a chunk.

    The measured velocity of the end effector follows the action with a lag: v' = v / 2 + 6.1 mm * u per step. As in
    human demonstrations the actions change slowly; the previous action is inferred from the velocity.
    """

    obs, n_obs_steps, n_action_steps = "state", 2, 8

    def __init__(self, actions: str) -> None:
        self.actions = actions
        self.action_limits = ActionLimits.from_parts(get_task("lift").action_parts(actions))

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: Sequence) -> np.ndarray:
        previous, eef = (obs["robot0_eef_pos"].astype(float) for obs in history[-2:])
        velocity = eef - previous  # [m] per step
        translation = velocity / 0.0122
        cube = history[-1]["object"][:3].astype(float)
        finger = float(history[-1]["robot0_gripper_qpos"][0])
        chunk = []
        for _ in range(self.n_action_steps):
            target, gripper = self.plan_step(cube - eef, finger)
            translation = translation + np.clip(np.clip(target, -1, 1) - translation, -MAX_CHANGE, MAX_CHANGE)
            rotation = np.zeros(3) if self.actions == "delta" else matrix_to_6d(DOWNWARD)
            position = translation if self.actions == "delta" else eef + DELTA_METRES * translation
            chunk.append([*position, *rotation, gripper])
            velocity = 0.5 * velocity + 0.0061 * translation
            if gripper > 0 and finger < 0.024:  # the cube is grasped
                cube = cube + velocity
            eef = eef + velocity
            finger = np.clip(finger - 0.0037 * gripper, 0.021, 0.04)
        return np.array(chunk)

    @staticmethod
    def plan_step(offset: np.ndarray, finger: float) -> tuple[np.ndarray, float]:
        """Translation and gripper for the offset of the cube [m] and the position of a finger joint [m]."""
        horizontal, distance = np.linalg.norm(offset[:2]), np.linalg.norm(offset)
        if distance < 0.015 or (distance < 0.03 and finger < 0.035):
            return (np.array([0, 0, 0.7]) if finger < 0.024 else offset * GAIN), 1.0
        clearance = 0.07 if horizontal > 0.015 else 0.0
        return (offset + np.array([0, 0, clearance])) * GAIN, -1.0


class UnalignedStream:
    """The naive alternative to `ActionStream`: a chunk is executed from its first action when it arrives."""

    def __init__(self, agent: LiftPlanner, latency: int, start: np.ndarray) -> None:
        self.agent, self.latency, self.last_action = agent, latency, start
        self.history: deque = deque(maxlen=agent.n_obs_steps)
        self.tick, self.request_tick = -1, -REPLAN_EVERY
        self.pending: tuple[int, np.ndarray] | None = None  # tick of arrival, chunk
        self.chunk: deque = deque()

    def observe(self, obs: dict, stamp: float) -> None:
        self.history.extend([obs] * (1 if self.history else self.agent.n_obs_steps))

    def action(self, stamp: float) -> np.ndarray:
        self.tick += 1
        limits = self.agent.action_limits
        for _ in range(2):
            if self.pending and self.tick >= self.pending[0]:
                self.chunk, self.pending = deque(self.pending[1]), None
            if not self.pending and self.tick - self.request_tick >= REPLAN_EVERY:
                chunk = limits.clamp(self.agent.act(list(self.history)), self.last_action, "unaligned stream")
                self.pending, self.request_tick = (self.tick + self.latency, chunk), self.tick
        self.last_action = self.chunk.popleft() if self.chunk else limits.hold_action(self.last_action)
        return self.last_action


def make_stream(agent: LiftPlanner, latency: int, start: np.ndarray, replan_every: int = REPLAN_EVERY) -> ActionStream:
    return ActionStream(
        agent.act, n_obs_steps=agent.n_obs_steps, n_action_steps=agent.n_action_steps, control_hz=20,
        action_limits=agent.action_limits, replan_every=replan_every, start=start, latency=lambda: latency * PERIOD,
    )  # fmt: skip


def run_stream(
    sim: Simulator, agent: LiftPlanner, stream_type: Callable, latency: int, seed: int
) -> tuple[int, np.ndarray]:
    """Number of steps to success, 0 without success, and the actions."""
    sim.reset(seed)
    stream, actions = stream_type(agent, latency, sim.idle_action()), []
    for tick in range(sim.task.horizon):
        stream.observe(sim.observe("state"), tick * PERIOD)
        actions.append(stream.action(tick * PERIOD))
        if sim.step(actions[-1]):
            return tick + 1, np.array(actions)
    return 0, np.array(actions)


@pytest.fixture(scope="module", params=["delta", "absolute"])
def sim(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    simulator = Simulator(LIFT, actions=request.param)
    yield simulator
    simulator.close()


def test_latency_within_the_budget_costs_no_success_but_ignoring_it_does(sim: Simulator) -> None:
    agent = LiftPlanner(sim.actions)

    def steps_to_success(stream_type: Callable, latency: int) -> list[int]:
        return [run_stream(sim, agent, stream_type, latency, seed)[0] for seed in SEEDS]

    without_latency = steps_to_success(make_stream, 0)
    assert all(without_latency)
    for latency in (2, 4):
        steps = steps_to_success(make_stream, latency)
        assert all(steps), f"{latency} periods: {steps}"
        assert np.mean(steps) < 1.3 * np.mean(without_latency), f"{latency} periods: {steps}, {without_latency}"
    unaligned = steps_to_success(UnalignedStream, 4)
    assert sum(n > 0 for n in unaligned) <= 2, unaligned
    if sim.actions == "delta":
        unaligned = steps_to_success(UnalignedStream, 2) + unaligned
        assert not any(unaligned), unaligned


def test_a_stream_without_latency_equals_an_episode(sim: Simulator) -> None:
    agent, executed = LiftPlanner(sim.actions), []
    original = sim.step
    sim.step = lambda action: executed.append(action) or original(action)
    try:
        result = run_episode(sim, agent, 41)
        n = result.steps
        expected = np.array(executed[:n])
        steps, actions = run_stream(sim, agent, functools.partial(make_stream, replan_every=8), 0, 41)
    finally:
        sim.step = original
    assert (result.success, steps) == (True, n)
    np.testing.assert_array_equal(actions, expected)
