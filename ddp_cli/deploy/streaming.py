"""Streaming control: observations in at any rate, actions out at the control rate.

The next chunk is computed while the current one plays. Everything is aligned by time stamps [s]:

- A chunk has an origin, the control tick of the newest observation that it was made from: its action i is
  for the tick origin + i, whenever the chunk arrives. One that took L periods begins with its action L; what
  was meant for ticks that have passed is never executed. (Played from its first action on arrival, all of it
  would come L periods late, and the loop would chase where the robot was.) In place of its first L actions those of
  the chunk before were executed. Absolute goals make up for the difference by themselves; of delta actions, what
  a chunk corrects within its first L is left to a later one, so L should be short against the time in which
  the policy corrects itself.
- The policy sees To observations one control period apart, the newest first found, then for each period
  before it the nearest one not newer (up to a quarter of a period newer counts as the same time). Before there
  are so many, the first is repeated. An observation that is a periods old when asked from costs a periods.
- A new chunk is asked for `replan_every` (R) periods after the last was, when that has been answered and
  there is a newer observation. It replaces the current one as soon as it is there.

Latency budget: a chunk covers the ticks origin to origin + Ta - 1, and one chunk is computed at a time, so
there is never a gap while an answer takes at most min(Ta - R, Ta / 2) periods. The default R = Ta / 2 has the
largest budget, half a chunk: 4 periods or 200 ms for Ta = 8 at 20 Hz. A smaller R looks at the world more often.

If a chunk is late, the robot is told to stop where it is (delta: no motion; absolute: the last goal; the gripper
as it was) and the tick is counted; `action` never waits. An error of the policy, and a chunk that is not
finite, is raised by the next call of `action`, once; `hold()` is then the action to send, and the stream goes
on with what is left of the chunk before, or holds, and asks again.

Actions are kept inside `Safety`, the rule that evaluation uses.
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
from ddp_cli.evaluation.rollout import Observation
from ddp_cli.safety import Array, Safety
from ddp_cli.tasks import CONTROL_HZ

Chunk = NDArray[np.floating[Any]]
SAME_TIME = 0.25  # [periods]: jitter that does not make an observation another tick's
KEPT = 10_000  # latencies that the statistics are of


@dataclass(frozen=True)
class StreamStats:
    """How a stream keeps up. Times [ms]; latencies are nan before the first chunk."""

    chunks: int
    waited: int
    """Ticks held before the first chunk."""
    late: int
    """Ticks held after it: the next chunk was not there in time."""
    p50_ms: float
    p95_ms: float
    budget_ms: float


@dataclass(frozen=True)
class _PendingChunk:
    """A chunk that is being made."""

    answer: Future[tuple[Chunk, float]]  # and its latency [s]
    origin: float  # [s]
    ready: float  # [s], not before


class ActionStream:
    """Owns the observation queue and the timing of the chunks that `act` predicts (see the module's text).

    act            To observations, oldest first -> chunk (Ta, Da); called in a thread of the stream's own
    control_hz     rate at which `action` is called
    replan_every   R, periods from one request to the next, 1 to Ta
    start          action to hold before the first chunk; absolute actions need it: where the hand is
    clock          [s], stamps what comes without a stamp
    latency        simulation: chunks are computed at once, without a thread, and arrive after `latency()` [s] of
                   the time that the stamps tell
    """

    def __init__(
        self,
        act: Callable[[Sequence[Observation]], Chunk],
        *,
        n_obs_steps: int,
        n_action_steps: int,
        safety: Safety,
        control_hz: float = CONTROL_HZ,
        replan_every: int | None = None,
        start: Chunk | None = None,
        clock: Callable[[], float] = time.monotonic,
        latency: Callable[[], float] | None = None,
    ) -> None:
        every = max(1, n_action_steps // 2) if replan_every is None else replan_every
        if not 1 <= every <= n_action_steps:
            raise ConfigError(f"replan_every = {every} must lie between 1 and n_action_steps = {n_action_steps}.")
        if not 0 < control_hz < math.inf:
            raise ConfigError(f"control_hz = {control_hz} must be a positive rate.")
        self.period = 1.0 / control_hz  # [s]
        self.budget = min(n_action_steps - every, n_action_steps // 2) * self.period  # [s]
        self._act, self._clock, self._latency = act, clock, latency
        self._safety, self._last = safety, safety.first(start)
        self._to, self._ta, self._every = n_obs_steps, n_action_steps, every
        self._lock = threading.Lock()  # observe may be called from other threads
        self._seen: list[tuple[float, Observation]] = []  # by stamp
        self._asked: _PendingChunk | None = None
        self._asked_at, self._asked_from = -math.inf, -math.inf  # last request, its newest observation [s]
        self._chunk: Array | None = None
        self._origin = 0.0  # of the chunk [s]
        self._chunks = self._waited = self._late = 0
        self._latencies: deque[float] = deque(maxlen=KEPT)
        self._pool = ThreadPoolExecutor(1, "ddp-stream")  # starts its thread when first used
        self._closed = False

    # -- observations in ----------------------------------------------------------------------

    def observe(self, obs: Observation, stamp: float | None = None) -> None:
        """Takes an observation {key: array} made at `stamp` [s] (now). Arrays are copied; any thread may call."""
        own = {key: np.array(value) for key, value in obs.items()}
        with self._lock:
            at = self._time(stamp)
            bisect.insort(self._seen, (at, own), key=_stamp)
            # As old as a request may look back, and one before that.
            oldest = self._seen[-1][0] - (self._to + 2) * self.period
            del self._seen[: max(0, bisect.bisect_right(self._seen, oldest, key=_stamp) - 1)]

    def _history(self, newest: int) -> list[Observation]:
        """The To observations that end with number `newest`, a period apart."""
        end = self._seen[newest][0]
        history = []
        for back in range(self._to - 1, 0, -1):
            wanted = end - back * self.period
            past = self._seen[: bisect.bisect_right(self._seen, wanted + SAME_TIME * self.period, key=_stamp)]
            _, obs = min(past, key=lambda seen: abs(seen[0] - wanted)) if past else self._seen[0]
            history.append(obs)
        return [*history, self._seen[newest][1]]

    # -- actions out --------------------------------------------------------------------------

    def action(self, stamp: float | None = None) -> Array:
        """The action (Da,) for the control tick at `stamp` [s] (now). Call it once per period; returns at once.

        Raises, once, what the policy raised, or a DdpError if its chunk is not finite.
        """
        with self._lock:
            now = self._time(stamp)
            if self._closed:
                raise DdpError("the stream is closed.", "Make another one.")
            self._receive(now)
            if self._request(now):
                self._receive(now)  # without latency it plays from this tick on
            step = self._periods(now - self._origin)
            if self._chunk is not None and 0 <= step < self._ta:
                self._last = self._chunk[step]
                return self._last.copy()
            if self._chunk is None:
                self._waited += 1
            else:
                self._late += 1
            self._last = self._safety.hold(self._last)
            return self._last.copy()

    def hold(self) -> Array:
        """The action (Da,) that stops the robot where it is; what to send when `action` raised."""
        with self._lock:
            return self._safety.hold(self._last)

    def _request(self, now: float) -> bool:
        """Asks for the next chunk if it is time, and there is something new to look at; whether it did."""
        if self._asked or now - self._asked_at < (self._every - 0.5) * self.period or not self._seen:
            return False
        ahead = self._seen[-1][0] - now
        if ahead > self.period:
            raise DdpError(f"an observation is stamped {ahead:g} s ahead of the action.", "Use one clock for both.")
        newest = bisect.bisect_right(self._seen, now + SAME_TIME * self.period, key=_stamp) - 1
        made = self._seen[newest][0] if newest >= 0 else -math.inf
        if made <= self._asked_from or now - made >= (self._ta - 0.5) * self.period:
            return False
        age = max(0, self._periods(now - made))
        history = self._history(newest)
        self._asked_at, self._asked_from = now, made
        origin, answer = now - age * self.period, Future[tuple[Chunk, float]]()
        if self._latency:
            latency = self._latency()
            answer.set_result((self._act(history), latency))
            self._asked = _PendingChunk(answer, origin, now + latency)
        else:
            answer = self._pool.submit(self._timed, history, self._clock())
            self._asked = _PendingChunk(answer, origin, now)
        return True

    def _timed(self, history: list[Observation], since: float) -> tuple[Chunk, float]:
        chunk = self._act(history)
        return chunk, self._clock() - since

    def _receive(self, now: float) -> None:
        """Takes the chunk that was asked for, if it has arrived."""
        asked = self._asked
        if asked is None or now < asked.ready - 1e-6 * self.period or not asked.answer.done():
            return
        self._asked = None  # an error belongs to this chunk, not to the next
        chunk, latency = asked.answer.result()
        if len(chunk) != self._ta:
            raise DdpError(f"the policy predicts {len(chunk)} actions, n_action_steps is {self._ta}.")
        self._chunk = self._safety.bound(chunk, self._last, f"chunk {self._chunks + 1} of the stream")
        self._origin = asked.origin
        self._chunks += 1
        self._latencies.append(latency)

    def _time(self, stamp: float | None) -> float:
        at = self._clock() if stamp is None else float(stamp)
        if not math.isfinite(at):
            raise DdpError(f"the stamp {at} is no time.", "Give seconds, or nothing for now.")
        return at

    def _periods(self, seconds: float) -> int:
        return round(seconds / self.period)

    # -- how it goes --------------------------------------------------------------------------

    def stats(self) -> StreamStats:
        """How the stream has kept up so far."""
        with self._lock:
            times = np.array(self._latencies) * 1000.0
            p50, p95 = np.percentile(times, (50, 95)).tolist() if len(times) else (math.nan, math.nan)
            return StreamStats(self._chunks, self._waited, self._late, p50, p95, self.budget * 1000.0)

    def close(self) -> None:
        """Ends the thread; waits for the chunk that is being made."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stamp(seen: tuple[float, Observation]) -> float:
    return seen[0]
