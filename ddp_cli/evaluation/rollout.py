"""One closed-loop episode of an agent that predicts action chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DdpError
from ddp_cli.rotation import matrix_to_6d
from ddp_cli.safety import ActionError, ActionLimits, Array
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import ACTION_WIDTHS

SUCCESS_HOLD_STEPS = 10  # consecutive steps of success after which an episode ends, and counts as held

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


@dataclass(frozen=True)
class StepInfo:
    """State of an episode before an action, or after the last one."""

    step: int
    """Actions executed since the start."""
    first_success: int | None
    """Step of the first success, None before it."""
    chunk: NDArray[np.float64]
    """The current action chunk (Ta, 7 or 10)."""
    executed: int
    """Actions of the chunk that were executed."""
    chunk_ms: float
    """Time to predict the chunk [ms]."""


def run_episode(
    sim: Simulator, agent: Agent, seed: int, on_step: Callable[[StepInfo], None] | None = None
) -> EpisodeResult:
    """Run `agent` from the initial state `seed` with receding horizon control: predict a chunk, execute it, repeat.

    Success is the environment's success check at any step, as in the published evaluation; the episode then continues
    only until success has held for 10 steps. Only the observations that the agent uses are rendered.
    `on_step` is called before every action and at the end, so once more than there are steps. It may read from `sim`,
    but must not change its state.
    """
    sim.reset(seed)
    agent.reset(seed)
    limits, last_action = agent.action_limits, idle_action(sim)
    history = [sim.observe(agent.obs)] * agent.n_obs_steps
    first_success: int | None = None
    consecutive_successes = step = i = 0
    chunk = np.zeros((0, 0))
    latencies: list[float] = []

    def notify(executed: int) -> None:
        if on_step:
            on_step(StepInfo(step, first_success, chunk, executed, latencies[-1] * 1000.0))

    while step < sim.task.horizon and consecutive_successes < SUCCESS_HOLD_STEPS:
        start = time.perf_counter()
        chunk = clamp_chunk(limits, agent.act(history), last_action, f"seed {seed}")
        latencies.append(time.perf_counter() - start)
        last_action = chunk[-1]
        for i, action in enumerate(chunk):
            notify(i)
            success = sim.step(action)
            step += 1
            consecutive_successes = consecutive_successes + 1 if success else 0
            if success and first_success is None:
                first_success = step
            if step == sim.task.horizon or consecutive_successes == SUCCESS_HOLD_STEPS:
                break
            if len(chunk) - 1 - i < agent.n_obs_steps:
                history = [*history[1:], sim.observe(agent.obs)]
    notify(i + 1)
    return EpisodeResult(
        seed=seed,
        success=first_success is not None,
        held=consecutive_successes >= SUCCESS_HOLD_STEPS,
        steps=step if first_success is None else first_success,
        chunk_ms=float(np.mean(latencies) * 1000.0),
    )


def clamp_chunk(
    limits: ActionLimits, chunk: NDArray[np.floating[Any]], previous_action: Array | None, context: str = ""
) -> Array:
    """`limits.clamp`, with a DdpError for actions that cannot be executed."""
    try:
        return limits.clamp(chunk, previous_action, context)
    except ActionError as e:
        raise DdpError(e.message, e.hint) from e


def idle_action(sim: Simulator) -> Array:
    """The action that keeps the robot in place: zeros (7,), or the current end-effector pose as the goal (10,)."""
    if sim.actions == "delta":
        return np.zeros(ACTION_WIDTHS["delta"])
    position, rotation = sim.eef_pose()
    return np.concatenate([position, matrix_to_6d(rotation), [0.0]])
