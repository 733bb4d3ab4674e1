"""Seams of chunks: prefixes, chunks that take over gradually, and means of chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from deploy import stamped_agent
from deploy.stamped_agent import PERIOD, TA, observe

from ddp_cli.action_limits import GOAL, ActionLimits
from ddp_cli.deploy.streaming import ActionStream, StreamError

N = 4


class PrefixAgent:
    """Remembers its prefixes. A chunk is its prefix, and then the number of the chunk and the index of the action."""

    def __init__(self) -> None:
        self.prefixes: list[np.ndarray] = []

    def act(self, _history: Sequence, prefix: np.ndarray | None = None) -> np.ndarray:
        prefix = np.zeros((0, 7)) if prefix is None else prefix
        self.prefixes.append(np.array(prefix))
        chunk = np.zeros((TA, 7))
        chunk[:, 0] = len(self.prefixes) / 100
        chunk[:, 1] = np.arange(1, TA + 1) / 100
        chunk[: len(prefix)] = prefix
        return chunk


def make_stream(agent: PrefixAgent, latency: Callable[[], float] | None, **settings: object) -> ActionStream:
    return stamped_agent.make_stream(agent, latency, **{"prefix_steps": N, **settings})


def run(stream: ActionStream, n_ticks: int, delay: int = 0) -> np.ndarray:
    """The actions of n ticks; observations are `delay` periods old."""
    actions = []
    for tick in range(n_ticks):
        if tick >= delay:
            observe(stream, (tick - delay) * PERIOD)
        actions.append(stream.action(tick * PERIOD))
    return np.array(actions)


@pytest.mark.parametrize("latency", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("delay", [0, 1])
def test_a_prefix_is_what_is_executed_from_the_observation_to_the_arrival(latency: int, delay: int) -> None:
    agent = PrefixAgent()
    actions = run(make_stream(agent, lambda: latency * PERIOD, replan_every=4), 24, delay)
    assert len(agent.prefixes) >= 4
    np.testing.assert_array_equal(agent.prefixes[0], np.zeros((delay, 7)))  # the robot was held, no latency is known
    for i, prefix in enumerate(agent.prefixes[1:-1], start=1):
        origin = 4 * i  # the tick of the newest observation: the first is at tick 0, and seen `delay` later
        assert len(prefix) == min(N, delay + latency), i
        np.testing.assert_array_equal(prefix, actions[origin : origin + len(prefix)])


def test_at_a_skipped_tick_a_prefix_has_the_action_of_the_one_before() -> None:
    agent, actions = PrefixAgent(), {}
    stream = make_stream(agent, lambda: PERIOD, replan_every=4)
    for tick in [*range(2, 9), 10, 11]:  # requests at ticks 2, 6 and 10, with observations of two ticks before
        observe(stream, (tick - 2) * PERIOD)
        actions[tick] = stream.action(tick * PERIOD)
    np.testing.assert_array_equal(agent.prefixes[2], [actions[8], actions[8], actions[10]])


@pytest.mark.parametrize(("prefix_steps", "lengths"), [(4, [0, 1, 2, 3, 3]), (2, [0, 1, 2, 2, 2])])
def test_prefixes_are_as_long_as_the_latency_so_far(prefix_steps: int, lengths: list[int]) -> None:
    """The first chunk has none, since no latency is known."""
    latencies = iter([0.5 * PERIOD, 2 * PERIOD, *[3 * PERIOD] * 20])
    agent = PrefixAgent()
    run(make_stream(agent, lambda: next(latencies), replan_every=1, prefix_steps=prefix_steps), 30)
    assert [len(prefix) for prefix in agent.prefixes[:5]] == lengths


def test_without_prefix_steps_the_policy_is_called_as_before() -> None:
    agent = PrefixAgent()
    run(make_stream(agent, lambda: 2 * PERIOD, prefix_steps=0), 12)
    assert {len(prefix) for prefix in agent.prefixes} == {0}


def test_a_thread_gets_the_prefix_too() -> None:
    agent = PrefixAgent()
    with make_stream(agent, None) as stream:
        tick = 0
        while len(agent.prefixes) < 2 and tick < 1000:
            observe(stream, tick * PERIOD)
            stream.action(tick * PERIOD)
            tick += 1
            if stream._pending:
                stream._pending.result.result()
    assert agent.prefixes[1].shape == (1, 7)  # the policy takes far less than a period


def test_an_ensemble_is_the_weighted_mean_of_the_chunks_of_a_tick() -> None:
    """With weights exp(-m i) from the oldest chunk on, and what a tick gets does not depend on ticks before."""
    agent = PrefixAgent()
    stream = make_stream(agent, lambda: 0.0, prefix_steps=0, replan_every=2, ensemble=0.5)
    actions = run(stream, 12)
    for tick, action in enumerate(actions):
        chunks = [i for i in range(len(agent.prefixes)) if 0 <= tick - 2 * i < TA]  # chunk i starts at tick 2 i
        weights = np.exp(-0.5 * np.arange(len(chunks)))
        expected = weights @ [((i + 1) / 100, (tick - 2 * i + 1) / 100) for i in chunks] / weights.sum()
        np.testing.assert_allclose(action[:2], expected)


class StepAgent:
    """Chunk i holds i in every value. Values 0 to 5 are limited to [-1, 1], 6 is a gripper."""

    def __init__(self) -> None:
        self.chunks = 0

    def act(self, _history: Sequence) -> np.ndarray:
        self.chunks += 1
        return np.full((TA, 7), (self.chunks - 1) * 0.4)


@pytest.mark.parametrize("latency", [0, 2])
def test_a_chunk_takes_over_gradually_and_grippers_at_once(latency: int) -> None:
    stream = make_stream(StepAgent(), lambda: latency * PERIOD, prefix_steps=0, replan_every=4, blend_steps=3)
    actions = run(stream, 12)[latency:]
    seam = 4  # ticks after the first chunk has arrived
    blended = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    np.testing.assert_allclose(actions[seam - 1 : seam + 5, 0], blended, atol=1e-12)
    np.testing.assert_allclose(actions[seam - 1 : seam + 4, 6], [0.0, 0.4, 0.4, 0.4, 0.4], atol=1e-12)


def test_a_late_chunk_takes_over_from_the_action_that_is_held() -> None:
    latencies = iter([0.0, 9 * PERIOD, *[0.0] * 20])
    stream = make_stream(StepAgent(), lambda: next(latencies), prefix_steps=0, replan_every=4, blend_steps=1)
    actions = run(stream, 14)
    assert stream.stats().late_ticks > 0
    np.testing.assert_allclose(actions[:13, 0], 0.0)  # the second chunk ends before it arrives
    np.testing.assert_allclose(actions[13, 0], 0.4)  # half of the third one, 0.8


def test_a_chunk_takes_over_from_the_action_of_an_operator() -> None:
    stream = make_stream(StepAgent(), lambda: 0.0, prefix_steps=0, replan_every=4, blend_steps=1)
    run(stream, 4)
    stream.follow(np.full(7, -1.0))
    observe(stream, 4 * PERIOD)
    np.testing.assert_allclose(stream.action(4 * PERIOD)[:6], (0.4 - 1.0) / 2)


class QuaternionAgent:
    """Chunk i holds the rotation by 5 i degrees about z, with the other sign in every second action."""

    def __init__(self) -> None:
        self.chunks = 0

    def act(self, _history: Sequence) -> np.ndarray:
        half_angle = np.deg2rad(5 * self.chunks) / 2
        self.chunks += 1
        signs = np.resize([1.0, -1.0], TA) * (-1) ** self.chunks
        return signs[:, None] * [0.0, 0.0, np.sin(half_angle), np.cos(half_angle)]


@pytest.mark.parametrize("settings", [{"blend_steps": 3}, {"ensemble": 0.1}])
def test_quaternions_of_either_sign_are_blended_as_rotations(settings: dict[str, float]) -> None:
    limits = ActionLimits((-1.0,) * 4, (1.0,) * 4, (GOAL,) * 4, quaternions=(0,))
    start = np.array([0.0, 0.0, 0.0, 1.0])
    stream = make_stream(
        QuaternionAgent(), lambda: 0.0, prefix_steps=0, replan_every=4, action_limits=limits, start=start, **settings
    )
    actions = run(stream, 12)
    angles = np.rad2deg(2 * np.arccos(np.abs(actions[:, 3]).clip(0, 1)))
    assert (np.diff(angles) >= -1e-6).all()  # from 0 to 5 and 10 degrees, not by way of other rotations
    assert angles[0] < 1e-6
    assert 5.0 < angles[-1] < 10.0


@pytest.mark.parametrize("blend_steps", [-1, TA])
def test_blend_steps_are_validated(blend_steps: int) -> None:
    with pytest.raises(StreamError, match=f"blend_steps = {blend_steps} must be between 0 and {TA - 1}"):
        make_stream(StepAgent(), None, prefix_steps=0, blend_steps=blend_steps)
