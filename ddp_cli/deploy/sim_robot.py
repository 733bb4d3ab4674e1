"""A simulator as a robot: `ddp run --robot sim`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ddp_cli.action_limits import Array
from ddp_cli.evaluation.rollout import Environment


class SimulatedRobot:
    """Runs `env`. Episode i starts from the initial state of seed + i, and ends as those of `ddp rollout` do."""

    def __init__(self, env: Environment, obs: str, seed: int) -> None:
        self._env, self._obs, self._next_seed = env, obs, seed
        self._steps = self._consecutive_successes = 0
        self._succeeded = False

    @property
    def horizon(self) -> int:
        """Steps of an episode, at most."""
        return self._env.task.horizon

    def reset(self) -> None:
        self._env.reset(self._next_seed)
        self._next_seed += 1
        self._steps = self._consecutive_successes = 0
        self._succeeded = False
        self.observe()  # the first images take long, and a chunk is late then

    def observe(self) -> dict[str, NDArray[Any]]:
        observation = dict(self._env.observe(self._obs))
        # What the policy does not observe is recorded, too: a store of the task holds it.
        rest = [key for key in self._env.task.vectors("state") if key not in observation]
        return observation | (self._env.low_dim(rest) if rest and hasattr(self._env, "low_dim") else {})

    def command(self, action: Array) -> None:
        success = self._env.step(action)
        self._steps += 1
        self._consecutive_successes = self._consecutive_successes + 1 if success else 0
        self._succeeded |= success

    def outcome(self) -> bool | None:
        has_held = self._consecutive_successes == self._env.hold_steps
        is_over = has_held or self._env.is_over or self._steps == self.horizon
        return self._succeeded if is_over else None

    def start(self) -> Array | None:
        return self._env.idle_action()

    def stop(self) -> None:
        """The simulator stands still unless it is stepped."""
