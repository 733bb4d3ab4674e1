"""Streams that compute their chunks in a thread."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import random_observation
from deploy.stamped_agent import PERIOD, StampedAgent, intended_time, make_stream, observe, run_ticks

from ddp_cli.deploy.runtime import ChunkRunner, Policy, PolicyError
from ddp_cli.deploy.streaming import ActionStream


def repeat_action(stream: ActionStream, stamp: float, chunks: int) -> None:
    """Repeats the tick at `stamp` until the stream has received `chunks` chunks, or raises."""
    for _ in range(1000):
        stream.action(stamp)
        if stream.stats().chunks == chunks:
            return
        time.sleep(0.01)
    pytest.fail("no chunk was received in 10 s")


def test_a_slow_policy_never_blocks_control() -> None:
    """Real time: 150 ms per chunk at 20 Hz. The number of late ticks depends on the machine, staleness must not."""
    agent = StampedAgent(lambda chunk: time.sleep(0.15) or chunk)
    start = time.monotonic()
    slowest = 0.0
    with make_stream(agent, None, clock=lambda: time.monotonic() - start) as stream:
        for tick in range(40):
            time.sleep(max(0.0, tick * PERIOD - (time.monotonic() - start)))
            now = time.monotonic() - start
            observe(stream, now)
            action = stream.action(now)
            slowest = max(slowest, time.monotonic() - start - now)
            intended = intended_time(action)
            assert intended is None or abs(intended - now) <= PERIOD / 2 + 1e-6
        stats = stream.stats()
    assert slowest < 0.1, "action() waited for the policy"
    assert 3 <= stats.chunks <= 11
    assert stats.waiting_ticks >= 2
    assert 150 <= stats.p50_ms <= stats.p95_ms
    assert not [t for t in threading.enumerate() if t.name.startswith("ddp-stream")]


def test_a_policy_that_hangs_stops_the_robot_but_not_the_loop() -> None:
    release = threading.Event()
    stream = make_stream(StampedAgent(lambda chunk: release.wait(30) and chunk), None)
    assert run_ticks(stream, 20) == [None] * 20
    assert stream.stats().waiting_ticks == 20
    release.set()
    stream.close()


def test_an_error_in_the_thread_is_raised_by_the_next_action() -> None:
    errors, release = iter([ZeroDivisionError("of the policy"), None]), threading.Semaphore(0)

    def transform(chunk: np.ndarray) -> np.ndarray:
        release.acquire()
        if error := next(errors):
            raise error
        return chunk

    with make_stream(StampedAgent(transform), None) as stream:
        assert run_ticks(stream, 1) == [None]
        release.release()
        with pytest.raises(ZeroDivisionError, match="of the policy"):
            repeat_action(stream, PERIOD, 1)
        assert run_ticks(stream, 3, 2) == [None] * 3  # the next chunk is requested at tick 4
        release.release()
        repeat_action(stream, 4 * PERIOD, 1)
        assert run_ticks(stream, 2, 5) == [5, 6]


def test_streams_of_one_pool_compute_as_many_chunks_at_once_as_it_has_threads() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def transform(chunk: np.ndarray) -> np.ndarray:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return chunk

    with ThreadPoolExecutor(2) as pool:
        streams = [make_stream(StampedAgent(transform), None, pool=pool) for _ in range(8)]
        for stream in streams:
            observe(stream, 0.0)
        chunks = [stream.request(0.0) for stream in streams]
        for chunk in chunks:
            chunk.result(30)
        for stream in streams:
            assert intended_time(stream.action(PERIOD)) == pytest.approx(PERIOD)
            stream.close()
        assert pool.submit(lambda: 1).result() == 1, "the pool belongs to all of them"
    assert most == [2]


def test_an_exported_policy_is_a_stream(policy_folder: Path) -> None:
    """Without latency it acts as ChunkRunner does, with the rate, the steps and the limits of policy.json."""
    policy = Policy.load(policy_folder)
    runner = ChunkRunner(policy, seed=3)
    stream = ActionStream.from_policy(policy, seed=3, replan_every=policy.n_action_steps, latency=lambda: 0.0)
    assert stream.period == 1 / policy.spec["control_hz"]
    for tick in range(20):
        obs = random_observation(policy, tick)
        stream.observe(obs, tick * PERIOD)
        np.testing.assert_array_equal(stream.action(tick * PERIOD).astype(np.float32), runner.action(obs))
    key = next(iter(policy.obs))
    with pytest.raises(PolicyError, match=key):
        stream.observe({**obs, key: obs[key][:1]}, 1.0)


def test_streaming_imports_neither_torch_nor_a_simulator() -> None:
    heavy = {"torch", "robosuite", "mujoco", "onnx"}
    code = f"import sys, ddp_cli.deploy.streaming; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
