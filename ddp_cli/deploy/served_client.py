"""What a server keeps of one client: its observations, its noise, and the actions predicted for it.

Everything but the policy itself runs in the event loop of the server, for all clients: a client never waits for the
chunk of another one. The policy runs in a pool of threads.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddp_cli.deploy.runtime import ChunkRunner, Policy
from ddp_cli.deploy.streaming import ActionStream

SEED_LIMIT = 2**63
MAX_BACKWARD = 2.0  # [periods], by which an observation may be older than the one before
LATENCY_WINDOW = 10_000  # latest calls of the policy that the latency statistics cover

Content = dict[str, Any]


class InferencePool(ThreadPoolExecutor):
    """Threads that run a policy, one for each core, and how long it took [ms]."""

    def __init__(self) -> None:
        super().__init__(os.cpu_count(), "ddp-serve")
        self.latencies: deque[float] = deque(maxlen=LATENCY_WINDOW)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def timed() -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.latencies.append((time.perf_counter() - start) * 1e3)
            return result

        return super().submit(timed)


class SynchronousClient:
    """Computes a chunk when the previous one is used up, while the robot waits: a seed gives the same actions again."""

    def __init__(self, policy: Policy, pool: Executor) -> None:
        self._runner, self._pool = ChunkRunner(policy), pool

    async def answer(self, request: Content, workers: Executor | None) -> Content:
        """The content of the reply. Raises whatever is wrong with the request.

        `workers`: where observations that are too large for the event loop are checked and resized.
        """
        op, obs = request.get("op"), request.get("obs")
        if op == "action" and isinstance(obs, dict):
            return {"action": await self._action(obs, request.get("stamp"), workers)}
        if op == "chunk" and isinstance(obs, list) and all(isinstance(item, dict) for item in obs):
            return {"action": await run_in(self._pool, self._runner.chunk, obs)}
        if op == "reset":
            self.reset(_check_seed(request.get("seed")))
            return {"ok": True}
        if op == "describe":
            return {"policy": self._runner.policy.spec}
        raise ValueError('expected {"op": "action", "obs": {...}}, "chunk" with a list of obs, "reset" or "describe"')

    async def _action(self, obs: Content, _stamp: object, workers: Executor | None) -> Any:
        runs_policy = not self._runner.pending
        return await run_in(self._pool if runs_policy else workers, self._runner.action, obs)

    def reset(self, seed: int | None) -> None:
        """Start an episode."""
        self._runner.reset(seed)

    def close(self) -> None:
        """Forget what was predicted for the client."""


@dataclass(frozen=True)
class _Tick:
    """A control step of a client. `is_counted`: its time is not that of its observation."""

    stamp: float  # of the newest observation, by the clock of the client [s]
    time: float  # in the stream [s]
    offset: float  # added to stamps to get times in the stream [s]
    is_counted: bool = False


class StreamingClient(SynchronousClient):
    """Answers `action` at once, from a stream whose next chunk is computed meanwhile. Only the first action of an
    episode waits, for the first chunk.
    """

    def __init__(self, policy: Policy, pool: Executor, blend_steps: int = 0) -> None:
        super().__init__(policy, pool)
        self._blend_steps = blend_steps
        self._start(None)

    def _start(self, seed: int | None) -> None:
        self._stream = ActionStream.from_policy(
            self._runner.policy, seed, waits=True, pool=self._pool, blend_steps=self._blend_steps
        )
        self._last = _Tick(-math.inf, 0.0, 0.0)
        self._waited = False  # whether a request has waited for a chunk since the offset was set

    def reset(self, seed: int | None) -> None:
        super().reset(seed)
        self._stream.close()
        self._start(seed)

    async def _action(self, obs: Content, stamp: object, workers: Executor | None) -> Any:
        if stamp is not None and not (type(stamp) in {int, float} and math.isfinite(stamp)):  # type: ignore[arg-type]
            raise ValueError(f"invalid stamp {stamp!r}, expected seconds")
        tick = self._next_tick(time.monotonic() if stamp is None else float(stamp))  # type: ignore[arg-type]
        stream = self._stream
        await run_in(workers, stream.observe, obs, tick.stamp + tick.offset)
        self._last = replace(tick, stamp=max(tick.stamp, self._last.stamp))
        self._waited = self._waited and tick.is_counted  # until a newer observation tells how the clock went on
        if not stream.has_chunk and (chunk := stream.request(tick.time)):
            # An error of the policy is raised by `action`.
            await asyncio.gather(asyncio.wrap_future(chunk), return_exceptions=True)
            self._waited = True
        return stream.action(tick.time).astype(np.float32)

    def _next_tick(self, stamp: float) -> _Tick:
        """The tick of a request with an observation of `stamp`. It is at the time of the observation, or one period
        after the last one, if that waited for a chunk, while the clock of a robot went on and that of a simulator did
        not, or if the observation is not newer: the robot has executed an action meanwhile.
        """
        last, period = self._last, self._stream.period
        backward = last.stamp - stamp
        if backward > MAX_BACKWARD * period:
            raise ValueError(f"the stamp {stamp:g} is {backward:g} s before the last one: send reset before an episode")
        following, time_of_stamp = last.time + period, stamp + last.offset
        # Images that queued up are newer than each other, and behind the actions all the same.
        is_behind = last.is_counted and time_of_stamp < following - period / 2
        if stamp <= last.stamp or is_behind:
            return _Tick(stamp, following, last.offset, is_counted=True)
        if self._waited:
            return _Tick(stamp, following, following - stamp)
        return _Tick(stamp, time_of_stamp, last.offset)

    def close(self) -> None:
        self._stream.close()


async def run_in(pool: Executor | None, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns, called in a thread of `pool`, or at once where there is none."""
    if pool is None:
        return function(*args)
    result: Awaitable[Any] = asyncio.get_running_loop().run_in_executor(pool, function, *args)
    return await result


def _check_seed(seed: object) -> int | None:
    if seed is not None and not (type(seed) is int and 0 <= seed < SEED_LIMIT):
        raise ValueError(f"invalid seed {seed!r}, expected an integer from 0")
    return seed
