"""Streams in the simulator, with latency: what counts is whether the cube is lifted."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from ddp_cli.deploy.streaming import ActionStream
from ddp_cli.evaluation.rollout import rest, run_episode
from ddp_cli.rotation import matrix_to_6d
from ddp_cli.safety import Safety
from ddp_cli.sim.scripted_policies import DOWN
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import CONTROL_HZ, DELTA_METRES, get_task

PERIOD = 1.0 / CONTROL_HZ
SEEDS = range(40, 44)
REPLAN = 4  # [periods], half a chunk: the largest latency budget
GAIN, SLEW = 26.0, 0.2
LIFT = dataclasses.replace(get_task("lift"), horizon=60)


class Planner:
    """Lifts the cube from what a state policy sees: predicts the motion of the hand, and with it the chunk.

    The hand's velocity follows the action with a lag, as measured: v' = v / 2 + 6.1 mm * u per step. Like
    those of a person its actions change slowly; what they were is told by the velocity.
    """

    obs, n_obs_steps, n_action_steps = "state", 2, 8

    def __init__(self, actions: str) -> None:
        self.actions = actions
        self.safety = Safety(actions)

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: Sequence) -> np.ndarray:
        before, now = (frame["robot0_eef_pos"].astype(float) for frame in history[-2:])
        hand, speed = now, now - before
        move = speed / 0.0122
        cube = history[-1]["object"][:3].astype(float)
        fingers = float(history[-1]["robot0_gripper_qpos"][0])
        chunk = []
        for _ in range(self.n_action_steps):
            wanted, grip = self.step(cube - hand, fingers)
            move = move + np.clip(np.clip(wanted, -1, 1) - move, -SLEW, SLEW)
            rotation = np.zeros(3) if self.actions == "delta" else matrix_to_6d(DOWN)
            chunk.append([*(move if self.actions == "delta" else hand + DELTA_METRES * move), *rotation, grip])
            speed = 0.5 * speed + 0.0061 * move
            if grip > 0 and fingers < 0.024:  # the cube is in the hand
                cube = cube + speed
            hand = hand + speed
            fingers = np.clip(fingers - 0.0037 * grip, 0.021, 0.04)
        return np.array(chunk)

    @staticmethod
    def step(error: np.ndarray, fingers: float) -> tuple[np.ndarray, float]:
        """Move and gripper, given how far the cube is [m] and a finger's opening [m]."""
        aside, far = np.linalg.norm(error[:2]), np.linalg.norm(error)
        if far < 0.015 or (far < 0.03 and fingers < 0.035):
            return (np.array([0, 0, 0.7]) if fingers < 0.024 else error * GAIN), 1.0
        above = 0.07 if aside > 0.015 else 0.0
        return (error + np.array([0, 0, above])) * GAIN, -1.0


class ByArrival:
    """What goes wrong elsewhere: a chunk is played from its first action when it arrives."""

    def __init__(self, agent: Planner, latency: int, start: np.ndarray) -> None:
        self.agent, self.latency, self.last = agent, latency, start
        self.seen: deque = deque(maxlen=agent.n_obs_steps)
        self.tick, self.asked = -1, -REPLAN
        self.coming: tuple[int, np.ndarray] | None = None
        self.playing: deque = deque()

    def observe(self, obs: dict, stamp: float) -> None:
        self.seen.extend([obs] * (1 if self.seen else self.agent.n_obs_steps))

    def action(self, stamp: float) -> np.ndarray:
        self.tick += 1
        for _ in range(2):
            if self.coming and self.tick >= self.coming[0]:
                self.playing, self.coming = deque(self.coming[1]), None
            if not self.coming and self.tick - self.asked >= REPLAN:
                chunk = self.agent.safety.bound(self.agent.act(list(self.seen)), self.last, "by arrival")
                self.coming, self.asked = (self.tick + self.latency, chunk), self.tick
        self.last = self.playing.popleft() if self.playing else self.agent.safety.hold(self.last)
        return self.last


def stream(agent: Planner, latency: int, start: np.ndarray, replan_every: int = REPLAN) -> ActionStream:
    return ActionStream(
        agent.act, n_obs_steps=agent.n_obs_steps, n_action_steps=agent.n_action_steps, safety=agent.safety,
        replan_every=replan_every, start=start, latency=lambda: latency * PERIOD,
    )  # fmt: skip


def play(sim: Simulator, agent: Planner, control: Callable, latency: int, seed: int) -> tuple[int, np.ndarray]:
    """Steps to success, 0 without, and the actions."""
    sim.reset(seed)
    player, actions = control(agent, latency, rest(sim)), []
    for tick in range(sim.task.horizon):
        player.observe(sim.observe("state"), tick * PERIOD)
        actions.append(player.action(tick * PERIOD))
        if sim.step(actions[-1]):
            return tick + 1, np.array(actions)
    return 0, np.array(actions)


@pytest.fixture(scope="module", params=["delta", "absolute"])
def robot(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    sim = Simulator(LIFT, actions=request.param)
    yield sim
    sim.close()


def test_latency_within_the_budget_costs_no_success_and_ignoring_it_does(robot: Simulator) -> None:
    agent = Planner(robot.actions)

    def steps(control: Callable, latency: int) -> list[int]:
        return [play(robot, agent, control, latency, seed)[0] for seed in SEEDS]

    prompt = steps(stream, 0)
    assert all(prompt)
    for latency in (2, 4):
        delayed = steps(stream, latency)
        assert all(delayed), f"{latency} periods: {delayed}"
        assert np.mean(delayed) < 1.3 * np.mean(prompt), f"{latency} periods: {delayed}, {prompt} without"
    naive = steps(ByArrival, 4)
    assert sum(n > 0 for n in naive) <= 2, naive
    if robot.actions == "delta":
        naive = steps(ByArrival, 2) + naive
        assert not any(naive), naive


def test_without_latency_a_stream_does_what_an_episode_does(robot: Simulator) -> None:
    agent, told = Planner(robot.actions), []
    original = robot.step
    robot.step = lambda action: told.append(action) or original(action)
    try:
        result = run_episode(robot, agent, 41)
        n = result.steps
        expected, told = np.array(told[:n]), []
        steps, actions = play(robot, agent, functools.partial(stream, replan_every=8), 0, 41)
    finally:
        robot.step = original
    assert (result.success, steps) == (True, n)
    np.testing.assert_array_equal(actions, expected)
