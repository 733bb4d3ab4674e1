"""What a server answers to the requests of one client, whose clock may stand still or whose camera may stop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import random_observation

from ddp_cli.deploy.runtime import ChunkRunner, Policy, PolicyError
from ddp_cli.deploy.served_client import InferencePool, StreamingClient

PERIOD, TA = 0.05, 8


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.load(policy_folder)


class StreamedEpisode:
    """What a server keeps of one client, without a network; all requests of one episode with seed 7."""

    def __init__(self, policy: Policy) -> None:
        self.pool = InferencePool()
        self.client = StreamingClient(policy, self.pool)

    def __enter__(self) -> StreamedEpisode:
        self.client.reset(7)
        return self

    def action(self, obs: dict, stamp: object) -> np.ndarray:
        answer = asyncio.run(self.client.answer({"op": "action", "obs": obs, "stamp": stamp}, None))
        return np.asarray(answer["action"])

    @property
    def chunks(self) -> int:
        """Number of chunks requested so far, after their end."""
        chunks = len(self.pool.latencies)
        deadline = time.monotonic() + 0.3
        while len(self.pool.latencies) == chunks and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(self.pool.latencies)

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.pool.shutdown()


@pytest.mark.parametrize("clock", ["simulated", "real"])
@pytest.mark.parametrize("wait", [0.2, 0.8, 1.0, 1.6, 4.0])  # [periods], for the first chunk
def test_the_second_request_of_an_episode_is_for_the_second_action(policy: Policy, wait: float, clock: str) -> None:
    """The clock of a simulator stands still during the wait, that of a robot goes on."""
    steps = [random_observation(policy, i) for i in range(TA)]
    wait = wait * PERIOD if clock == "real" else 0.0
    with StreamedEpisode(policy) as client:
        actions = [client.action(steps[tick], tick * PERIOD + wait * (tick > 0)) for tick in range(4)]
    runner = ChunkRunner(policy, seed=7)
    np.testing.assert_array_equal(actions, [runner.action(step) for step in steps[:4]])


def test_a_camera_that_stops_stops_the_robot(policy: Policy) -> None:
    """An observation that is not newer gets the next action, and no chunk is predicted from it again."""
    step = random_observation(policy)
    with StreamedEpisode(policy) as client:
        actions = [client.action(step, 0.0) for _ in range(TA + 3)]
        assert client.chunks == 1
        client.action(step, (TA + 3) * PERIOD)
        assert client.chunks == 2
    runner = ChunkRunner(policy, seed=7)
    np.testing.assert_array_equal(actions[:TA], [runner.action(step) for _ in range(TA)])
    hold = policy.limits.hold_action(actions[TA - 1].astype(np.float64))
    np.testing.assert_array_equal(actions[TA:], [hold] * 3)


def test_a_camera_at_half_the_rate_repeats_no_action(policy: Policy) -> None:
    step = random_observation(policy)
    with StreamedEpisode(policy) as client:
        actions = [client.action(step, tick // 2 * 2 * PERIOD) for tick in range(4)]
    runner = ChunkRunner(policy, seed=7)
    np.testing.assert_array_equal(actions, [runner.action(step) for _ in range(4)])


@pytest.mark.parametrize(
    ("stamps", "indices"),
    [
        ([0, 1, 2, 2, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]),  # images that queued up while the camera stood still
        ([0, 1, 2, 2, 2, 5, 6], [0, 1, 2, 3, 4, 5, 6]),  # the newest image
        ([0, 1.3, 2.7, 2.7, 4, 5.3, 6.7], [0, 1, 2, 3, 4, 5, 6]),  # a camera at three quarters of the rate
        ([0, 1, 0.5, 3, 4], [0, 1, 2, 3, 4]),  # out of order
    ],
)
def test_actions_are_never_those_of_past_ticks(policy: Policy, stamps: list[float], indices: list[int]) -> None:
    step, one_chunk = random_observation(policy), 3 * TA  # the second chunk takes longer than the test
    with StreamedEpisode(policy) as client:
        client.client._stream._replan_every = one_chunk
        actions = [client.action(step, stamp * PERIOD) for stamp in stamps]
    runner = ChunkRunner(policy, seed=7)
    chunk = [runner.action(step) for _ in range(TA)]
    np.testing.assert_array_equal(actions, [chunk[i] for i in indices])


def test_a_request_that_is_refused_uses_up_no_action(policy: Policy) -> None:
    step = random_observation(policy)
    with StreamedEpisode(policy) as client:
        actions = [client.action(step, tick * PERIOD) for tick in range(2)]
        with pytest.raises(PolicyError):
            client.action({"unknown": np.zeros(1)}, 2 * PERIOD)
        actions += [client.action(step, tick * PERIOD) for tick in (2, 3)]
    runner = ChunkRunner(policy, seed=7)
    np.testing.assert_array_equal(actions, [runner.action(step) for _ in range(4)])


def test_an_episode_without_reset_is_refused(policy: Policy) -> None:
    step = random_observation(policy)
    with StreamedEpisode(policy) as client:
        client.action(step, 10.0)
        with pytest.raises(ValueError, match="the stamp 0 is 10 s before the last one: send reset before an episode"):
            client.action(step, 0.0)
        for stamp in (np.inf, np.nan, "now"):
            with pytest.raises(ValueError, match="invalid stamp"):
                client.action(step, stamp)
        client.action(step, 10.0 + PERIOD)
