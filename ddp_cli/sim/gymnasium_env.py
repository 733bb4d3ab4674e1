"""Gymnasium environments: any simulator with this interface runs the episodes of a policy."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError, SimulatorError, describe_exception
from ddp_cli.sim.gymnasium_observations import RENDER, ObservationMapping, Observations, flatten, to_array
from ddp_cli.tasks import Task
from ddp_cli.user_modules import import_user_module

SUCCESS_KEYS = ("is_success", "success")
REWARD, TERMINATED = "reward", "terminated"
MAX_POSE = 7  # numbers of a position with an orientation


@dataclass(frozen=True)
class GymnasiumSettings:
    """An environment and how its results are read."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Key of the policy -> name in the observation, or some elements of it: `state[0:2]`."""
    success_key: str | None = None
    """Of `info`, or `terminated`; None: the first of SUCCESS_KEYS that is there."""
    score_key: str = REWARD
    """Of `info`, or `reward`: the score of an episode is its highest value."""
    max_steps: int | None = None
    """None: the limit that the environment was registered with."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The settings that `to_json` wrote."""
        return cls(
            content["id"], content.get("kwargs") or {}, content.get("map") or {}, content.get("success_key"),
            content.get("score_key") or REWARD, content.get("max_steps"),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The settings in a report."""
        return {
            "id": self.id, "kwargs": dict(self.kwargs), "map": dict(self.sources), "success_key": self.success_key,
            "score_key": self.score_key, "max_steps": self.max_steps,
        }  # fmt: skip


class GymnasiumEnv:
    """The environment `settings.id` for policies of `task`. `film`: images of `env.render()` will be read.

    SimulatorError if it cannot be created, ConfigError if it does not fit the policy.
    """

    def __init__(self, task: Task, obs: str, settings: GymnasiumSettings, film: bool = False) -> None:
        self._settings = settings
        self._mapping = ObservationMapping(settings.id, task.images(obs), task.vectors(obs), settings.sources)
        self._env = _make(settings, film or self._mapping.needs_render)
        # Environments may have started other processes, which would outlive a worker of an evaluation.
        self._finalizer = Finalize(self, _close, (self._env,), exitpriority=1)
        self.task = replace(task, horizon=self._max_steps())
        self.hold_steps = self.task.horizon
        """Success does not end an episode, unless the environment ends it."""
        self._observation: Any = None
        self._info: Any = None
        self.is_over, self.score, self.total_reward = False, -np.inf, 0.0
        self._step, self._known = 0, set[str]()
        self._check_action_space()

    def _max_steps(self) -> int:
        limit = self._settings.max_steps or getattr(self._env.spec, "max_episode_steps", None)
        if limit is None:
            raise ConfigError(f"'{self._settings.id}' does not limit the length of an episode.", "Add --max-steps.")
        return int(limit)

    def _check_action_space(self) -> None:
        shape, width = self._env.action_space.shape, self.task.schema.action_dim
        if not shape or int(np.prod(shape)) != width or not np.issubdtype(self._env.action_space.dtype, np.floating):
            raise ConfigError(
                f"'{self._settings.id}' takes actions {self._env.action_space}, the policy predicts {width} numbers.",
                "Use the environment that the demonstrations were recorded in.",
            )

    # -- episode ------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`."""
        self._observation, self._info = self._call("reset", seed=seed)
        self.is_over, self.score, self.total_reward = False, -np.inf, 0.0
        self._step, self._known = 0, set()
        self._mapping.find_sources(flatten(self._observation))

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Run one control step of `action` (Da,), clipped to the action space; returns success at its end."""
        space = self._env.action_space
        clipped = np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)
        self._observation, reward, terminated, truncated, info = self._call("step", clipped)
        self._info = info = info or {}
        self._step += 1
        for name, value in ((REWARD, reward), (TERMINATED, terminated), ("truncated", truncated)):
            if not _is_number(value):
                raise SimulatorError(f"'{self._settings.id}': {name} is {value!r}, not a number.", "Correct it.")
        self.is_over = bool(_scalar(terminated)) or bool(_scalar(truncated))
        self.total_reward += _scalar(reward)
        values = {**info, TERMINATED: terminated, REWARD: reward}
        score = self._result(values, self._settings.score_key, "--score-key")
        if not np.isfinite([self.total_reward, score or 0.0]).all():
            raise SimulatorError(f"'{self._settings.id}' reports a reward or score that is not finite.", "Correct it.")
        self.score = self.score if score is None else max(self.score, score)
        reported = [key for key in SUCCESS_KEYS if key in info or key in self._known]
        success_key = self._settings.success_key or next(iter(reported), SUCCESS_KEYS[0])
        return (self._result(values, success_key, "--success-key") or 0.0) > 0

    def _result(self, values: Mapping[str, Any], key: str, option: str) -> float | None:
        """The number `key` of a step, None where it is not reported. ConfigError if it never was in the episode."""
        if key in values and _is_number(values[key]):
            self._known.add(key)
            return _scalar(values[key])
        is_last = self.is_over or self._step == self.task.horizon
        if key in values or (is_last and key not in self._known):
            known = ", ".join(name for name, value in values.items() if _is_number(value))
            raise ConfigError(
                f"'{self._settings.id}' does not report '{key}' as a number.", f"Choose with {option}: {known}."
            )
        return None

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the environment. What it prints goes to stderr; SimulatorError if it fails."""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                return getattr(self._env, method)(*args, **kwargs)
            except Exception as e:
                raise SimulatorError(
                    f"'{self._settings.id}' failed in {method}: {describe_exception(e)}",
                    "DDP_DEBUG=1 prints where.",
                ) from e

    def idle_action(self) -> None:
        """Not known: what keeps the robot in place depends on the environment."""
        return

    # -- observations -------------------------------------------------------------------------

    def positions(self) -> dict[str, list[float]]:
        """The vectors of the observation and of `info` that are called positions or poses, by their names."""
        arrays = flatten(self._observation) | flatten(self._info)
        places = {name: value for name, value in arrays.items() if "pos" in name and value.ndim == 1}
        return {
            name: [round(float(x), 5) for x in value]
            for name, value in places.items()
            if 2 <= len(value) <= MAX_POSE and np.isfinite(value).all()
        }

    def observe(self, _obs: str) -> Observations:
        """Observations of the policy: images uint8 (H, W, C), vectors float32 (width,)."""
        arrays = flatten(self._observation)
        if self._mapping.needs_render:
            arrays[RENDER] = self.render()
        return self._mapping.observe(arrays)

    def render(self) -> NDArray[np.uint8]:
        """The image (H, W, 3) of `env.render()`."""
        image = np.squeeze(to_array(self._call("render")))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind not in "iu":
            raise SimulatorError(
                f"'{self._settings.id}' renders {image.dtype} of shape {image.shape}, not an image.",
                "Add --env-arg render_mode=rgb_array, or leave the video out.",
            )
        return image.astype(np.uint8)

    def close(self) -> None:
        """Close the environment."""
        self._finalizer()


def _close(env: Any) -> None:
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Exception):
        env.close()


def _make(settings: GymnasiumSettings, render: bool) -> Any:
    """The environment; SimulatorError if it cannot be created."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    kwargs = ({"render_mode": "rgb_array"} if render else {}) | dict(settings.kwargs)
    # Modules print when they are imported; the standard output is that of --json.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gymnasium = _import(settings.id)
        try:
            return gymnasium.make(settings.id, max_episode_steps=settings.max_steps, disable_env_checker=True, **kwargs)
        except Exception as e:
            raise SimulatorError(
                f"cannot create the environment '{settings.id}': {describe_exception(e)}",
                "Check the id, and the arguments given by --env-arg.",
            ) from e


def _import(id: str) -> Any:
    """The module gymnasium, after the one that registers the environment `id`."""
    try:
        import gymnasium
    except ImportError:
        raise SimulatorError("--env needs gymnasium.", "pip install 'ddp-cli[gym]'") from None
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    module = id.partition(":")[0] if ":" in id else id.rpartition("/")[0]
    missing = SimulatorError(
        f"there is no module '{module}' that could register '{id}'.",
        "Install its package, write MODULE:ID, or run `ddp` in the folder of the module.",
    )
    if not module or id in gymnasium.registry:
        return gymnasium
    try:
        import_user_module(module, missing)
    except SimulatorError:
        if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
            stem = Path(module.replace("\\", "/")).stem
            raise SimulatorError(
                f"'{module}' is not the name of a module.", f"Write {stem}:ID, in the folder of {stem}.py."
            ) from None
        raise
    return gymnasium


def _is_number(value: Any) -> bool:
    array = to_array(value)
    return array.size == 1 and array.dtype.kind in "biuf"


def _scalar(value: Any) -> float:
    """A number or an array of one number, as vectorized simulators return it."""
    return float(to_array(value).item())
