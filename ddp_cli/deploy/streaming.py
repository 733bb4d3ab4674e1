"""Streaming control: observations arrive at any rate, actions are returned at the control rate.

The next chunk is computed while the current one is executed. Everything is aligned by timestamps [s]:

- The origin of a chunk is the control tick of the newest observation it was predicted from. Its action i is for the
  tick origin + i, no matter when the chunk arrives. A chunk with a latency of L periods therefore starts with its
  action L; actions for ticks that have passed are never executed. (Executing it from its first action on arrival
  would delay every action by L periods, and the control loop would chase an outdated state.) In place of its first L
  actions, those of the previous chunk were executed. Absolute goals compensate for the difference; with delta
  actions, corrections within the first L actions are left to a later chunk, so L should be short compared with the
  time in which the policy corrects itself.
- The policy receives To observations one control period apart: the newest one, then for each earlier period the
  closest observation that is not newer (up to a quarter of a period newer counts as the same time). Until there are
  enough observations the first is repeated. If the newest observation is a periods old when the chunk is requested,
  the chunk loses its first a actions.
- A new chunk is requested `replan_every` (R) periods after the previous request, once that has been answered and
  there is a newer observation. It replaces the current chunk as soon as it arrives.

Latency budget: a chunk covers the ticks origin to origin + Ta - 1 and one chunk is computed at a time, so no tick is
without an action as long as the latency is at most min(Ta - R, Ta / 2) periods. The default R = Ta / 2 has the largest
budget, half a chunk: 4 periods or 200 ms for Ta = 8 at 20 Hz. A smaller R uses newer observations.

If a chunk is late, the robot is stopped (delta: no motion; absolute: the last goal; the gripper unchanged) and the tick
is counted; `action` never blocks. An exception in the policy, or a chunk that is not finite, is raised by the next call
of `action`, once; then send `hold()`. The stream continues with the rest of the previous chunk, or holds, and requests
a new chunk.

Actions are limited by `ActionLimits`, the same rule as in evaluation.

Shapes: To n_obs_steps, Ta n_action_steps, Da action.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError, DdpError
from ddp_cli.evaluation.rollout import Observation, clamp_chunk
from ddp_cli.safety import ActionError, ActionLimits, Array

Chunk = NDArray[np.floating[Any]]
JITTER_TOLERANCE = 0.25  # [periods], by which an observation may be newer than the tick it is used for
LATENCY_WINDOW = 10_000  # latest chunks that the latency statistics cover


@dataclass(frozen=True)
class StreamStats:
    """Statistics of a stream. Latencies [ms] are nan before the first chunk."""

    chunks: int
    waiting_ticks: int
    """Ticks without an action before the first chunk."""
    late_ticks: int
    """Ticks without an action after it, because the next chunk was late."""
    p50_ms: float
    p95_ms: float
    budget_ms: float


@dataclass(frozen=True)
class _PendingChunk:
    """A requested chunk."""

    result: Future[tuple[Chunk, float]]  # the chunk, and its latency [s]
    origin: float  # [s]
    arrival: float  # [s], earliest


class ActionStream:
    """Schedules the chunks predicted by `act` (see the docstring of this module).

    act            To observations, oldest first -> chunk (Ta, Da); runs in the stream's own thread
    control_hz     rate at which `action` is called
    replan_every   R, periods from one request to the next, 1 to Ta
    start          action to hold before the first chunk; required for actions that are goals: the current pose
    clock          [s], provides missing timestamps
    latency        for simulation: chunks are computed synchronously, without a thread, and arrive `latency()` seconds
                   later, measured by the timestamps
    """

    def __init__(
        self,
        act: Callable[[Sequence[Observation]], Chunk],
        *,
        n_obs_steps: int,
        n_action_steps: int,
        action_limits: ActionLimits,
        control_hz: float,
        replan_every: int | None = None,
        start: Chunk | None = None,
        clock: Callable[[], float] = time.monotonic,
        latency: Callable[[], float] | None = None,
    ) -> None:
        replan_every = max(1, n_action_steps // 2) if replan_every is None else replan_every
        if not 1 <= replan_every <= n_action_steps:
            raise ConfigError(f"replan_every = {replan_every} must be between 1 and n_action_steps = {n_action_steps}.")
        if not 0 < control_hz < math.inf:
            raise ConfigError(f"control_hz = {control_hz} must be a positive rate.")
        self.period = 1.0 / control_hz  # [s]
        self.budget = min(n_action_steps - replan_every, n_action_steps // 2) * self.period  # [s]
        self._act, self._clock, self._latency = act, clock, latency
        self._action_limits, self._last_action = action_limits, _initial_action(action_limits, start)
        self._n_obs_steps, self._n_action_steps, self._replan_every = n_obs_steps, n_action_steps, replan_every
        self._lock = threading.Lock()  # observe may be called from other threads
        self._observations: list[tuple[float, Observation]] = []  # sorted by timestamp
        self._pending: _PendingChunk | None = None
        self._request_time = -math.inf  # of the last request [s]
        self._request_stamp = -math.inf  # of its newest observation [s]
        self._chunk: Array | None = None
        self._origin = 0.0  # of `_chunk` [s]
        self._chunks = self._waiting_ticks = self._late_ticks = 0
        self._latencies: deque[float] = deque(maxlen=LATENCY_WINDOW)  # [s]
        self._pool = ThreadPoolExecutor(1, "ddp-stream")  # starts its thread on first use
        self._closed = False

    # -- observations -------------------------------------------------------------------------

    def observe(self, obs: Observation, stamp: float | None = None) -> None:
        """Add an observation {key: array} taken at `stamp` [s], by default now. Arrays are copied; thread-safe."""
        copied = {key: np.array(value) for key, value in obs.items()}
        with self._lock:
            bisect.insort(self._observations, (self._resolve_stamp(stamp), copied), key=_stamp)
            # Keep what the next request can use: To periods with tolerance, and one older observation.
            oldest = self._observations[-1][0] - (self._n_obs_steps + 2) * self.period
            del self._observations[: max(0, self._count_until(oldest) - 1)]

    def _count_until(self, stamp: float) -> int:
        """Number of observations with a timestamp up to `stamp`."""
        return bisect.bisect_right(self._observations, stamp, key=_stamp)

    def _build_history(self, newest: int) -> list[Observation]:
        """The To observations one period apart that end with the one at index `newest`."""
        end = self._observations[newest][0]
        history = []
        for age in range(self._n_obs_steps - 1, 0, -1):
            target = end - age * self.period
            candidates = self._observations[: self._count_until(target + JITTER_TOLERANCE * self.period)]
            closest = min(candidates or self._observations[:1], key=lambda item: abs(item[0] - target))
            history.append(closest[1])
        return [*history, self._observations[newest][1]]

    # -- actions ------------------------------------------------------------------------------

    def action(self, stamp: float | None = None) -> Array:
        """The action (Da,) for the control tick at `stamp` [s], by default now. Call it once per period.

        Returns immediately. Raises, once, the exception of the policy, or a DdpError if its chunk is not finite.
        """
        with self._lock:
            now = self._resolve_stamp(stamp)
            if self._closed:
                raise DdpError("the stream is closed.", "Create a new one.")
            self._receive_chunk(now)
            if self._request_chunk(now):
                self._receive_chunk(now)  # without latency it is executed from this tick on
            index = self._to_periods(now - self._origin)
            if self._chunk is not None and 0 <= index < self._n_action_steps:
                self._last_action = self._chunk[index]
                return self._last_action.copy()
            if self._chunk is None:
                self._waiting_ticks += 1
            else:
                self._late_ticks += 1
            self._last_action = self._action_limits.hold_action(self._last_action)
            return self._last_action.copy()

    def hold(self) -> Array:
        """The action (Da,) that stops the robot; send it after `action` raised."""
        with self._lock:
            return self._action_limits.hold_action(self._last_action)

    def _request_chunk(self, now: float) -> bool:
        """Request the next chunk if it is due and there is a new observation; whether it was requested."""
        is_due = now - self._request_time >= (self._replan_every - 0.5) * self.period
        if self._pending or not is_due or not self._observations:
            return False
        ahead = self._observations[-1][0] - now
        if ahead > self.period:
            raise DdpError(
                f"the timestamp of an observation is {ahead:g} s ahead of the action's.", "Use one clock for both."
            )
        newest = self._count_until(now + JITTER_TOLERANCE * self.period) - 1
        stamp = self._observations[newest][0] if newest >= 0 else -math.inf
        if stamp <= self._request_stamp or now - stamp >= (self._n_action_steps - 0.5) * self.period:
            return False
        history = self._build_history(newest)
        self._request_time, self._request_stamp = now, stamp
        origin = now - max(0, self._to_periods(now - stamp)) * self.period
        if self._latency:
            latency, result = self._latency(), Future[tuple[Chunk, float]]()
            result.set_result((self._act(history), latency))
            self._pending = _PendingChunk(result, origin, now + latency)
        else:
            result = self._pool.submit(self._act_timed, history, self._clock())
            self._pending = _PendingChunk(result, origin, now)
        return True

    def _act_timed(self, history: list[Observation], start: float) -> tuple[Chunk, float]:
        chunk = self._act(history)
        return chunk, self._clock() - start

    def _receive_chunk(self, now: float) -> None:
        """Switch to the requested chunk if it has arrived."""
        pending = self._pending
        if pending is None or now < pending.arrival - 1e-6 * self.period or not pending.result.done():
            return
        self._pending = None  # also after an error, which is raised once
        chunk, latency = pending.result.result()
        if len(chunk) != self._n_action_steps:
            raise DdpError(f"the policy predicts {len(chunk)} actions, n_action_steps is {self._n_action_steps}.")
        context = f"chunk {self._chunks + 1} of the stream"
        self._chunk = clamp_chunk(self._action_limits, chunk, self._last_action, context)
        self._origin = pending.origin
        self._chunks += 1
        self._latencies.append(latency)

    def _resolve_stamp(self, stamp: float | None) -> float:
        resolved = self._clock() if stamp is None else float(stamp)
        if not math.isfinite(resolved):
            raise DdpError(f"the timestamp {resolved} is not finite.", "Give seconds, or None for now.")
        return resolved

    def _to_periods(self, seconds: float) -> int:
        return round(seconds / self.period)

    # -- statistics ---------------------------------------------------------------------------

    def stats(self) -> StreamStats:
        """Statistics so far."""
        with self._lock:
            latencies = np.array(self._latencies) * 1000.0  # [ms]
            p50, p95 = np.percentile(latencies, (50, 95)).tolist() if len(latencies) else (math.nan, math.nan)
            return StreamStats(self._chunks, self._waiting_ticks, self._late_ticks, p50, p95, self.budget * 1000.0)

    def close(self) -> None:
        """End the thread, after the chunk that it is computing."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _initial_action(limits: ActionLimits, start: Chunk | None) -> Array:
    try:
        return limits.initial_action(start)
    except ActionError as e:
        raise ConfigError(e.message, e.hint) from e


def _stamp(item: tuple[float, Observation]) -> float:
    return item[0]
