"""One closed-loop episode with anything that predicts action chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_cli.rotation import matrix_to_6d
from ddp_cli.safety import Array, Safety
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import ACTION_DIM

HOLD_STEPS = 10  # success for this many steps in a row counts as held

Observation = Mapping[str, NDArray[Any]]


class Agent(Protocol):
    """What an episode needs of a policy."""

    @property
    def obs(self) -> str:
        """`image` or `state`."""

    @property
    def actions(self) -> str:
        """`delta` or `absolute`."""

    @property
    def n_obs_steps(self) -> int:
        """How many observations it looks at."""

    @property
    def safety(self) -> Safety:
        """What its actions are kept inside of."""

    def reset(self, seed: int) -> None:
        """Called before an episode: `seed` decides all randomness of the agent in it."""

    def act(self, history: Sequence[Observation]) -> NDArray[np.floating[Any]]:
        """The next actions (Ta, Da) after the last `n_obs_steps` observations, oldest first."""


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended. `steps` counts to the first success, or to the horizon."""

    seed: int
    success: bool
    held: bool
    steps: int
    chunk_ms: float
    """Mean time per predicted chunk [ms]."""


@dataclass(frozen=True)
class StepInfo:
    """What is going on before an action of an episode, or after its last one."""

    step: int
    """Actions since the start."""
    first_success: int | None
    """The step at which the task first had succeeded, None until then."""
    chunk: NDArray[np.float64]
    """The predicted actions (Ta, 7 or 10) that are being executed."""
    executed: int
    """How many of them have been."""
    chunk_ms: float
    """How long their prediction took [ms]."""


def run_episode(
    sim: Simulator, agent: Agent, seed: int, on_step: Callable[[StepInfo], None] | None = None
) -> EpisodeResult:
    """Runs `agent` from start `seed` by receding horizon: predict a chunk, execute it, look again.

    Success is the task's own check at any step, as published; the episode goes on after it only until
    success has held for 10 steps. Only the frames that the agent looks at are rendered.
    `on_step` is called before every action and at the end: once more than there are steps. It may look at `sim`,
    and must not change it.
    """
    sim.reset(seed)
    agent.reset(seed)
    safety, last = agent.safety, rest(sim)
    history = [sim.observe(agent.obs)] * agent.n_obs_steps
    first_success: int | None = None
    in_a_row = step = i = 0
    chunk = np.zeros((0, 0))
    latencies: list[float] = []

    def tell(executed: int) -> None:
        if on_step:
            on_step(StepInfo(step, first_success, chunk, executed, latencies[-1] * 1000.0))

    while step < sim.task.horizon and in_a_row < HOLD_STEPS:
        started = time.perf_counter()
        chunk = safety.bound(agent.act(history), last, f"start {seed}")
        latencies.append(time.perf_counter() - started)
        last = chunk[-1]
        for i, action in enumerate(chunk):
            tell(i)
            success = sim.step(action)
            step += 1
            in_a_row = in_a_row + 1 if success else 0
            if success and first_success is None:
                first_success = step
            if step == sim.task.horizon or in_a_row == HOLD_STEPS:
                break
            if len(chunk) - 1 - i < agent.n_obs_steps:
                history = [*history[1:], sim.observe(agent.obs)]
    tell(i + 1)
    return EpisodeResult(
        seed=seed,
        success=first_success is not None,
        held=in_a_row >= HOLD_STEPS,
        steps=step if first_success is None else first_success,
        chunk_ms=float(np.mean(latencies) * 1000.0),
    )


def rest(sim: Simulator) -> Array:
    """The action (7,) or (10,) that asks for nothing: no motion, or the pose where the hand is as the goal."""
    if sim.actions == "delta":
        return np.zeros(ACTION_DIM)
    position, rotation = sim.hand()
    return np.concatenate([position, matrix_to_6d(rotation), [0.0]])
