"""Checks of a task against its environment, which only the simulator can answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ddp_cli.errors import ConfigError, UnknownNameError, close_match
from ddp_cli.tasks import ACTION_DIM, Task


def check_env_name(env_name: str, environments: Iterable[str]) -> None:
    """UnknownNameError unless `env_name` is one of robosuite's `environments` for a single arm."""
    valid = sorted(name for name in environments if not name.startswith("TwoArm"))
    if env_name not in valid:
        raise UnknownNameError("single-arm robosuite environment", env_name, valid)


def check_task_observables(task: Task, action_dim: int, cameras: Iterable[str], widths: Mapping[str, int]) -> None:
    """ConfigError unless the environment has the cameras and observables of the task.

    `cameras` and `widths` (observable -> width) describe the environment.
    """
    if action_dim != ACTION_DIM:
        raise ConfigError(
            f"{task.env_name} takes actions of {action_dim} values; an arm with a gripper takes {ACTION_DIM}.",
            "Use another env_name.",
        )
    for key, camera in task.cameras.items():
        if camera not in cameras:
            raise ConfigError(
                f"task '{task.name}', cameras.{key}: {task.env_name} has no camera '{camera}'"
                f"{close_match(camera, cameras)}",
                f"Valid: {', '.join(cameras)}.",
            )
    for field, keys in (("low_dim", task.low_dim), ("object", task.object)):
        for key, width in keys.items():
            location = f"task '{task.name}', {field}: "
            if key not in widths:
                raise ConfigError(
                    f"{location}{task.env_name} has no observable '{key}'{close_match(key, widths)}",
                    f"Valid, with widths: {', '.join(f'{k} {w}' for k, w in widths.items())}.",
                )
            if width != widths[key]:
                raise ConfigError(
                    f"{location}'{key}' has width {widths[key]}, not {width}.", f'Write "{key}": {widths[key]}.'
                )
