"""One closed-loop episode of an agent that predicts action chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.action_limits import ActionError, ActionLimits, Array
from ddp_cli.errors import DdpError
from ddp_cli.sim.simulator import SUCCESS_HOLD_STEPS
from ddp_cli.tasks import Task

Observation = Mapping[str, NDArray[Any]]


class Agent(Protocol):
    """The interface of a policy in an episode."""

    @property
    def obs(self) -> str:
        """`image` or `state`."""

    @property
    def actions(self) -> str:
        """`delta` or `absolute`."""

    @property
    def n_obs_steps(self) -> int:
        """Number of observations that `act` takes."""

    @property
    def action_limits(self) -> ActionLimits:
        """The limits that actions are clamped to."""

    def reset(self, seed: int) -> None:
        """Start an episode; `seed` determines all randomness of the agent in it."""

    def act(self, history: Sequence[Observation]) -> NDArray[np.floating[Any]]:
        """The next actions (Ta, Da) after the last `n_obs_steps` observations, oldest first, not yet limited."""


class Environment(Protocol):
    """What an episode runs in: the simulator of robosuite, or a Gymnasium environment."""

    @property
    def task(self) -> Task:
        """The task; its `horizon` limits an episode."""

    @property
    def hold_steps(self) -> int:
        """Consecutive steps of success that end an episode."""

    @property
    def is_over(self) -> bool:
        """Whether the environment ended the episode."""

    @property
    def score(self) -> float | None:
        """Score of the episode so far; None where only success counts."""

    @property
    def total_reward(self) -> float | None:
        """Sum of rewards of the episode so far; None without rewards."""

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`."""

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Run one control step of `action` (Da,); returns success at its end."""

    def observe(self, obs: str) -> Observation:
        """Observations of an `image` or `state` policy."""

    def idle_action(self) -> Array | None:
        """The action (Da,) that keeps the robot in place; None if it is not known."""

    def positions(self) -> dict[str, list[float]]:
        """Where things are now, by name: x, y and more. Empty where it is not known."""

    def close(self) -> None:
        """Release the environment."""


@dataclass(frozen=True)
class EpisodeResult:
    """Result of an episode. `steps` counts to the first success, or to the end of the episode."""

    seed: int
    success: bool
    held: bool
    """Success for 10 consecutive steps."""
    steps: int
    chunk_ms: float
    """Mean time per predicted chunk [ms]."""
    score: float | None = None
    """Highest score of a step; None where only success counts."""
    total_reward: float | None = None
    """Sum of all rewards; None without rewards."""
    start: dict[str, list[float]] | None = None
    """`Environment.positions` at the start; None where they are not known."""

    def to_json(self) -> dict[str, Any]:
        """The values that are known."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class StepInfo:
    """State of an episode before an action, or after the last one."""

    step: int
    """Actions executed since the start."""
    first_success: int | None
    """Step of the first success, None before it."""
    chunk: NDArray[np.float64]
    """The current action chunk (Ta, Da); empty before the first one."""
    executed: int
    """Actions of the chunk that were executed."""
    chunk_ms: float
    """Time to predict the chunk [ms]."""


def run_episode(
    env: Environment, agent: Agent, seed: int, on_step: Callable[[StepInfo], None] | None = None
) -> EpisodeResult:
    """Run `agent` from the initial state `seed` with receding horizon control: predict a chunk, execute it, repeat.

    Success is the environment's success check at any step, as in the published evaluation; the episode then continues
    until success has held for `env.hold_steps` steps. Only the observations that the agent uses are rendered.
    `on_step` is called before every action and at the end, so once more than there are steps. It may read from `env`,
    but must not change its state. An environment may be over at once: then there is no chunk.
    """
    env.reset(seed)
    agent.reset(seed)
    positions = env.positions()
    limits, last_action = agent.action_limits, env.idle_action()
    history = [env.observe(agent.obs)] * agent.n_obs_steps
    first_success: int | None = None
    consecutive_successes = longest_success = step = executed = 0
    chunk = np.zeros((0, 0))
    latencies: list[float] = []

    def notify(executed: int) -> None:
        if on_step:
            on_step(StepInfo(step, first_success, chunk, executed, latencies[-1] * 1000.0 if latencies else 0.0))

    def is_over() -> bool:
        return step == env.task.horizon or consecutive_successes == env.hold_steps or env.is_over

    while not is_over():
        start = time.perf_counter()
        chunk = clamp_chunk(limits, agent.act(history), last_action, f"seed {seed}")
        latencies.append(time.perf_counter() - start)
        last_action = chunk[-1]
        for executed, action in enumerate(chunk, start=1):
            notify(executed - 1)
            success = env.step(action)
            step += 1
            consecutive_successes = consecutive_successes + 1 if success else 0
            longest_success = max(longest_success, consecutive_successes)
            if success and first_success is None:
                first_success = step
            if is_over():
                break
            if len(chunk) - executed < agent.n_obs_steps:
                history = [*history[1:], env.observe(agent.obs)]
    notify(executed)
    return EpisodeResult(
        seed=seed,
        success=first_success is not None,
        held=longest_success >= SUCCESS_HOLD_STEPS,
        steps=step if first_success is None else first_success,
        chunk_ms=float(np.mean(latencies) * 1000.0) if latencies else 0.0,
        score=env.score,
        total_reward=env.total_reward,
        start=positions or None,
    )


def clamp_chunk(
    limits: ActionLimits, chunk: NDArray[np.floating[Any]], previous_action: Array | None, context: str = ""
) -> Array:
    """`limits.clamp`, with a DdpError for actions that cannot be executed."""
    try:
        return limits.clamp(chunk, previous_action, context)
    except ActionError as e:
        raise DdpError(e.message, e.hint) from e
