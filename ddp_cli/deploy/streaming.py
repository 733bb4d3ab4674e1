"""Streaming control: observations arrive at any rate, actions are returned at the control rate. Requires numpy only;
this file may be copied beside runtime.py.

    policy = Policy.load("policy")
    with ActionStream.from_policy(policy, start=where_the_robot_is) as stream:
        while running:                                  # at the control rate in policy.json
            stream.observe({key: one observation})      # at any rate, from any thread
            robot.command(stream.action())              # returns at once

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

Seams: a chunk that is predicted without regard to the one before it jumps where it takes over. With `prefix_steps` N,
the policy is also given the actions that will have been executed when its chunk arrives: those for the ticks from the
origin to now, and those of the current chunk for the next L ticks, L being the 95th percentile of the latency so far, N
actions at most. The chunk then continues them. If it comes early, its first actions are those of the current chunk; if
it comes late, there is a jump. With `blend_steps` n, a chunk takes over gradually: the difference between the previous
chunk and the new one at the tick of the seam is added to the new one with weights that fall linearly from n / (n + 1)
to 1 / (n + 1) over n ticks, and then are 0; grippers are not blended. With `ensemble` m, each action is a weighted mean
of all chunks that have one for its tick, with weights exp(-m i) from the oldest (i = 0) to the newest (temporal
ensembling; Zhao et al. 2023, IV-A). In both, quaternions have the sign that makes them close; rotation vectors and
angles are combined as numbers.

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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # nothing of the package is needed to run: this file may be copied
    from typing import Self

    from numpy.typing import NDArray

    from ddp_cli.action_limits import ActionLimits, Array
    from ddp_cli.deploy.runtime import Policy

    Observation = Mapping[str, NDArray[Any]]
    Chunk = NDArray[np.floating[Any]]

GRIPPER = "gripper"  # the kind of a value, in action_limits.py
JITTER_TOLERANCE = 0.25  # [periods], by which an observation may be newer than the tick it is used for
LATENCY_WINDOW = 10_000  # latest chunks that the latency statistics cover


class StreamError(ValueError):
    """Settings or timestamps that cannot be used, or a chunk that cannot be executed."""


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

    act            To observations, oldest first -> chunk (Ta, Da); runs in `pool`
    control_hz     rate at which `action` is called
    replan_every   R, periods from one request to the next, 1 to Ta
    start          action to hold before the first chunk; required for actions that are goals: the current pose
    waits          the robot stands still until the first chunk arrives, whose first action it executes then: wait for
                   `request` before the first `action`. No `start` is needed
    prepare        turns an observation into the copy that `act` receives, in the thread that calls `observe`
    clock          [s], provides missing timestamps
    latency        for simulation: chunks are computed synchronously, without a thread, and arrive `latency()` [s]
                   later, measured by the timestamps
    prefix_steps   N, of the policy: `act` gets `prefix` as well, the actions (P, Da), P <= N, that its chunk continues
    blend_steps    n, ticks over which each chunk is blended with the previous one; 0: none
    ensemble       m, weighs chunks that overlap; None: the newest chunk alone
    pool           threads that several streams share; by default the stream has one of its own

    StreamError if a setting is invalid.
    """

    def __init__(
        self,
        act: Callable[..., Chunk],
        *,
        n_obs_steps: int,
        n_action_steps: int,
        action_limits: ActionLimits,
        control_hz: float,
        replan_every: int | None = None,
        start: Chunk | None = None,
        waits: bool = False,
        prepare: Callable[[Observation], Observation] | None = None,
        clock: Callable[[], float] = time.monotonic,
        latency: Callable[[], float] | None = None,
        prefix_steps: int = 0,
        blend_steps: int = 0,
        ensemble: float | None = None,
        pool: Executor | None = None,
    ) -> None:
        replan_every = max(1, n_action_steps // 2) if replan_every is None else replan_every
        if not 1 <= replan_every <= n_action_steps:
            raise StreamError(f"replan_every = {replan_every} must be between 1 and n_action_steps = {n_action_steps}.")
        if not 0 <= blend_steps < n_action_steps:
            raise StreamError(f"blend_steps = {blend_steps} must be between 0 and {n_action_steps - 1}.")
        if not 0 < control_hz < math.inf:
            raise StreamError(f"control_hz = {control_hz} must be a positive rate.")
        self.period = 1.0 / control_hz  # [s]
        self.budget = min(n_action_steps - replan_every, n_action_steps // 2) * self.period  # [s]
        self._act, self._prepare, self._clock, self._latency = act, prepare or _copy_arrays, clock, latency
        self._action_limits, self._waits = action_limits, waits
        self._last_action: Array | None = None  # not known before the first chunk of a robot that waits
        if start is not None or not waits:
            try:
                self._last_action = action_limits.initial_action(start)
            except ValueError as e:  # an ActionError, by a class that is built in: action_limits.py is not imported
                raise StreamError(str(e)) from e
        self._n_obs_steps, self._n_action_steps, self._replan_every = n_obs_steps, n_action_steps, replan_every
        self._prefix_steps, self._blend_steps, self._ensemble = prefix_steps, blend_steps, ensemble
        self._executed: deque[tuple[float, Array]] = deque(maxlen=n_action_steps)  # with their times [s], newest last
        self._is_followed = False  # whether an operator's action was executed at the last tick
        self._overlapping: list[tuple[float, Array]] = []  # origins [s] and chunks, for `ensemble`
        self._lock = threading.Lock()  # observe may be called from other threads
        self._stamps: list[float] = []  # of `_observations`, sorted [s]
        self._observations: list[Observation] = []
        self._pending: _PendingChunk | None = None
        self._request_time = -math.inf  # of the last request [s]
        self._request_stamp = -math.inf  # of its newest observation [s]
        self._chunk: Array | None = None
        self._origin = 0.0  # of `_chunk` [s]
        self._start = -math.inf  # when a robot that waits begins to move [s]
        self._chunks = self._waiting_ticks = self._late_ticks = 0
        self._latencies: deque[float] = deque(maxlen=LATENCY_WINDOW)  # [s]
        self._own_pool = None if pool else ThreadPoolExecutor(1, "ddp-stream")  # starts its thread on first use
        self._pool: Executor = pool or self._own_pool  # type: ignore[assignment]
        self._closed = False

    @classmethod
    def from_policy(cls, policy: Policy, seed: int | None = None, **settings: Any) -> Self:
        """The stream of an exported policy, whose policy.json has the control rate, To, Ta and the limits of actions.

        With a `seed` the noise of the chunks is reproducible, their timing is not. `settings` are those of the class.
        Observations are checked by `observe`, which raises a PolicyError for one that does not match the policy.
        """
        generator = np.random.default_rng(seed)

        def act(history: Sequence[Observation], prefix: Chunk | None = None) -> Chunk:
            obs = {key: np.stack([step[key] for step in history]) for key in policy.obs}
            return policy.predict(obs, policy.sample_noise(generator), prefix)

        def prepare(obs: Observation) -> Observation:
            return {key: np.array(policy.validate_obs(key, obs)) for key in policy.obs}

        return cls(
            act, n_obs_steps=policy.n_obs_steps, n_action_steps=policy.n_action_steps, action_limits=policy.limits,
            control_hz=policy.spec["control_hz"], prepare=prepare, **{"prefix_steps": policy.prefix_steps, **settings},
        )  # fmt: skip

    # -- observations -------------------------------------------------------------------------

    def observe(self, obs: Observation, stamp: float | None = None) -> None:
        """Add an observation {key: array} taken at `stamp` [s], by default now. Arrays are copied; thread-safe."""
        copied = self._prepare(obs)
        with self._lock:
            stamp = self._resolve_stamp(stamp)
            i = self._count_until(stamp)
            if i and self._stamps[i - 1] == stamp:  # from a sensor that has nothing newer: nothing to keep twice
                self._observations[i - 1] = copied
                return
            self._stamps.insert(i, stamp)
            self._observations.insert(i, copied)
            # Keep what the next request can use: To periods with tolerance, and one older observation.
            oldest = self._stamps[-1] - (self._n_obs_steps + 2) * self.period
            surplus = max(0, self._count_until(oldest) - 1)
            del self._stamps[:surplus], self._observations[:surplus]

    def _count_until(self, stamp: float) -> int:
        """Number of observations with a timestamp up to `stamp`."""
        return bisect.bisect_right(self._stamps, stamp)

    def _build_history(self, newest: int) -> list[Observation]:
        """The To observations one period apart that end with the one at index `newest`."""
        history = []
        for age in range(self._n_obs_steps - 1, 0, -1):
            target = self._stamps[newest] - age * self.period
            candidates = range(max(1, self._count_until(target + JITTER_TOLERANCE * self.period)))
            history.append(self._observations[min(candidates, key=lambda i: abs(self._stamps[i] - target))])
        return [*history, self._observations[newest]]

    # -- actions ------------------------------------------------------------------------------

    def action(self, stamp: float | None = None) -> Array:
        """The action (Da,) for the control tick at `stamp` [s], by default now. Call it once per period.

        Returns immediately. Raises, once, the exception of the policy, or a StreamError if its chunk is not finite.
        """
        with self._lock:
            now = self._resolve_stamp(stamp)
            self._advance(now)
            self._is_followed = False
            index = self._to_periods(now - self._origin)
            if self._chunk is not None and 0 <= index < self._n_action_steps:
                self._last_action = self._chunk[index]
            else:
                if self._chunk is None:
                    self._waiting_ticks += 1
                else:
                    self._late_ticks += 1
                self._last_action = self._hold_action()
            self._executed.append((now, self._last_action))
            return self._last_action.copy()

    def request(self, stamp: float | None = None) -> Future[Any] | None:
        """The chunk that is being computed at `stamp` [s], requested now if one is due, or the one that has arrived;
        None if there is neither.

        Its end can be waited for, its content is of no use. Raises what `action` does.
        """
        with self._lock:
            self._advance(self._resolve_stamp(stamp))
            if self._pending or self._chunk is None:
                return self._pending.result if self._pending else None
            arrived: Future[Any] = Future()
            arrived.set_result(None)
            return arrived

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk has been received."""
        return self._chunk is not None

    def hold(self) -> Array:
        """The action (Da,) that stops the robot; send it after `action` raised."""
        with self._lock:
            return self._hold_action()

    def _hold_action(self) -> Array:
        if self._last_action is None:
            raise StreamError("there is no action to hold yet: wait for the first chunk.")
        return self._action_limits.hold_action(self._last_action)

    def follow(self, action: Chunk) -> None:
        """Say that `action` (Da,), of an operator, was executed in place of the one last returned: it is held next."""
        with self._lock:
            self._last_action, self._is_followed = self._action_limits.validate_action(action, "action"), True
            if self._executed:
                self._executed[-1] = self._executed[-1][0], self._last_action

    def _advance(self, now: float) -> None:
        """Receive the requested chunk if it has arrived, and request the next one if it is due."""
        if self._closed:
            raise StreamError("the stream is closed. Create a new one.")
        self._receive_chunk(now)
        if self._request_chunk(now):
            self._receive_chunk(now)  # without latency it is executed from this tick on

    def _request_chunk(self, now: float) -> bool:
        """Request the next chunk if it is due and there is a new observation; whether it was requested."""
        is_due = now - self._request_time >= (self._replan_every - 0.5) * self.period
        is_due |= self._waits and self._chunk is None  # after an error: the robot stands still until then
        if self._pending or not is_due or not self._observations:
            return False
        ahead = self._stamps[-1] - now
        if ahead > self.period:
            raise StreamError(f"the timestamp of an observation is {ahead:g} s ahead of the action's: use one clock.")
        newest = self._count_until(now + JITTER_TOLERANCE * self.period) - 1
        stamp = self._stamps[newest] if newest >= 0 else -math.inf
        if stamp <= self._request_stamp or now - stamp >= (self._n_action_steps - 0.5) * self.period:
            return False
        history = self._build_history(newest)
        self._request_time, self._request_stamp = now, stamp
        # An observation from before a waiting robot began to move shows the state in which it began.
        origin = max(self._start, now - max(0, self._to_periods(now - stamp)) * self.period)
        keywords = {"prefix": self._committed_actions(origin, now)} if self._prefix_steps else {}
        if self._latency:
            latency = self._latency()
            result: Future[tuple[Chunk, float]] = Future()
            result.set_result((self._act(history, **keywords), latency))
            self._pending = _PendingChunk(result, origin, now + latency)
        else:
            result = self._pool.submit(self._act_timed, history, keywords, self._clock())
            self._pending = _PendingChunk(result, origin, now)
        return True

    def _committed_actions(self, origin: float, now: float) -> Chunk:
        """The actions (P, Da) for the ticks from `origin` on that will have been executed when a chunk arrives that is
        requested now. At a tick that was skipped, the robot still executed the action of the one before.
        """
        actions: list[Array] = []
        for tick in range(self._to_periods(now - origin)):
            until = origin + (tick + 0.5) * self.period
            earlier = [action for time, action in self._executed if time < until]
            if not earlier:
                return np.zeros((0, self._action_limits.dim))
            actions.append(earlier[-1])
        if self._chunk is not None:
            latency = float(np.percentile(self._latencies, 95)) / self.period  # [periods]
            next_index = max(0, self._to_periods(now - self._origin))
            actions += list(self._chunk[next_index : next_index + math.ceil(latency - 1e-6)])
        return np.reshape(actions[: self._prefix_steps], (-1, self._action_limits.dim))

    def _act_timed(self, history: list[Observation], keywords: dict[str, Chunk], start: float) -> tuple[Chunk, float]:
        chunk = self._act(history, **keywords)
        return chunk, self._clock() - start

    def _receive_chunk(self, now: float) -> None:
        """Switch to the requested chunk if it has arrived."""
        pending = self._pending
        if pending is None or now < pending.arrival - 1e-6 * self.period or not pending.result.done():
            return
        self._pending = None  # also after an error, which is raised once
        chunk, latency = pending.result.result()
        if len(chunk) != self._n_action_steps:
            raise StreamError(f"the policy predicts {len(chunk)} actions, n_action_steps is {self._n_action_steps}.")
        origin = now if self._chunk is None and self._waits else pending.origin
        context = f"chunk {self._chunks + 1} of the stream"
        try:
            chunk = self._action_limits.clamp(chunk, self._last_action, context)
            if self._ensemble is not None:
                chunk = self._mean_chunk(chunk, origin, self._ensemble)
                chunk = self._action_limits.clamp(chunk, self._last_action, context)
            if self._blend_steps and self._chunk is not None:
                chunk = self._blend(self._chunk, chunk, now, origin)
                chunk = self._action_limits.clamp(chunk, self._last_action, context)
        except ValueError as e:  # an ActionError
            raise StreamError(str(e)) from e
        if self._chunk is None and self._waits:
            self._start = now
        self._chunk, self._origin = chunk, origin
        self._chunks += 1
        self._latencies.append(latency)

    def _blend(self, current: Array, chunk: Array, now: float, origin: float) -> Array:
        """`chunk` (Ta, Da) from `origin`, which takes over gradually from the `current` chunk, or from what is executed
        instead of it.
        """
        n = self._n_action_steps
        index, current_index = self._to_periods(now - origin), self._to_periods(now - self._origin)
        if index >= n:  # it comes too late to be executed
            return chunk
        is_executed = current_index < n and not self._is_followed
        previous = current[current_index] if is_executed else self._last_action
        assert previous is not None  # there was a chunk
        previous, chunk = (self._action_limits.with_signs_of(chunk[index], x) for x in (previous, chunk))
        is_gripper = np.array([kind == GRIPPER for kind in self._action_limits.kinds])
        difference = np.where(is_gripper, 0.0, previous - chunk[index])
        weights = (self._blend_steps + index - np.arange(n)) / (self._blend_steps + 1.0)
        return chunk + np.clip(weights, 0.0, 1.0)[:, None] * difference

    def _mean_chunk(self, chunk: Array, origin: float, m: float) -> Array:
        """The weighted mean (Ta, Da) of `chunk` and of the earlier chunks where they overlap it."""
        n = self._n_action_steps
        self._overlapping = [item for item in self._overlapping if self._to_periods(origin - item[0]) < n]
        self._overlapping.append((origin, chunk))
        weights, total = np.zeros((n, 1)), np.zeros_like(chunk)
        next_weight = np.ones((n, 1))  # of the next chunk that covers a tick
        for earlier_origin, earlier in self._overlapping:
            covered = min(n, n - self._to_periods(origin - earlier_origin))  # the first ticks of `chunk`
            aligned = self._action_limits.with_signs_of(chunk[:covered], earlier[n - covered :])
            total[:covered] += next_weight[:covered] * aligned
            weights[:covered] += next_weight[:covered]
            next_weight[:covered] *= math.exp(-m)
        return total / weights

    def _resolve_stamp(self, stamp: float | None) -> float:
        resolved = self._clock() if stamp is None else float(stamp)
        if not math.isfinite(resolved):
            raise StreamError(f"the timestamp {resolved} is not finite: give seconds, or None for now.")
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
        """End the stream, and its thread after the chunk that it is computing."""
        with self._lock:
            self._closed = True
            if self._pending:
                self._pending.result.cancel()  # unless it has begun
        if self._own_pool:
            self._own_pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _copy_arrays(obs: Observation) -> Observation:
    return {key: np.array(value) for key, value in obs.items()}
