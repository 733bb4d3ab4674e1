"""The control loop of `ddp run`: observations of a robot in, actions out, at the rate of the schema."""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.action_limits import ActionError, Array
from ddp_cli.deploy.robot import STAMP, Robot
from ddp_cli.deploy.streaming import ActionStream, StreamError
from ddp_cli.deploy.watchdog import Watchdog, timeout_of
from ddp_cli.errors import DdpError
from ddp_cli.evaluation.rollout import Agent
from ddp_cli.tasks import Task

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LoopOptions:
    """`sync`: compute a chunk when the previous one is used up, while the robot waits. `real_time`: keep to the control
    rate; without it, steps follow each other at once. `max_age` [s] of an observation. `blend_steps`, over which
    each chunk is blended with the previous one; not with `sync`.
    """

    max_steps: int
    sync: bool = False
    real_time: bool = True
    replan_every: int | None = None
    max_age: float = 0.5
    blend_steps: int = 0


@dataclass(frozen=True)
class Step:
    """One control step."""

    obs: Observation
    action: Array
    is_takeover: bool


class RunAgent(Agent, Protocol):
    """An agent that knows its control rate, the length of its chunks, and how many committed actions they continue."""

    @property
    def control_hz(self) -> float: ...
    @property
    def n_action_steps(self) -> int: ...
    @property
    def prefix_steps(self) -> int: ...


@dataclass
class Timing:
    """Times of all steps [ms]."""

    late: list[float] = field(default_factory=list)
    """From when a command was due to when it was sent."""
    busy: list[float] = field(default_factory=list)
    """From the observation to the command."""
    chunks: list[float] = field(default_factory=list)
    """To predict a chunk."""
    held_ticks: int = 0
    """Ticks at which a chunk was late, and the robot was stopped."""
    skipped_ticks: int = 0
    """Ticks that passed while a step took longer than its period."""

    def summary(self) -> dict[str, Any]:
        """Medians, 95th and 99th percentiles."""
        percentiles = {
            name: dict(zip(("p50", "p95", "p99"), np.percentile(values, (50, 95, 99)).round(3).tolist(), strict=True))
            for name, values in (("late_ms", self.late), ("busy_ms", self.busy), ("chunk_ms", self.chunks))
            if values
        }
        return {**percentiles, "held_ticks": self.held_ticks, "skipped_ticks": self.skipped_ticks}


class ControlLoop:
    """Runs episodes of `agent` on `robot`. Whatever happens, `robot.stop` is called at the end of each.

    `on_step` is called after each command. It returns True or False to end the episode with or without success, and
    None to go on, as the method `outcome` of a robot does.
    """

    def __init__(self, robot: Robot, agent: RunAgent, task: Task, options: LoopOptions) -> None:
        self._robot, self._agent, self._task, self._options = robot, agent, task, options
        self._period = 1.0 / agent.control_hz
        self.timing = Timing()

    def run(self, seed: int, on_step: Callable[[Step], bool | None] = lambda _: None) -> tuple[bool | None, int]:
        """One episode: its success, None where nobody knows, and its steps."""
        with ExitStack() as streams:
            try:
                self._robot.reset()
                self._agent.reset(seed)
                stream = streams.enter_context(self._make_stream())
                observation = self._observe(stream, self._now(0))
                self._wait_for_chunk(stream)
                timeout = timeout_of(self._agent.control_hz) if self._options.real_time else None
                with Watchdog(timeout, self._robot.stop) as watchdog:
                    result = self._run_steps(stream, watchdog, observation, on_step)
                self.timing.held_ticks += stream.stats().late_ticks
                return result
            except (StreamError, ActionError) as e:
                raise DdpError(str(e)) from e
            finally:
                self._stop()  # before the stream is closed, which waits for the chunk that is being computed

    def _stop(self) -> None:
        """Stop the robot, also if Ctrl-C is pressed again. After an error, a failure to stop becomes a note on it."""
        error = sys.exc_info()[1]
        try:
            self._robot.stop()
        except KeyboardInterrupt:
            self._robot.stop()
            raise
        except Exception as stop_error:
            if error is None:
                raise
            error.add_note(f"The robot could not be stopped, either: {type(stop_error).__name__} {stop_error}")

    def _wait_for_chunk(self, stream: ActionStream) -> None:
        """Wait for the first chunk, while the robot stands still."""
        chunk = stream.request(self._now(0))
        if chunk is None:
            seconds = self._agent.n_action_steps * self._period
            raise DdpError(
                f"the first observation is too old for a chunk of actions, which covers {seconds:g} s.",
                "`observe` returns the latest observation without waiting for sensors: start them in `__init__`.",
            )
        concurrent.futures.wait([chunk])

    def _make_stream(self) -> ActionStream:
        agent, sync = self._agent, self._options.sync
        start = getattr(self._robot, "start", lambda: None)()
        return ActionStream(
            self._act, n_obs_steps=agent.n_obs_steps, n_action_steps=agent.n_action_steps, start=start, waits=True,
            action_limits=agent.action_limits, control_hz=agent.control_hz,
            replan_every=agent.n_action_steps if sync else self._options.replan_every,
            latency=(lambda: 0.0) if sync else None, prefix_steps=0 if sync else agent.prefix_steps,
            blend_steps=0 if sync else self._options.blend_steps,
        )  # fmt: skip

    def _act(self, history: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        chunk = self._agent.act(history, **keywords)
        self.timing.chunks.append((time.perf_counter() - start) * 1e3)
        return chunk

    def _now(self, step: int) -> float:
        """The time [s]; with `sync` chunks take none, so it is that of the step."""
        return step * self._period if self._options.sync else time.monotonic()

    def _run_steps(
        self,
        stream: ActionStream,
        watchdog: Watchdog,
        observation: Observation,
        on_step: Callable[[Step], bool | None],
    ) -> tuple[bool | None, int]:
        takeover = getattr(self._robot, "takeover", lambda: None)
        outcome = getattr(self._robot, "outcome", lambda: None)
        begin, tick = time.monotonic(), 0
        for step in range(self._options.max_steps):
            due, start = begin + tick * self._period, time.monotonic()
            if step > 0:
                observation = self._observe(stream, self._now(step))
            action, operator = stream.action(self._now(step)), takeover()
            if operator is not None:
                action = self._agent.action_limits.validate_action(operator, "takeover()")
                stream.follow(action)
            if watchdog.expired:
                slow = "chunks take too long for --sync, or a method of the robot blocks"
                raise DdpError(
                    "the control loop stood still, and the robot was stopped.",
                    f"Find out why: {slow if self._options.sync else 'a method of the robot blocks'}.",
                )
            self._robot.command(action)
            now = time.monotonic()
            if self._options.real_time:
                self.timing.late.append((now - due) * 1e3)
            self.timing.busy.append((now - start) * 1e3)
            watchdog.feed()
            ends = (on_step(Step(observation, action, operator is not None)), take_outcome(outcome()))
            success = next((end for end in ends if end is not None), None)
            if success is not None:
                return success, step + 1
            tick = self._wait(begin, tick)
        return None, self._options.max_steps

    def _wait(self, begin: float, tick: int) -> int:
        """Wait for the next tick, and return its number. Ticks that have passed are skipped."""
        if not self._options.real_time:
            return tick + 1
        passed = int((time.monotonic() - begin) / self._period)
        self.timing.skipped_ticks += max(0, passed - tick - 1)
        tick = max(tick + 1, passed)
        time.sleep(max(0.0, begin + tick * self._period - time.monotonic()))
        return tick

    def _observe(self, stream: ActionStream, now: float) -> Observation:
        """Observe, and give the observation to `stream`. DdpError if it is old, or does not match the task."""
        observed = self._robot.observe()
        if not isinstance(observed, Mapping):
            raise DdpError(
                f"`observe` of the robot returned {type(observed).__name__}.", "It returns a dict of arrays."
            )
        raw = dict(observed)
        stamp = _take_stamp(raw.pop(STAMP, None))
        age = 0.0 if stamp is None else time.monotonic() - stamp
        if age < -self._period:
            raise DdpError(f"'{STAMP}' of the observation is {-age:.2f} s ahead.", "Use time.monotonic().")
        if age > self._options.max_age:
            raise DdpError(
                f"the observation is {age:.2f} s old, more than {self._options.max_age:g} s: the robot was stopped.",
                "Check its sensors, or allow more with --max-age.",
            )
        observation = take_observation(self._task, self._agent.obs, raw)
        needed = {**self._task.images(self._agent.obs), **self._task.vectors(self._agent.obs)}
        stamp = now if stamp is None or self._options.sync else stamp
        stream.observe({key: observation[key] for key in needed}, stamp)
        return observation


def take_observation(task: Task, obs: str, raw: Mapping[str, Any]) -> Observation:
    """The arrays of `task` in the observation of a robot: images uint8, resized if they have the size of the recording,
    vectors float32. Vectors that an `obs` policy does not observe may be missing. DdpError names what does not match.
    """
    cameras, vectors = task.images(obs), task.vectors("state")
    missing = [key for key in (*cameras, *task.vectors(obs)) if key not in raw]
    if missing:
        raise DdpError(
            f"the robot does not observe '{missing[0]}'.", f"The policy needs {', '.join((*cameras, *vectors))}."
        )
    observation: Observation = {}
    for key, camera in cameras.items():
        image = _to_array(key, raw[key])
        image = camera.take(image) if image.dtype == np.uint8 and image.ndim == 3 else image
        if image.shape != camera.shape or image.dtype != np.uint8:
            raise DdpError(f"'{key}' is {image.dtype} {image.shape}.", f"The policy takes uint8 {camera.shape}.")
        observation[key] = image.copy()
    for key, width in vectors.items():
        if key in raw:
            vector = _to_array(key, raw[key])
            if vector.shape != (width,) or vector.dtype.kind not in "fiu":
                raise DdpError(f"'{key}' is {vector.dtype} {vector.shape}.", f"The policy takes {width} numbers.")
            with np.errstate(over="ignore"):
                observation[key] = vector.astype(np.float32)
            if not np.isfinite(observation[key]).all():
                raise DdpError(f"'{key}' is {vector.tolist()}.", f"The policy takes {width} finite numbers.")
    return observation


def take_outcome(value: object) -> bool | None:
    """What `outcome` of a robot returned; DdpError unless it is True, False or None."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise DdpError(f"`outcome` of the robot returned {value!r}.", "It returns True, False or, before the end, None.")


def _take_stamp(value: object) -> float | None:
    """The timestamp of an observation [s], None if it has none."""
    if value is None:
        return None
    stamp = _to_array(STAMP, value)
    if stamp.shape != () or stamp.dtype.kind not in "fiu" or not np.isfinite(stamp):
        raise DdpError(f"'{STAMP}' is {value!r}.", "It is a time of time.monotonic(), in seconds.")
    return float(stamp)


def _to_array(key: str, value: object) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as e:  # nested lists of different lengths
        raise DdpError(f"'{key}' is no array: {' '.join(str(e).split())}", "") from e
